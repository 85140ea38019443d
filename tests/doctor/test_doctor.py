"""jobs/doctor.py: every line can fail, and then names its remedy."""

from __future__ import annotations

import errno
import inspect
import json
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from fake_slurm import PARTITIONS, SINFO, FakeSlurm, a_fake, noisy

from transfergrid.cli.doctor import doctor
from transfergrid.cluster.limits import read_limits
from transfergrid.config import load_doctor
from transfergrid.doctor import checks, fitness, node_findings
from transfergrid.doctor.checks import Check
from transfergrid.doctor.fitness import slurm_checks
from transfergrid.doctor.nodecheck import meet, shows, tried
from transfergrid.doctor.nodecheck_jobs import ProbeAnswer
from transfergrid.errors import ConfigError
from transfergrid.resources import ClusterSettings, Resources
from transfergrid.specs import Runtime
from transfergrid.store.provenance import code_hash

fake = a_fake
SETTINGS = ClusterSettings(name="slurm", kind="slurm", resources=Resources(partition="gpu"))
GOT = {"seen": True, "seconds": 0.1, "lock": True, "claim": True, "kernel_locks": True}
NOT_GOT = GOT | {"lock": False, "claim": False}


def runtime(folder: Path, *, tracking: Literal["auto", "offline", "online", "disabled"] = "offline") -> Runtime:
    return Runtime(
        store_dir=f"{folder}/results",
        cache_dir=f"{folder}/cache",
        data_dir=f"{folder}/data",
        weights_dir=f"{folder}/weights",
        tracking=tracking,
    )


def saying(**findings: Any) -> ProbeAnswer:
    return ProbeAnswer(findings=findings, job_id="71", sent_s=1000.0, seen_s=1010.0)


# ------------------------------------------------------------------------------------ each check, on a machine unfit
def _folder(tmp_path: Path, fake: FakeSlurm) -> Check:
    (tmp_path / "file").write_text("")
    return checks.check_folder("store", tmp_path / "file" / "results")


def _partition(tmp_path: Path, fake: FakeSlurm) -> Check:
    fake.say("sinfo", SINFO.replace("|mixed|", "|drained|").replace("gpu|idle|", "gpu|down|"))
    return checks.check_partition(SETTINGS, read_limits())


def _arrays(tmp_path: Path, fake: FakeSlurm) -> Check:
    fake.config(MaxArraySize="0")
    return checks.check_arrays(read_limits())


def _queue(tmp_path: Path, fake: FakeSlurm) -> Check:
    fake.say("squeue -u", "".join(f"{job}\n" for job in range(150)))
    return checks.check_queue(read_limits())


def _accounting(tmp_path: Path, fake: FakeSlurm) -> Check:
    fake.say("sacct", "!sacct: error: slurm_persist_conn_open: Connection refused")
    return checks.check_accounting(read_limits())


def _requeue(tmp_path: Path, fake: FakeSlurm) -> Check:
    settings = ClusterSettings(sbatch={"no-requeue": ""})
    return checks.check_requeue(settings, read_limits())


def _preemption(tmp_path: Path, fake: FakeSlurm) -> Check:
    fake.config(PreemptType="preempt/qos")
    fake.say("scontrol partition", PARTITIONS.replace("PreemptMode=OFF", "PreemptMode=CANCEL", 1))
    return checks.check_preemption(SETTINGS, read_limits())


def _tracking(tmp_path: Path, fake: FakeSlurm) -> Check:
    (tmp_path / ".netrc").write_text("machine elsewhere.org login user password topsecret\n")
    return checks.check_tracking(runtime(tmp_path, tracking="online"), {"HOME": str(tmp_path)})


def _data(tmp_path: Path, fake: FakeSlurm) -> Check:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"):
        (folder / name).write_bytes(b"half of it")
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"half of it")
    return checks.check_data(tmp_path, ["mnist"])


