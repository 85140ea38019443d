"""What a cluster allows, read from SLURM's commands, and requests that could never start there."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import PARTITIONS, FakeSlurm

from transfergrid.cluster.limits import Limits, gpus_of, queue_room, read_limits
from transfergrid.cluster.possible import assert_possible, fitted
from transfergrid.cluster.slurm import SlurmDown
from transfergrid.errors import ConfigError
from transfergrid.resources import Resources


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return FakeSlurm(tmp_path)


@pytest.fixture(scope="module")
def limits(tmp_path_factory: pytest.TempPathFactory) -> Limits:
    """Of the cluster as fake_slurm.py has it."""
    folder = tmp_path_factory.mktemp("bin")
    FakeSlurm(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return read_limits()


def test_limits_are_read_in_five_commands(fake: FakeSlurm) -> None:
    limits = read_limits()
    assert (limits.max_array_size, limits.kill_wait_s, limits.min_job_age_s) == (1001, 30, 300)
    assert (limits.accounting, limits.requeue, limits.preemption, limits.user_signal) == (True, True, "none", False)
    assert limits.accounts == frozenset({"lab", "other"}) and limits.qos == frozenset({"normal", "long"})
    assert limits.qos_max_time_min == {"long": 2880}
    assert len(fake.calls.read_text().splitlines()) == 5
    gpu, cpu = limits.partitions["gpu"], limits.partitions["cpu"]
    assert (gpu.max_time_min, gpu.nodes, gpu.usable_nodes, gpu.is_default) == (1440, 6, 5, True)
    assert gpu.gpus_by_type == {"a100": 4, "h100.80gb": 1, "v100": 2}
    assert (gpu.max_cpus, gpu.max_mem_mib) == (64, 512_000)
    assert (cpu.max_cpus, cpu.max_mem_mib, cpu.max_time_min) == (16, 32_768, None)  # the partition's own caps
    assert cpu.allow_accounts == frozenset({"lab"}) and cpu.allow_qos == frozenset({"normal"})


def test_the_smallest_of_a_users_job_limits_counts(fake: FakeSlurm) -> None:
    assert read_limits().max_jobs == 150  # of QOS normal, below the account's 200 and the controller's 10000
    assert read_limits(qos="long").max_jobs == 200
    assert read_limits(account="other").max_jobs == 5
    fake.config(AccountingStorageEnforce="none")
    assert read_limits().max_jobs == 10_000
    limits = read_limits()
    assert limits.qos == frozenset({"normal", "long", "secret"})  # nobody checks who may use it


def test_an_array_is_no_longer_than_the_scheduler_takes(fake: FakeSlurm) -> None:
    fake.config(SchedulerParameters="bf_max_job_test=5,max_array_tasks=3,defer")
    assert read_limits().max_array_size == 3


def test_a_qos_that_demands_a_gpu_is_known_by_itself_and_as_a_partitions_own(fake: FakeSlurm) -> None:
    fake.say("sacctmgr qos", "normal|150||||||||\nlong||||gres/gpu=1|||||\nsecret||||gres/gpu=0,cpu=2|||||\n")
    fake.say("scontrol partition", "PartitionName=gpu QoS=long State=UP\nPartitionName=cpu QoS=secret State=UP\n")
    limits = read_limits()
    assert limits.gpu_qos == {"long"}
    assert {p.name: p.demands_gpu for p in limits.partitions.values()} == {"gpu": True, "cpu": False}
    with pytest.raises(ConfigError, match="phase probe: QOS long starts no job without a GPU; give cluster.gpus=1"):
        assert_possible(Resources(partition="gpu", gpus=0, qos="long", mem_gb=1), limits, what="phase probe")
    with pytest.raises(ConfigError, match=r"partition gpu starts no job without a GPU \(its QOS long\)"):
        assert_possible(Resources(partition="gpu", gpus=0, mem_gb=1), limits, what="phase probe")
    assert_possible(Resources(partition="gpu", gpus=1, mem_gb=1), limits, what="phase probe")


def test_of_several_partitions_each_refusal_is_a_fact_and_the_remedies_stand_together_at_the_end(
    fake: FakeSlurm,
) -> None:
    fake.say("sacctmgr qos", "long||||gres/gpu=1|||||\n")
    fake.say("scontrol partition", "PartitionName=gpu QoS=long State=UP\nPartitionName=cpu State=DOWN\n")
    with pytest.raises(ConfigError) as refused:
        assert_possible(Resources(partition="gpu,cpu", gpus=0, mem_gb=1), read_limits(), what="phase probe")
    assert str(refused.value) == (
        "phase probe: partition gpu starts no job without a GPU (its QOS long); partition cpu is down and starts"
        " nothing; name another, or give cluster.gpus=1 or name another in cluster.partition="
    )


OF_A_JOB = "normal|150|||||gres/gpu=2,mem=64G|gres/gpu=1||\nwide||||||gres/gpu=8,cpu=6|||OverPartQOS\nsecret|||||||||\n"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"gpus": 2}, "cluster.gpus=2 is more than QOS normal ever gives; give cluster.gpus=1 or less"),
        ({"mem_gb": 100}, "cluster.mem_gb=100 is more than QOS normal ever gives; give cluster.mem_gb=64 or less"),
        ({"qos": "wide", "cpus": 8}, "cluster.cpus=8 is more than QOS wide ever gives; give cluster.cpus=6 or less"),
        (
            {"qos": "secret", "cpus": 9},
            "cluster.cpus=9 is more than account lab ever gives; give cluster.cpus=8 or less",
        ),
        ({"qos": "secret", "gpus": 4}, None),
        ({"qos": "wide", "gpus": 2}, None),
        ({"gpus": 1, "cpus": 8}, None),
    ],
)
def test_a_job_that_a_qos_or_an_account_never_lets_start_is_refused(
    fake: FakeSlurm, asked: dict[str, Any], told: str | None
) -> None:
    fake.say("sacctmgr qos", OF_A_JOB)
    fake.say("sacctmgr user", "lab|lab|normal,secret,wide|normal|200|||cpu=8,gres/gpu=4\n")
    resources = replace(Resources(partition="gpu", gpus=1, cpus=4, mem_gb=16), **asked)
    if told is None:
        assert_possible(resources, read_limits(), what="phase probe")
    else:
        with pytest.raises(ConfigError, match=f"phase probe: {told}"):
            assert_possible(resources, read_limits(), what="phase probe")


def test_a_partitions_own_qos_goes_before_the_jobs_unless_that_says_otherwise(fake: FakeSlurm) -> None:
    fake.say("sacctmgr qos", OF_A_JOB + "part||||||cpu=2|||\n")
    fake.say("sacctmgr user", "lab|lab|normal,wide|normal|200|||\n")
    fake.say("scontrol partition", PARTITIONS.replace("PartitionName=gpu", "PartitionName=gpu QoS=part", 1))
    resources = Resources(partition="gpu", gpus=1, cpus=4, mem_gb=16)
    with pytest.raises(ConfigError, match="cluster.cpus=4 is more than QOS part ever gives"):
        assert_possible(resources, read_limits(), what="phase probe")
    assert_possible(replace(resources, qos="wide"), read_limits(), what="phase probe")


def test_a_default_yields_to_what_a_qos_gives(fake: FakeSlurm) -> None:
    fake.say("sacctmgr qos", "normal|150|||||cpu=2,mem=8G|||\n")
    limits = read_limits()
    default = Resources(partition="gpu", defaults=frozenset({"cpus", "mem_gb"}))
    lowered, line = fitted(default, limits, what="phase probe")
    assert (lowered.cpus, lowered.mem_gb, lowered.gpus) == (2, 8, 1)
    assert line is not None and "cluster.cpus=2 (default 4), cluster.mem_gb=8 (default 16)" in line
    assert_possible(lowered, limits, what="phase probe")


def test_room_in_the_queue(fake: FakeSlurm) -> None:
    limits = read_limits(account="other")
    assert [queue_room(limits, live) for live in (0, 3, 5, 9)] == [5, 2, 0, 0]
    assert queue_room(replace(limits, max_jobs=None), 10**6) is None


def test_without_a_database_accounts_are_unknown(fake: FakeSlurm) -> None:
    fake.say("sacctmgr user", "!sacctmgr: error: Problem talking to the database: Connection refused")
    limits = read_limits()
    assert limits.accounting and limits.accounts is None and limits.qos is None and limits.max_jobs == 10_000
    fake.config(AccountingStorageType="accounting_storage/none")
    assert not read_limits().accounting


def test_a_silent_controller_is_an_error(fake: FakeSlurm) -> None:
    fake.say("scontrol config", "!slurm_load_ctl_conf error: Unable to contact slurm controller (connect failure)")
    with pytest.raises(SlurmDown, match="Unable to contact"):
        read_limits()


def test_user_signal_and_preemption_are_read(fake: FakeSlurm) -> None:
    fake.config(PreemptType="preempt/partition_prio", SlurmctldParameters="a,preempt_send_user_signal", JobRequeue="0")
    limits = read_limits()
    fake.config(MaxArraySize="0")
    assert read_limits().max_array_size == 0  # no arrays at all
    assert (limits.preemption, limits.user_signal, limits.requeue) == ("partition_prio", True, False)


def test_gpus_as_sinfo_writes_them() -> None:
    assert gpus_of("gpu:a100:4(S:0-1),gpu:2,craynetwork:1") == {"a100": 4, "": 2}
    assert gpus_of("gpu:1g.5gb:7") == {"1g.5gb": 7}
    assert gpus_of("(null)") == {}


BASE = Resources(partition="gpu", timeout_min=60)
IMPOSSIBLE = [
    (replace(BASE, partition="gpux"), "cluster.partition='gpux' is unknown here; did you mean 'gpu'?"),
    (replace(BASE, timeout_min=1441), "more than partition gpu ever gives; give cluster.timeout_min=1440 or less"),
    (
        replace(BASE, mem_gb=600),
        "cluster.mem_gb=600 is more than any node of partition gpu has; give cluster.mem_gb=500",
    ),
    (
        replace(BASE, cpus=65),
        "cluster.cpus=65 is more than any node of partition gpu has; give cluster.cpus=64 or less",
    ),
    (replace(BASE, gpus=5), "cluster.gpus=5 is more than any node of partition gpu has; give cluster.gpus=4 or less"),
    (replace(BASE, gpus=3, gpu_type="v100"), "cluster.gpus=3 is more than any node"),
    (
        replace(BASE, gpu_type="h200"),
        "cluster.gpu_type='h200' is unknown in partition gpu; known: a100, h100.80gb, v100",
    ),
    (replace(BASE, gpus=4, cpus=40), "no node of partition gpu has cluster.cpus=40"),
    (replace(BASE, partition="old", cpus=1), "partition old is drain and starts nothing"),
    (replace(BASE, partition="cpu", mem_gb=8), "partition cpu has no GPUs"),
    (replace(BASE, partition="cpu", gpus=0, account="other"), "partition cpu does not take cluster.account=other"),
    (
        replace(BASE, partition="cpu", gpus=0, qos="long"),
        "partition cpu does not take cluster.qos=long; it takes: normal",
    ),
    (replace(BASE, partition="cpu", gpus=0, mem_gb=33), "give cluster.mem_gb=32 or less"),
    (replace(BASE, account="lap"), "cluster.account='lap': you have no such SLURM account; did you mean 'lab'?"),
    (replace(BASE, qos="secret"), "cluster.qos='secret': you have no such QOS; known: long, normal"),
    (
        replace(BASE, qos="long", timeout_min=2881),
        "more than QOS long ever gives; give cluster.timeout_min=2880 or less",
    ),
    (replace(BASE, partition="cpu,old"), "partition cpu has no GPUs"),
]


@pytest.mark.parametrize(("asked", "said"), IMPOSSIBLE)
def test_what_can_never_start_is_refused_in_one_line(limits: Limits, asked: Resources, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        assert_possible(asked, limits, what="phase probe")
    message = str(refused.value)
    assert said in message and message.startswith("phase probe: ") and "\n" not in message


def test_one_partition_of_several_is_enough(limits: Limits) -> None:
    assert_possible(replace(BASE, partition="cpu,gpu"), limits, what="runs")
    assert_possible(replace(BASE, partition=None, gpus=4, gpu_type="a100", cpus=32), limits, what="runs")
    assert_possible(replace(BASE, partition="cpu", gpus=0, mem_gb=32.0), limits, what="runs")
    assert_possible(replace(BASE, partition="cpu", gpus=0, account="lab", qos="normal"), limits, what="runs")


def test_without_a_default_partition_one_must_be_named(limits: Limits) -> None:
    nameless = {name: replace(p, is_default=False) for name, p in limits.partitions.items()}
    with pytest.raises(ConfigError, match="no default partition; give cluster.partition=, one of: cpu, gpu, old"):
        assert_possible(replace(BASE, partition=None), replace(limits, partitions=nameless), what="runs")
