"""What the scripts say to requests that make no sense (exit code 2, nothing written) and to damaged files (1)."""

from __future__ import annotations

import importlib
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_data

from transfergrid.paths import StorePaths
from transfergrid.store.records import read_grid, read_record

JOBS = Path(__file__).resolve().parents[2] / "jobs"
SCRATCH = "grid.models=[baseline_cnn] grid.phases=[scratch]"
PROBE = "grid.models=[resnet18] grid.phases=[probe]"
FINETUNE = "grid.models=[resnet18] grid.phases=[finetune]"


@dataclass(frozen=True)
class Answer:
    exit_code: int
    out: str
    err: str
    seconds: float


def case(script: str, arguments: str, *telling: str) -> object:
    """Arguments are parted at spaces. telling: what the line must hold, the nearest right name above all."""
    return pytest.param(script, arguments.split(), telling, id=f"{script} {arguments}".strip())


BAD_ARGUMENTS = [
    # Misspelt keys, groups and names, with the nearest right one.
    case("launch_grid", "gird=quickstart", "unknown key 'gird'; did you mean 'grid'?"),
    case("launch_grid", "grid=quikstart", "unknown grid 'quikstart'; did you mean 'quickstart'?"),
    case("launch_grid", "cluster=slrum", "unknown cluster 'slrum'; did you mean 'slurm'?"),
    case("launch_grid", "tracking=offlin", "did you mean 'offline'?"),
    case("launch_grid", "dataset=cifra10", "unknown dataset 'cifra10'; did you mean 'cifar10'?"),
    case("launch_grid", f"grid.datasets=[cifra10] {SCRATCH}", "did you mean 'cifar10'?"),
    case("launch_grid", "grid.model=[resnet18]", "did you mean 'grid.models'?"),
    case("launch_grid", "phase.finetune.optimiser=adam", "did you mean 'phase.finetune.optimizer'?"),
    case("launch_grid", "phase.fintune.lr=0.1", "did you mean 'phase.finetune.lr'?"),
    case("launch_grid", f"{FINETUNE} phase.finetune.optimizer=adamm", "sgd, adam, adamw", "did you mean 'adam'?"),
    case("launch_grid", "grid.models=[baseline_cnn] grid.phases=[scrach]", "did you mean 'scratch'?"),
    case("launch_grid", f"{SCRATCH} protocol=fiar", "fair, published", "did you mean 'fair'?"),
    case("launch_grid", f"{SCRATCH} device=gpu", "auto, cpu, cuda"),
    case("launch_grid", "lr=abc", "unknown key 'lr'", "'phase.finetune.lr' or 'phase.scratch.lr'"),
    case("launch_grid", "epochs=-5", "unknown key 'epochs'", "'phase.probe.epochs'"),
    case("report", "gird=x", "unknown key 'gird'; did you mean 'grid'?"),
    case("run_phase", "model=resnet18 phase=prob", "unknown phase 'prob'; did you mean 'probe'?"),
    case("run_phase", "model=resnet18 phase=evaluate phase.evaluate.split=tset", "train, val, test", "'test'"),
    # Values of the wrong type or out of range.
    case("launch_grid", f"{FINETUNE} phase.finetune.lr=abc", "phase.finetune.lr=abc is not a number"),
    case("launch_grid", f"{FINETUNE} phase.finetune.lr=nan", "phase.finetune.lr=nan is out of range", "above 0"),
    case("launch_grid", f"{FINETUNE} phase.finetune.lr=inf", "phase.finetune.lr=inf", "at most 100"),
    case("launch_grid", f"{FINETUNE} phase.finetune.lr=0", "phase.finetune.lr=0.0", "above 0"),
    case("launch_grid", f"{FINETUNE} phase.finetune.lr=null", "phase.finetune.lr=null is not a number"),
    case("launch_grid", f"{SCRATCH} phase.scratch.epochs=-5", "phase.scratch.epochs=-5", "at least 1"),
    case("launch_grid", f"{SCRATCH} phase.scratch.epochs=1e3", "phase.scratch.epochs=1000.0 is not a whole number"),
    case("launch_grid", f"{SCRATCH} phase.probe.epochs=-5", "phase.probe.epochs=-5", "at least 1"),
    case("launch_grid", f"{PROBE} phase.probe.lrs=[]", "phase.probe.lrs is empty"),
    case("launch_grid", f"{PROBE} phase.probe.lrs=[0.1,0.1]", "holds a value twice"),
    case("launch_grid", f"{SCRATCH} dry_run=maybe", "dry_run=maybe is not true or false"),
    case("launch_grid", f"{SCRATCH} replace=former", "replace=former is not true or false"),
    case("launch_grid", f"{SCRATCH} replce=true", "unknown key 'replce'; did you mean 'replace'?"),
    case("launch_grid", f"{SCRATCH} grid.seeds=3", "is not a list of whole numbers", "grid.seeds=[a,b]"),
    case("launch_grid", f"{SCRATCH} grid.seeds=[a]", "grid.seeds=['a'] is not a list of whole numbers"),
    case("launch_grid", f"{SCRATCH} grid.seeds=[-1]", "seed=-1", "at least 0"),
    case("launch_grid", f"{SCRATCH} grid.seeds=[0,0]", "holds a value twice"),
    case("launch_grid", f"{SCRATCH} grid.seeds=0,1", "a list is written key=[a,b]"),
    case("launch_grid", f"{SCRATCH} checkpoint.min_interval_s=nan", "checkpoint.min_interval_s=nan"),
    case("launch_grid", f"{SCRATCH} dataset.max_images=3", "dataset.max_images=3", "at least 10"),
    case("run_phase", "model=resnet18 seed=1.5", "seed=1.5 is not a whole number"),
    case("run_phase", "model=[resnet18]", "model=['resnet18'] is not text"),
    # Keys added, removed, doubled, or of another script; what is no key=value at all.
    case("launch_grid", "+foo=1", "'+foo=1'", "neither added nor removed"),
    case("launch_grid", "++grid.seeds=[1]", "neither added nor removed"),
    case("launch_grid", "~grid=quickstart", "neither added nor removed"),
    case("launch_grid", "foo=1", "unknown key 'foo'", "--help"),
    case("launch_grid", "protocol=fair protocol=fair", "'protocol' is given twice"),
    case("report", "grid=a grid=b", "'grid' is given twice"),
    case("launch_grid", "quickstart", "'quickstart' is not of the form key=value"),
    case("launch_grid", "-m", "'-m' is not of the form key=value"),
    case("launch_grid", "grid.models=[resnet18", "cannot be read"),
    case("launch_grid", "model=resnet18", "model= belongs to python jobs/run_phase.py", "grid.models=[...]"),
    case("launch_grid", "phase=probe", "grid.phases=[...]"),
    case("launch_grid", "phase.name=probe", "choose it as phase=NAME"),
    case("launch_grid", "dataset=mnist grid.datasets=[digits]", "both given"),
    case("run_phase", "model=resnet18 grid.seeds=[0]", "belongs to python jobs/launch_grid.py"),
    # Models.
    case("launch_grid", "grid.models=[]", "grid.models is empty"),
    case("launch_grid", "grid.models=resnet18", "is not a list of names", "grid.models=[a,b]"),
    case("launch_grid", "grid.models=[resnet81]", "unknown model 'resnet81'; did you mean 'resnet18'?"),
    case("launch_grid", "grid.models=[resnet18+googelnet]", "'googelnet' in model", "did you mean 'googlenet'?"),
    case("launch_grid", "grid.models=[resnet18+resnet18]", "holds resnet18 twice"),
    case("launch_grid", "grid.models=[resnet18+]", "a part of the model is empty in model 'resnet18+'"),
    case("launch_grid", "grid.models=[resnet18,resnet18]", "given twice"),
    case("launch_grid", "grid.models=[resnet18+vgg16,vgg16+resnet18]", "are the same join"),
    case("launch_grid", "grid.models=[resnet18+baseline_cnn]", "baseline_cnn is trained from scratch"),
    case("launch_grid", "grid.models=[squeezenet1_0]", "cannot be a backbone: it ends in no linear layer"),
    case("launch_grid", "grid.models=[timm/resnet81]", "did you mean 'timm/resnet"),
    case("launch_grid", "grid.models=[timm/../../etc/passwd]", "unknown timm network 'timm/../../etc/passwd'"),
    case("launch_grid", "grid.models=[../../etc/passwd]", "unknown model '../../etc/passwd'"),
    case("launch_grid", f"{PROBE} dataset.image_size_px=0", "dataset.image_size_px=0", "at least 1"),
    case(
        "launch_grid",
        "grid.models=[vit_b_16] grid.phases=[probe] dataset.image_size_px=32",
        "takes images of exactly 224 px, not 32",
    ),
    case(
        "launch_grid",
        "grid.models=[inception_v3] grid.phases=[probe] dataset.image_size_px=32",
        "at least 75 px, not 32; set dataset.image_size_px=75",
    ),
    case("launch_grid", f"{SCRATCH} dataset.image_size_px=2", "at least 8 px, not 2"),
    # Phases without a model, models without a phase.
    case("launch_grid", "grid.models=[resnet18] grid.phases=[scratch]", "no model of the grid takes phase 'scratch'"),
    case("launch_grid", "grid.models=[baseline_cnn] grid.phases=[probe]", "no model of the grid takes phase 'probe'"),
    case("launch_grid", f"{SCRATCH} grid.rules=[{{skip:true}}]", "grid.rules skip all of phase 'scratch'"),
    case("launch_grid", "grid.models=[resnet18] grid.phases=[extract]", "the plan adds extract by itself"),
    case("launch_grid", f"{SCRATCH} protocol=published", "belongs to a published study"),
    case("run_phase", "", "model= is needed"),
    case("run_phase", "model=resnet18 phase=scratch", "choose phase=probe or phase=finetune"),
    case("run_phase", "model=baseline_cnn phase=probe", "choose phase=scratch or phase=evaluate"),
    case("run_phase", "model=resnet18+vgg16 phase=evaluate", "phase=evaluate run=ID"),
    case("run_phase", "model=resnet18 phase=evaluate", "1000 classes, digits has 10", "run=ID"),
    case("run_phase", "phase=evaluate run=nothing", "run='nothing' is not in results/runs"),
    case("run_phase", "phase=evaluate run=../../etc", "run='../../etc' is not in results/runs"),
    case("run_phase", "model=resnet18 weights=random needs=check", "must complete first", "extract"),
    # Settings that contradict each other.
    case("launch_grid", f"{PROBE} phase.probe.flip=true", "needs phase.probe.source=images"),
    case("launch_grid", f"{FINETUNE} phase.finetune.schedule=step", "needs phase.finetune.step_epochs=[...]"),
    case("launch_grid", f"{FINETUNE} phase.finetune.frozen_groups=[steem]", "did you mean 'stem'?"),
    case("launch_grid", f"{FINETUNE} phase.finetune.selection=best_on_test", "only protocol=published may"),
    # Variants and rules.
    case(
        "launch_grid", f"{SCRATCH} grid.variants={{a:{{phase.scratch.epoch:3}}}}", "did you mean 'phase.scratch.epochs'"
    ),
    case("launch_grid", f"{SCRATCH} grid.variants={{a:{{phase.scratch.epochs:x}}}}", "grid.variants.a", "whole number"),
    case("launch_grid", f"{SCRATCH} grid.variants={{a:{{store.dir:x}}}}", "'store.dir' is not a setting of a run"),
    case("launch_grid", f"{SCRATCH} grid.variants={{a:{{models:resnet18}}}}", "is not a list of names"),
    case("launch_grid", f"{SCRATCH} grid.variants={{../a:{{phase.scratch.epochs:3}}}}", "may hold only a-z"),
    case("launch_grid", f"{SCRATCH} grid.variants=[a]", "is not a dictionary"),
    case("launch_grid", f"{SCRATCH} grid.rules=[{{modles:[x],skip:true}}]", "did you mean 'models'?"),
    case("launch_grid", f"{SCRATCH} grid.rules=[{{models:[resnet81],skip:true}}]", "did you mean 'resnet18'?"),
    case("launch_grid", f"{SCRATCH} grid.rules=[{{set:null}}]", "set: {key: value} or skip: true"),
    # Files and folders that are not there or cannot be used; names that would leave their folder.
    case("launch_grid", f"{SCRATCH} dataset=image_folder", "needs dataset.folder=DIR"),
    case("launch_grid", f"{SCRATCH} dataset=image_folder dataset.folder=nowhere", "nowhere is not a folder"),
    case("launch_grid", f"{SCRATCH} dataset=digits dataset.folder=.", "only image_folder takes a folder"),
    case("launch_grid", f"{SCRATCH} dataset.name=../../x", "'../../x' cannot name a folder"),
    case("launch_grid", f"{SCRATCH} dataset.name=a\x1b[31mb", r"'a\x1b[31mb' cannot name a folder"),
    case("launch_grid", f"{SCRATCH} grid_name=../x", "grid name '../x' may hold only a-z"),
    case("report", "grid=../x", "grid name '../x' may hold only a-z"),
    case("report", "grid=mine", "'mine' was never launched in results"),
    case("launch_grid", f"{PROBE} weights=DEFAULT", "means another file each release", "IMAGENET1K_V1"),
    case("launch_grid", f"{PROBE} weights=IMAGENET1K_V9", "unknown weights 'IMAGENET1K_V9'", "IMAGENET1K_V1"),
    case("launch_grid", f"{PROBE} weights=missing.pth", "weights file 'missing.pth' of 'resnet18' is not there"),
    case("launch_grid", "grid.models=[resnet18,vgg16] grid.phases=[probe] weights=a.pth", "one file for 2 backbones"),
    case("launch_grid", f"{PROBE} weights_files.resnet81=a.pth", "no model uses it; did you mean 'resnet18'?"),
    case("run_phase", "model=resnet18 phase=evaluate phase.evaluate.checkpoint=no.pt", "'no.pt' is not a file"),
    case("launch_grid", f"{SCRATCH} store.dir=", "store.dir='' is not the name of a folder"),
    case("launch_grid", f"{SCRATCH} store.dir=a_file/results", "cannot be a folder: a_file is a file"),
    case("launch_grid", f"{SCRATCH} cache.dir=a_file", "cannot be a folder: a_file is a file"),
    case(
        "launch_grid", f"{SCRATCH} store.dir=/proc/results", "/proc/results cannot be used", "give another store.dir="
    ),
]