UNFIT: dict[str, tuple[Callable[[Path, FakeSlurm], Check], str, str]] = {
    "check_folder": (_folder, "a file stands where a folder is needed", "as store.dir="),
    "check_space": (lambda tmp, _: checks.check_space("store", tmp, least_gb=1e9), "GB free", "another store.dir="),
    "check_partition": (_partition, "every node is down or drained", "cluster.partition= (cpu)"),
    "check_arrays": (_arrays, "MaxArraySize=0: no job arrays", "ask the cluster's administrators"),
    "check_queue": (_queue, "150 of your jobs in the queue, 150 allowed", "wait=true sends a large grid in waves"),
    "check_accounting": (_accounting, "Connection refused", "squeue alone"),
    "check_requeue": (_requeue, "cluster.sbatch holds no-requeue", "take no-requeue out"),
    "check_preemption": (_preemption, "gpu PreemptMode=CANCEL", "cluster.partition= (cpu, old)"),
    "check_tracking": (_tracking, "no key for api.forge.coreweave.com", "wandb login"),
    "check_data": (_data, "is not the published file", "remove it and fetch it again"),
    "check_weights": (
        lambda tmp, _: checks.check_weights(tmp / "nowhere", was_named=True),
        "nowhere is not a folder",
        "weights_dir=",
    ),
    "check_probe": (
        lambda *_: node_findings.check_probe(ProbeAnswer(problem="job 71 ended as FAILED: python: not found")),
        "python: not found",
        "cluster.python=",
    ),
    "check_python": (lambda *_: node_findings.check_python(saying(python="3.9.1")), "3.9.1 there", "cluster.python="),
    "check_code": (
        lambda *_: node_findings.check_code(saying(code={"hash": "0" * 16, "folder": "/old/transfergrid"})),
        "another transfergrid is imported, from /old/transfergrid",
        "PYTHONPATH",
    ),
    "check_torch": (
        lambda *_: node_findings.check_torch(saying(torch={"error": "ImportError: libcudart.so"})),
        "ImportError: libcudart.so",
        "install torch",
    ),
    "check_commands": (
        lambda *_: node_findings.check_commands(
            saying(commands={"squeue": False, "scontrol": False}, batch_script={"squeue": False, "scontrol": True})
        ),
        "there is no squeue and no scontrol, nor in the batch script",
        "cluster.timeout_min=",
    ),
    "check_ulimits": (
        lambda *_: node_findings.check_ulimits(saying(ulimits={"t": 600, "n": 1024, "v": 3_000_000})),
        "ulimit -t is 600; ulimit -v is 3000000",
        "propagate: NONE",
    ),
    "check_gpu": (
        lambda *_: node_findings.check_gpu(
            saying(gpu={"error": "RuntimeError: no driver"}), device="auto", gpus=1, on_slurm=True
        ),
        "torch cannot use the GPU of the job: RuntimeError: no driver",
        "device=cpu",
    ),
    "check_clock": (
        lambda *_: node_findings.check_clock(saying(time_s=1100.0)),
        "at least 90 s ahead",
        "have the clocks set",
    ),
    "check_memory": (lambda *_: node_findings.check_memory(saying(memory_gib=0.5)), "0.5 GiB", "2 GiB are needed"),
    "check_cores": (
        lambda *_: node_findings.check_cores(saying(cores=2), num_threads=8),
        "cluster.num_threads=8",
        "cluster.num_threads=2 or less",
    ),
    "check_shared": (
        lambda *_: node_findings.check_shared("cache", saying(folders={"cache": {"seen": False}}), here=GOT),
        "what one writes does not show on the other",
        "another cache.dir=",
    ),
    "check_two_nodes": (
        lambda *_: node_findings.check_two_nodes(
            saying(
                first={"host": "n1", "folders": {"store": GOT}},
                second={"host": "n2", "folders": {"store": NOT_GOT | {"lock": True}}},
            )
        ),
        "a lock held on one is free on the other (store of n1 and n2)",
        "local_lock",
    ),
}


def test_every_check_has_a_case_in_which_it_fails() -> None:
    functions = {**vars(checks), **vars(node_findings)}
    assert {n for n, f in functions.items() if n.startswith("check_") and inspect.isfunction(f)} == set(UNFIT)


@pytest.mark.parametrize("name", UNFIT)
def test_a_check_fails_with_what_it_found_and_its_remedy(name: str, tmp_path: Path, fake: FakeSlurm) -> None:
    case, said, remedy = UNFIT[name]
    check = case(tmp_path, fake)
    assert check.ok is False
    assert said in check.message and remedy in check.remedy
    assert "\n" not in check.message + check.remedy


# ---------------------------------------------------------------------------------------------- what else a check says
def test_an_impossible_request_is_told_with_what_would_be_possible(fake: FakeSlurm) -> None:
    asked = ClusterSettings(by_phase={"finetune": Resources(gpus=9)}, resources=Resources(partition="gpu"))
    check = checks.check_partition(asked, read_limits())
    assert check.message == "phase finetune: cluster.gpus=9 is more than any node of partition gpu has"
    assert check.remedy == "give cluster.gpus=4 or less"


