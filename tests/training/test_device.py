"""Which GPU a run may use, and in which arithmetic. torch.cuda is pretended but where a test is marked `gpu`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import small_runs
import torch

from transfergrid.cli import before, launch
from transfergrid.cli.console import make_console
from transfergrid.cluster import child, local
from transfergrid.errors import MachineError
from transfergrid.planning import job
from transfergrid.specs import Runtime
from transfergrid.training import device, on_images
from transfergrid.training.device import Gpus, arithmetic, device_of, gpus, prepare_process
from transfergrid.training.stopping import StopFlag

WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
TOO_OLD = "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver"
NO_CUDA = not torch.cuda.is_available()


@dataclass
class Pretended:
    """GPUs by compute capability; fails: what torch.cuda.init() says where there is none that it can use."""

    capabilities: list[tuple[int, int]] = field(default_factory=list)
    fails: str | None = None
    native_bf16: bool = True


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretended]:
    told = Pretended()

    def init() -> None:
        if told.fails is not None:
            raise RuntimeError(told.fails)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(told.capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(told.capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i=0: told.capabilities[getattr(i, "index", i) or 0])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i=0: f"GPU {told.capabilities[i]}")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: told.native_bf16)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(WHEEL))
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setenv("SLURMD_NODENAME", "gpu-n7")
    gpus.cache_clear()
    yield told
    gpus.cache_clear()


def runtime(named: str) -> Runtime:
    usual = Runtime(store_dir="s", cache_dir="c", data_dir="d", weights_dir="w", num_threads=1)
    return replace(usual, device=named)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("capability", "built_for", "expected"),
    [
        ((7, 0), WHEEL, False),  # V100
        ((7, 5), WHEEL, True),  # T4
        ((8, 9), WHEEL, True),  # L40S: a binary of 8.6 runs
        ((9, 0), WHEEL, True),
        ((6, 1), WHEEL, False),
        ((11, 0), WHEEL, False),
        ((12, 1), WHEEL, True),
        ((8, 0), ["sm_86"], False),  # not downwards
        ((12, 1), ["sm_80", "compute_90"], True),  # compiled by the driver
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),  # of that one alone
        ((9, 4), ["gfx942"], True),  # ROCm's names say nothing here
        ((7, 0), [], True),
    ],
)
def test_a_gpu_is_usable_where_kernels_for_its_architecture_are_in_the_build(
    capability: tuple[int, int], built_for: list[str], expected: bool
) -> None:
    assert device._runs_on(capability, built_for) is expected


def test_a_driver_too_old_is_told_in_torchs_own_words(cuda: Pretended, caplog: pytest.LogCaptureFixture) -> None:
    cuda.fails = TOO_OLD
    assert gpus() == Gpus((), TOO_OLD)
    with pytest.raises(MachineError) as raised:
        prepare_process(runtime("cuda"))
    assert str(raised.value) == f"device=cuda is set, but torch cannot use a GPU on gpu-n7: {TOO_OLD}; use device=cpu"
    with caplog.at_level(logging.WARNING):
        prepare_process(runtime("auto"))
    assert [r.message for r in caplog.records] == [f"computing on the CPU: {TOO_OLD}"]
    assert device_of(runtime("auto")) == torch.device("cpu") == device_of(runtime("cpu"))


def test_an_architecture_that_is_not_in_the_build_is_not_used_and_named(cuda: Pretended) -> None:
    cuda.capabilities = [(7, 0)]
    words = (
        "GPU (7, 0) with CUDA capability sm_70 is not compatible with the current PyTorch installation, which supports"
    )
    found = gpus()
    assert found.usable == () and found.problem == f"{words} {' '.join(WHEEL)}"
    assert device_of(runtime("auto")) == torch.device("cpu")
    with pytest.raises(MachineError, match="sm_70 is not compatible"):
        prepare_process(runtime("cuda"))


def test_of_two_gpus_the_usable_one_is_used(cuda: Pretended, caplog: pytest.LogCaptureFixture) -> None:
    cuda.capabilities = [(7, 0), (8, 0)]
    assert gpus().usable == (1,)
    assert device_of(runtime("auto")) == torch.device("cuda", 1) == device_of(runtime("cuda"))
    with caplog.at_level(logging.WARNING):
        prepare_process(runtime("cuda"))
    assert [r.message.split(":")[0] for r in caplog.records] == ["not every GPU is used"]


def test_emulated_bfloat16_is_told(cuda: Pretended, caplog: pytest.LogCaptureFixture) -> None:
    cuda.capabilities, cuda.native_bf16 = [(7, 5)], False
    with caplog.at_level(logging.WARNING):
        prepare_process(runtime("auto"))
    assert "GPU (7, 5) only emulates bfloat16" in caplog.text and device_of(runtime("auto")) == torch.device("cuda")


# --------------------------------------------------------------------------------------------------------- local slots
@pytest.mark.parametrize(
    ("visible", "usable", "expected"),
    [
        (None, (0, 1), ("0", "1")),
        (None, (1,), ("1",)),
        ("0,1,2,3", (), (None,)),  # no GPU that torch can use: one run at a time, on the CPU
        ("", (), (None,)),
        ("3, 5", (0, 1), ("3", "5")),
        ("0,,1", (0,), ("0",)),  # CUDA ends its list at the blank
        ("GPU-5ab,MIG-7", (0, 1), ("GPU-5ab", "MIG-7")),
        ("2,3", (1,), ("3",)),
    ],
)
def test_slots_are_the_gpus_that_torch_can_use(
    visible: str | None, usable: tuple[int, ...], expected: tuple[str | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(child, "ask", lambda *_, **__: child.Answer((usable, None)))
    child._gpus_here.cache_clear()
    try:
        assert local.slots_for(runtime("auto")) == expected
        assert local.slots_for(runtime("cpu")) == (None,)
    finally:
        child._gpus_here.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(not NO_CUDA, reason="a machine without GPU")
def test_a_real_child_finds_no_gpu_however_many_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    child._gpus_here.cache_clear()
    try:
        found = child.gpus_for(runtime("auto"))
        assert found.visible == () and found.problem is not None and "NVIDIA" in found.problem
        assert local.slots_for(runtime("auto")) == (None,)
    finally:
        child._gpus_here.cache_clear()


def test_a_child_of_the_pool_sees_its_own_gpu_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(job, "read_payload", lambda path: 1 / 0)  # after the variable is set
    with pytest.raises(ZeroDivisionError):
        local._outcome(str(tmp_path), 0, "GPU-5ab", StopFlag(), "tell")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-5ab"


@pytest.mark.parametrize(
    ("named", "found", "expected"),
    [
        ("auto", child.GpusHere((), TOO_OLD), f"runs compute on the CPU: {TOO_OLD}\n"),
        ("auto", child.GpusHere(("1",), "V100 is not compatible"), "not every GPU is used: V100 is not compatible\n"),
        ("auto", child.GpusHere(("0",), None), ""),
        ("cuda", child.GpusHere(("0",), None), ""),
    ],
)
def test_a_launch_says_in_one_line_what_it_computes_on(
    named: str,
    found: child.GpusHere,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(before, "gpus_for", lambda _: found)
    before._tell_device(make_console(), runtime(named))
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("more", [[], ["dry_run=true"]], ids=["launch", "dry_run"])
def test_device_cuda_without_a_usable_gpu_is_one_line_before_anything_starts(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(before, "gpus_for", lambda _: child.GpusHere((), TOO_OLD))
    places = [f"store.dir={tmp_path / 'store'}", f"cache.dir={tmp_path / 'cache'}", "tracking=disabled"]
    monkeypatch.setattr("sys.argv", ["launch_grid.py", "cluster=local", "device=cuda", *places, *more])
    assert launch.main() == 1
    said = capsys.readouterr()
    line = f"error: device=cuda is set, but torch cannot use a GPU here: {TOO_OLD}; use device=cpu\n"
    assert said.err == line and "failed" not in said.out
    assert not list((tmp_path / "store").rglob("*.json")), "nothing was started"


def test_no_gpus_asked_for_means_the_cpu_here_too(tmp_path: Path) -> None:
    for given, expected in (("cluster.gpus=0", "cpu"), ("cluster.gpus=1", "auto")):
        asked = small_runs.request(tmp_path, "model=tinynet", "phase=scratch", "cluster=local", given, "device=auto")
        assert launch.on_cpu_without_gpus(asked).runtime.device == expected


# ---------------------------------------------------------------------------------------------------------------- tf32
def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_tf32_holds_inside_its_block_alone_also_after_an_error() -> None:
    prepare_process(runtime("cpu"))
    assert flags() == (False, False)
    with arithmetic("tf32"):
        assert flags() == (True, True)
        # As the parity gate of a tf32 fine-tuning on fp32 features.
        with on_images.autocast(torch.device("cpu"), "fp32"):
            assert flags() == (False, False)
        assert flags() == (True, True)
    with pytest.raises(ZeroDivisionError), on_images.autocast(torch.device("cpu"), "tf32"):
        assert flags() == (True, True) and not torch.is_autocast_enabled("cpu")
        raise ZeroDivisionError
    assert flags() == (False, False)


def test_a_tf32_run_trains_with_the_flags_set_and_says_that_a_cpu_computed_in_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transfergrid.training import loop

    seen: set[tuple[bool, bool]] = set()
    step = loop._forward_backward

    def noticed(*arguments: object) -> object:
        seen.add(flags())
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("transfergrid.training.loop._forward_backward", noticed)
    made = {}
    for precision in ("fp32", "tf32"):
        asked = small_runs.request(tmp_path, "model=tinynet", "phase=scratch", f"phase.scratch.precision={precision}")
        assert small_runs.carry_out(asked) == "completed"
        made[precision] = asked
    fp32, tf32 = (small_runs.final_run(made[p]) for p in ("fp32", "tf32"))
    assert fp32.run_id != tf32.run_id and seen == {(False, False), (True, True)} and flags() == (False, False)
    records = [small_runs.record_of(run, made["fp32"].runtime) for run in (fp32, tf32)]
    assert records[0].metrics == records[1].metrics  # on a CPU both are float32
    assert "computed_in" not in records[0].provenance and records[1].provenance["computed_in"] == "fp32"


def test_features_in_tf32_have_a_key_of_their_own_and_serve_a_fine_tuning(tmp_path: Path) -> None:
    digests = {}
    for precision in ("fp32", "tf32"):
        given = ("model=tinynet_mnist", "phase=finetune", f"phase.extract.precision={precision}")
        asked = small_runs.request(tmp_path, *given, "phase.probe.epochs=30")
        run = small_runs.final_run(asked)
        digests[precision] = run.feature_key(run.backbones[0], "train").digest
        assert small_runs.carry_out(asked) == "completed", small_runs.record_of(run, asked.runtime).error
    assert digests["fp32"] != digests["tf32"]


def test_where_tf32_is_there(cuda: Pretended) -> None:
    cuda.capabilities = [(7, 5), (8, 0), (9, 0)]
    assert [device.has_tf32(torch.device("cuda", i)) for i in range(3)] == [False, True, True]
    assert not device.has_tf32(torch.device("cpu"))


@pytest.mark.gpu
def test_on_a_gpu_tf32_rounds_to_ten_bits_and_fp32_does_not() -> None:
    gpus.cache_clear()
    prepare_process(runtime("cuda"))
    a = torch.rand(512, 512, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    exact = a.double() @ a.double()

    def error(precision: str) -> float:
        with on_images.autocast(torch.device("cuda"), precision):
            return float(((a @ a).double() - exact).abs().max() / exact.abs().max())

    assert error("fp32") < 2.0**-20 < 2.0**-16 < error("tf32") < 2.0**-9


@pytest.mark.gpu
def test_on_a_gpu_an_assert_is_a_bug_and_its_number_is_known() -> None:
    """In a process of its own: nothing on the GPU works after it."""
    import subprocess
    import sys

    code = (
        "import torch; from transfergrid.errors import classify\n"
        "try:\n    torch.zeros(2, device='cuda')[torch.tensor([5], device='cuda')].cpu()\n"
        "except RuntimeError as error: print(type(error).__name__, classify(error))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["AcceleratorError", "code"]