def answer_of(
    script: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Answer:
    """The script's main(), in this process, with the local cluster unless another is named."""
    elsewhere = script == "report" or any(a.startswith("cluster=") for a in arguments)
    module = importlib.import_module(f"transfergrid.cli.{ {'launch_grid': 'launch'}.get(script, script) }")
    monkeypatch.setattr("sys.argv", [f"jobs/{script}.py", *arguments, *([] if elsewhere else ["cluster=local"])])
    began = time.process_time()
    exit_code = module.main()
    seconds = time.process_time() - began
    captured = capsys.readouterr()
    return Answer(exit_code, captured.out, captured.err, seconds)


def everything_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize(("script", "arguments", "telling"), BAD_ARGUMENTS)
def test_bad_arguments_get_one_clear_line_exit_code_2_and_nothing_is_written(
    script: str,
    arguments: list[str],
    telling: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a_file", "a.pth"):
        (tmp_path / name).write_text("not what it should be")
    before = everything_in(tmp_path)
    answer = answer_of(script, arguments, monkeypatch, capsys)
    assert answer.exit_code == 2
    assert answer.err.startswith("error: ") and answer.err.endswith("\n") and answer.err.count("\n") == 1
    assert len(answer.err) <= 250
    assert [words for words in telling if words not in answer.err] == []
    assert everything_in(tmp_path) == before
    assert answer.seconds < 2


def test_there_are_at_least_a_hundred_bad_arguments() -> None:
    assert len(BAD_ARGUMENTS) >= 100


@pytest.mark.parametrize(
    ("script", "arguments", "telling"),
    [
        ("launch_grid", ["grid=quikstart"], "did you mean 'quickstart'?"),
        ("launch_grid", [*FINETUNE.split(), "phase.finetune.lr=nan"], "phase.finetune.lr=nan is out of range"),
        ("run_phase", ["model=resnet18+resnet18"], "holds resnet18 twice"),
        ("report", ["grid=mine"], "was never launched"),
    ],
)
def test_the_scripts_themselves_end_with_2_within_two_seconds(
    script: str, arguments: list[str], telling: str, tmp_path: Path
) -> None:
    """Two seconds of processor time, which does not depend on who else is using the machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, str(JOBS / f"{script}.py"), *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and telling in done.stderr
    assert done.stdout == ""
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
    assert everything_in(tmp_path) == []


# ------------------------------------------------------------------------------------------------------- bad contents
# Damaged files cannot be told from arguments: exit code 1, one line that names the file and what to do.
BACKBONE = "shufflenet_v2_x0_5"  # torchvision's smallest
LOCAL = ["cluster=local", "device=cpu", "cluster.num_threads=1", "tracking=disabled", "grid.seeds=[0]"]
ONE_EPOCH = ["phase.scratch.epochs=1", "phase.scratch.precision=fp32", "grid.variants={}", *LOCAL]


@pytest.fixture(scope="module")
def weights_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole, truncated, wrong and foreign weights of one backbone."""
    import torch
    from torchvision import models

    folder = tmp_path_factory.mktemp("weights")
    state = models.get_model(BACKBONE, weights=None).state_dict()
    torch.save(state, folder / "whole.pth")
    whole = (folder / "whole.pth").read_bytes()
    (folder / "truncated.pth").write_bytes(whole[: len(whole) // 2])
    (folder / "wrong.pth").write_bytes(b"<html>404 Not Found</html>")
    torch.save({"epoch": 3}, folder / "no_state_dict.pth")
    torch.save(models.get_model("mobilenet_v3_small", weights=None).state_dict(), folder / "of_another_network.pth")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "telling"),
    [
        ("truncated.pth", "truncated.pth"),
        ("wrong.pth", "wrong.pth"),
        ("no_state_dict.pth", "holds no state dict; save model.state_dict() with torch.save"),
        ("of_another_network.pth", "is of another network"),
    ],
)
def test_damaged_weights_are_found_before_anything_is_submitted(
    file: str,
    telling: str,
    weights_files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [f"grid.models=[{BACKBONE}]", "grid.phases=[probe]", f"weights={weights_files / file}", *LOCAL]
    answer = answer_of("launch_grid", arguments, monkeypatch, capsys)
    assert answer.exit_code == 1
    assert answer.err.startswith("error: ") and answer.err.count("\n") == 1 and len(answer.err) <= 410
    assert str(weights_files / file) in answer.err and telling in answer.err
    assert [p for p in everything_in(tmp_path) if p.is_file()] == []
    assert not (tmp_path / "results" / "runs").exists()


def test_a_class_folder_without_images_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tiny_data.write_folder(tmp_path / "pets")
    (folder / "train" / "eel").mkdir()
    before = everything_in(tmp_path)
    arguments = [*SCRATCH.split(), "dataset=image_folder", f"dataset.folder={folder}", *ONE_EPOCH]
    answer = answer_of("launch_grid", arguments, monkeypatch, capsys)
    assert answer.exit_code == 1
    assert answer.err.startswith("error: ") and answer.err.count("\n") == 1
    assert str(folder / "train" / "eel") in answer.err
    assert everything_in(tmp_path) == before


def test_a_corrupt_image_is_told_before_anything_is_written_and_may_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tiny_data.write_folder(tmp_path / "pets", sizes_px=(16,))
    corrupt = folder / "train" / "dog" / "1.png"
    corrupt.write_bytes(corrupt.read_bytes()[:120])  # the header is whole, the pixels are not
    size = ["dataset=image_folder", f"dataset.folder={folder}", "phase.scratch.batch_size=2"]
    answer = answer_of("launch_grid", [*SCRATCH.split(), *size, *ONE_EPOCH], monkeypatch, capsys)
    assert answer.exit_code == 1
    (line,) = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    assert str(corrupt) in line and line.endswith("; mend or remove it; dataset.skip_damaged=true leaves it out")
    store = StorePaths(tmp_path / "results")
    assert not store.root.exists()

    again = answer_of(
        "launch_grid", [*SCRATCH.split(), *size, *ONE_EPOCH, "dataset.skip_damaged=true"], monkeypatch, capsys
    )
    assert again.exit_code == 0 and f"  {corrupt.relative_to(folder)} cannot be read as an image" in again.out
    (row,) = read_grid(store.grid("quickstart"))
    record = read_record(store.run(row.run_id))
    assert record is not None and (record.status, record.spec.dataset.left_out) == ("completed", 1)
    inventory = record.details["inventory"]
    assert (inventory["damaged"], inventory["damaged_files"]) == (1, ["train/dog/1.png"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
@pytest.mark.parametrize("size_kb", [4, 16, 128], ids=["for_the_payload", "for_a_record", "for_weights"])
def test_a_full_store_is_told_in_one_line_with_what_is_free(
    size_kb: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "small"
    store.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(store)], check=False)
    if mounted.returncode != 0:
        pytest.skip("mounting is not permitted here")
    monkeypatch.setattr("transfergrid.cli.before.volumes", lambda runs, runtime: [])  # others fill it after the plan
    try:
        monkeypatch.chdir(tmp_path)
        arguments = [*SCRATCH.split(), f"store.dir={store}/results", *ONE_EPOCH, "dataset.max_images=60"]
        answer = answer_of("launch_grid", arguments, monkeypatch, capsys)
    finally:
        subprocess.run(["umount", "-l", str(store)], check=True)
    assert answer.exit_code == 1
    told = [
        line for line in answer.err.splitlines() + answer.out.splitlines() if line.startswith(("error", "disk_full"))
    ]
    assert len(told) == 1 and "no space left for" in told[0] and "free some space and launch again" in told[0]


def test_a_failure_report_never_spans_lines() -> None:
    from transfergrid.errors import DataError, one_line

    assert one_line(DataError("a\nb\n  c")) == "a b c"
    assert len(one_line(DataError("x" * 999))) == 400