def test_facts_of_a_refusal_are_told_as_facts_and_its_remedy_as_the_remedy(fake: FakeSlurm) -> None:
    asked = ClusterSettings(resources=Resources(partition="gpu", cpus=64, gpus=4, mem_gb=500))
    check = checks.check_partition(asked, read_limits())
    assert check.message.startswith("runs: no node of partition gpu has cluster.cpus=64, cluster.mem_gb=500 and")
    assert check.message.endswith(
        " at once; its nodes: 32 CPUs 250.0 GiB 4 GPUs, 64 CPUs 500.0 GiB 3 GPUs, 32 CPUs 250.0 GiB 4 GPUs"
    )
    assert check.remedy == "ask for what one of them has, or name another in cluster.partition="
    asked = ClusterSettings(resources=Resources(partition="gpu", account="vision"))
    check = checks.check_partition(asked, read_limits())
    assert check.message == "runs: cluster.account='vision': you have no such SLURM account; known: lab, other"
    assert check.remedy == "give one of those"


def test_a_cluster_without_accounting_is_fit_while_squeue_remembers(fake: FakeSlurm) -> None:
    fake.config(AccountingStorageType="accounting_storage/none")
    assert checks.check_accounting(read_limits()).ok is True
    fake.config(AccountingStorageType="accounting_storage/none", MinJobAge="2 sec")
    check = checks.check_accounting(read_limits())
    assert check.ok is False and "for 2 s after its end" in check.message


def test_a_wandb_key_is_found_and_never_shown(tmp_path: Path) -> None:
    online = runtime(tmp_path, tracking="online")
    (tmp_path / ".netrc").write_text("machine api.forge.coreweave.com login user password topsecret\n")
    for environ in ({"HOME": str(tmp_path)}, {"HOME": "/", "WANDB_API_KEY": "topsecret"}):
        check = checks.check_tracking(online, environ)
        assert check.ok is True and "topsecret" not in check.message
    own = {"HOME": str(tmp_path), "WANDB_BASE_URL": "https://wandb.example.org:8080"}
    assert checks.check_tracking(online, own).message == "online, and there is no key for wandb.example.org:8080"
    assert checks.check_tracking(runtime(tmp_path, tracking="offline"), {}).ok is True
    auto = checks.check_tracking(runtime(tmp_path, tracking="auto"), own)
    assert auto.ok is True
    assert auto.message.startswith("auto: no key for wandb.example.org:8080, so nothing goes to W&B; run `wandb login`")


def test_data_that_is_missing_is_information(tmp_path: Path) -> None:
    check = checks.check_data(tmp_path, ["digits", "mnist", "svhn"])
    assert check == Check("data", True, f"in {tmp_path}: digits; fetched when launched: mnist, svhn")


def test_a_gpu_is_needed_only_where_one_was_asked_for() -> None:
    no_gpu = saying(gpu={"error": "RuntimeError: no driver"})
    unused = node_findings.check_gpu(no_gpu, device="auto", gpus=0, on_slurm=False)
    assert unused.ok is True
    assert unused.message == "none that torch can use, runs compute on the CPU: RuntimeError: no driver"
    here = node_findings.check_gpu(no_gpu, device="cuda", gpus=0, on_slurm=False)
    assert (here.ok, here.message) == (False, "torch cannot use a GPU here: RuntimeError: no driver")
    of_two = saying(gpu={"names": ["A100"], "problem": "V100 is not compatible"})
    one = node_findings.check_gpu(of_two, device="auto", gpus=1, on_slurm=True)
    assert (one.ok, one.message) == (True, "A100; not used: V100 is not compatible")
    assert node_findings.check_gpu(no_gpu, device="cpu", gpus=1, on_slurm=True).message == "not looked at: device=cpu"
    assert node_findings.check_gpu(no_gpu, device="auto", gpus=0, on_slurm=True).ok is None
    assert (
        node_findings.check_gpu(saying(gpu={"names": ["H200"]}), device="auto", gpus=1, on_slurm=True).message == "H200"
    )


def test_a_probe_that_broke_off_leaves_the_rest_unchecked() -> None:
    lines = [
        node_findings.check_python(saying()),
        node_findings.check_code(saying()),
        node_findings.check_torch(saying()),
        node_findings.check_gpu(saying(), device="auto", gpus=1, on_slurm=True),
        node_findings.check_clock(saying()),
        node_findings.check_memory(saying()),
        node_findings.check_cores(saying(), num_threads=0),
        node_findings.check_shared("store", saying(), here=GOT),
    ]
    assert {line.ok for line in lines} == {None}
    assert {line.message for line in lines} == {"could not be checked: the probe did not get so far"}


def test_a_clock_is_right_between_sending_and_reading() -> None:
    assert node_findings.check_clock(saying(time_s=1005.0)).ok is True
    behind = node_findings.check_clock(saying(time_s=900.0))
    assert behind.message == "the node's clock is at least 100 s behind of this machine's"


# ------------------------------------------------------------------------------------------------------ shared folders
def test_of_two_that_try_one_gets_lock_and_claim_and_both_see_the_other(tmp_path: Path) -> None:
    with tried(tmp_path, "here") as here:
        there = meet(tmp_path, "node", "here", 5.0)
        assert there.pop("seconds") < 1.0
        assert there == {"seen": True, "lock": False, "claim": False, "kernel_locks": True}
        assert here == {"lock": True, "claim": True, "kernel_locks": True} and shows(tmp_path / "node", 0.0)


def test_a_folder_of_a_nodes_own_is_told_and_nothing_is_written_there(tmp_path: Path) -> None:
    assert meet(tmp_path / "here", "node", "here", 0.0) == {"seen": False}
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "here").mkdir()
    alone = meet(tmp_path / "here", "node", "here", 0.0)
    assert alone["lock"] and alone["claim"] and not alone["seen"]
    check = node_findings.check_shared("store", saying(folders={"store": alone}), here=GOT | {"seen": False})
    assert check.ok is False and "what one writes does not show on the other" in check.message


@pytest.mark.parametrize(
    ("twice", "said", "remedy"),
    [
        ("lock", "a lock held on one is free on the other", "NFS without nolock"),
        ("claim", "a claim by hard link is given twice", "another store.dir="),
    ],
)
def test_what_both_get_is_told_with_what_helps(twice: str, said: str, remedy: str) -> None:
    check = node_findings.check_shared("store", saying(folders={"store": NOT_GOT | {twice: True}}), here=GOT)
    assert (check.ok, check.message) == (False, f"{said} (this machine and the node)") and remedy in check.remedy


def test_a_folder_the_node_cannot_write_to_is_told() -> None:
    found = {"seen": True, "error": "/results is not writable"}
    check = node_findings.check_shared("store", saying(folders={"store": found}), here=GOT)
    assert check.ok is False and check.message == "/results is not writable"


def test_one_node_needs_no_comparison_of_two() -> None:
    assert node_findings.check_two_nodes(None).ok is None
    refused = ProbeAnswer(problem="sbatch: error: Node count specification invalid")
    assert node_findings.check_two_nodes(refused).message.endswith("Node count specification invalid")
    failed = ProbeAnswer(problem="job 72 ended as FAILED: srun: error", job_id="72")
    assert node_findings.check_two_nodes(failed).ok is False


def test_in_a_container_the_batch_script_does_what_the_run_cannot() -> None:
    def check(inside: bool, outside: bool) -> Check:
        return node_findings.check_commands(
            saying(commands={"squeue": True, "scontrol": inside}, batch_script={"squeue": True, "scontrol": outside})
        )

    assert check(True, True).message == "squeue and scontrol are there"
    in_container = check(False, True)
    assert in_container.ok and "there is no scontrol; the batch script puts jobs back" in in_container.message
    assert check(False, False).ok is False and node_findings.check_commands(saying()).ok is None


def test_a_folder_without_locks_is_fit_and_says_so_and_one_without_links_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    found = checks.check_folder("store", tmp_path / "results")
    assert found.ok and found.message.endswith("is writable; it has no locks, hard links take their place")
    assert list((tmp_path / "results").iterdir()) == []
    found = node_findings.check_shared(
        "store", saying(folders={"store": NOT_GOT | {"kernel_locks": False}}), here=GOT | {"kernel_locks": False}
    )
    assert found.ok and "hard links in place of locks and claims hold" in found.message
    monkeypatch.setattr("os.link", lambda *_: refuse())
    found = checks.check_folder("store", tmp_path / "results")
    assert found.ok is False


# ---------------------------------------------------------------------------------------------------------- as a whole
def test_slurm_that_does_not_answer_is_one_failed_line(fake: FakeSlurm, tmp_path: Path) -> None:
    fake.say("scontrol config", "!Unable to contact slurm controller (connect failure)")
    lines = list(slurm_checks(runtime(tmp_path), SETTINGS, queue_s=1.0, visible_s=0.0))
    assert [(line.name, line.ok) for line in lines] == [("slurm", False)]
    assert "cluster=local" in lines[0].remedy


def test_an_unknown_partition_is_named_and_no_job_is_sent(fake: FakeSlurm, tmp_path: Path) -> None:
    settings = ClusterSettings(resources=Resources(partition="gpux"))
    lines = {line.name: line for line in slurm_checks(runtime(tmp_path), settings, queue_s=1.0, visible_s=0.0)}
    assert lines["partition"].message == "runs: cluster.partition='gpux' is unknown here"
    assert lines["partition"].remedy == "did you mean 'gpu'?"
    assert lines["probe job"].ok is None and fake.called("sbatch") == []


@pytest.mark.parametrize("is_noisy", [False, True])
def test_the_whole_of_it_as_printed(
    fake: FakeSlurm,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    is_noisy: bool,
) -> None:
    """A node with all but a GPU that torch can use and a folder it sees, also where a site wraps the commands."""
    if is_noisy:
        site = noisy(tmp_path.parent / f"{tmp_path.name}-site", fake.folder)
        monkeypatch.setenv("PATH", f"{site}{os.pathsep}{os.environ['PATH']}")
    findings: list[dict[str, Any]] = [
        {"host": "n7", "python": platform.python_version(), "code": {"hash": code_hash()}},
        {"torch": {"version": "2.13.0", "torchvision": "0.28.0"}, "gpu": {"error": "no driver"}},
        {"folders": {"store": {"seen": False}, "cache": {"seen": False}}},
    ]
    one, other = ({"store": got, "cache": got} for got in (GOT, NOT_GOT))
    pair = [{"second": {"host": "n8", "folders": other}}, {"first": {"host": "n7", "folders": one}}]
    fake.outputs = {"node": "\n".join(map(json.dumps, findings)), "pair": "\n".join(map(json.dumps, pair))}
    fake.say("squeue -u", "71\n72\n")
    fake.save()
    monkeypatch.chdir(tmp_path)
    code = doctor(["cluster=slurm", "cluster.partition=gpu", "store.dir=results", "cache.dir=cache", "wait_s=5"])
    printed = capsys.readouterr().out
    assert code == 1
    assert re.search(r"^ok      python           3\.11\.\d+$", printed, re.M)
    assert (
        "FAILED  gpu              torch cannot use the GPU of the job: no driver\n" + " " * 25 + "-> check" in printed
    )
    assert "--      clock            could not be checked" in printed
    assert "ok      queue            2 of your jobs in the queue, 150 allowed" in printed
    assert "ok      two nodes        locks and claims hold (n7 and n8)" in printed
    assert printed.splitlines()[-1] == "not fit: gpu, store shared, cache shared"
    assert "waiting for the queue, at most 5 s" in printed
    left = [str(p.relative_to(tmp_path)) for folder in ("results", "cache") for p in (tmp_path / folder).rglob("*")]
    assert left == []


def test_arguments_are_a_launchs_and_the_wait() -> None:
    request = load_doctor(["cluster=slurm", "device=cpu", "wait_s=7", "weights_dir=w", "tracking=online"])
    assert (request.wait_s, request.weights_named, request.runtime.device) == (7.0, True, "cpu")
    assert request.runtime.tracking == "online" and request.cluster.kind == "slurm"
    for wrong in ("wait_s=soon", "wait_s=-1", "cluster.partion=gpu"):
        with pytest.raises(ConfigError):
            load_doctor([wrong])


def test_a_machine_without_slurm_is_looked_at_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {"python": platform.python_version(), "code": {"hash": code_hash()}, "cores": 2, "memory_gib": 7.5}
    seen |= {"torch": {"version": "2.13.0", "torchvision": "0.28.0"}, "gpu": {"error": "no driver"}}
    monkeypatch.setattr(fitness, "_probe_here", lambda *, skip_gpu: saying(**seen))
    arguments = ["cluster=local", f"store.dir={tmp_path}/s", f"cache.dir={tmp_path}/c"]
    assert doctor(arguments) == 0
    printed = capsys.readouterr().out
    assert "ok      gpu              none that torch can use, runs compute on the CPU: no driver" in printed
    names = [line[8:24].strip() for line in printed.splitlines()[1:-1]]
    assert names[-7:] == ["python", "code", "torch", "gpu", "memory", "ulimits", "cores"] and "slurm" not in names
    assert doctor([*arguments, "device=cuda"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "not fit: gpu"


@pytest.mark.slow
def test_this_very_machine_is_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(["cluster=local", "device=cpu", f"store.dir={tmp_path}/s", f"cache.dir={tmp_path}/c"]) == 0
    printed = capsys.readouterr().out
    assert "--      gpu              not looked at: device=cpu" in printed and printed.splitlines()[-1] == "fit"
    assert re.search(r"^ok      torch            torch 2\.", printed, re.M)
