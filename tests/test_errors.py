"""Whose fault a failure is: what a machine did is not called the user's. Messages as torch and CUDA print them."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import small_runs
import torch

from transfergrid.errors import DataError, MissingInput, classify, is_of_the_machine
from transfergrid.planning import job
from transfergrid.planning.plan import make_plan
from transfergrid.store.records import read_record

ADVICE = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to enable "
    "device-side assertions.\n"
)
OF_THE_DEVICE = [
    "CUDA error: no kernel image is available for execution on the device",
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: all CUDA-capable devices are busy or unavailable",
    "CUDA error: unspecified launch failure",
    "CUDA error: an internal operation failed",
    "CUDA error: the launch timed out and was terminated",
    "CUDA error: unknown error",
]
OF_A_LIBRARY = [
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb, m, n, k)`",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "cuDNN Frontend error: [cudnn_frontend] Error: No valid execution plans built.",
    "GET was unable to find an engine to execute this computation",
    "Unable to find a valid cuDNN algorithm to run convolution",
    "No CUDA GPUs are available",
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU",
    "The NVIDIA driver on your system is too old (found version 12040).",
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices()",
    "CUDA driver error: system not yet initialized",
]
CUDA_OOM = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79 GiB"),
    torch.AcceleratorError("CUDA error: out of memory" + ADVICE),
    RuntimeError("CUDA error: out of memory" + ADVICE),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
]
HOST_OOM = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
        " allocate 400000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("std::bad_alloc"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
]
A_BUG = [
    torch.AcceleratorError("CUDA error: device-side assert triggered" + ADVICE),
    RuntimeError("CUDA error: device-side assert triggered"),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered" + ADVICE),
    torch.AcceleratorError("CUDA error: misaligned address" + ADVICE),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
    RuntimeError("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"),
    RuntimeError("it said: CUDA error: uncorrectable ECC error"),  # such words must begin the message
    ValueError("CUDA error: uncorrectable ECC error encountered"),
    FileNotFoundError(errno.ENOENT, "No such file"),
]
CASES = [
    *((kind(words), "environment") for words in OF_THE_DEVICE for kind in (RuntimeError, torch.AcceleratorError)),
    *((torch.AcceleratorError(words + ADVICE), "environment") for words in OF_THE_DEVICE),
    *((RuntimeError(words), "environment") for words in OF_A_LIBRARY),
    (torch.AcceleratorError("a word of a device that nobody has met"), "environment"),
    *((error, "cuda_oom") for error in CUDA_OOM),
    *((error, "host_oom") for error in HOST_OOM),
    *((error, "code") for error in A_BUG),
    (PermissionError("no errno"), "environment"),
    (OSError(errno.EROFS, "Read-only file system"), "environment"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full"),
]


@pytest.mark.parametrize(("error", "expected"), CASES, ids=[f"{str(e)[:60]}" for e, _ in CASES])
def test_a_failure_has_the_class_of_what_caused_it(error: BaseException, expected: str) -> None:
    assert classify(error) == expected
    assert is_of_the_machine(error) == (expected in ("environment", "cuda_oom", "host_oom"))


@pytest.mark.parametrize(("number", "expected"), [(2, "cuda_oom"), (700, "code"), (710, "code"), (214, "environment")])
def test_the_devices_own_number_decides_before_its_words(number: int, expected: str) -> None:
    error = torch.AcceleratorError("CUDA error: words of a later version")
    error.error_code = number  # type: ignore[attr-defined]
    assert classify(error) == expected


def test_an_error_that_tells_nothing_is_judged_by_what_it_was_raised_from() -> None:
    outer = ValueError("the batch failed")
    middle = RuntimeError("the layer failed")
    outer.__cause__, middle.__cause__ = (
        middle,
        torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
    )
    assert classify(outer) == "environment"
    middle.__cause__ = MemoryError()
    assert classify(outer) == "host_oom"
    middle.__cause__ = outer  # a ring must not hang
    assert classify(outer) == "code"
    # What the project itself says is the last word.
    told = DataError("x.png cannot be read")
    told.__cause__ = MemoryError()
    assert (classify(told), classify(MissingInput("x"))) == ("data", "blocked")
    assert not is_of_the_machine(told)


@pytest.mark.parametrize(
    ("error", "failure_class"),
    [
        (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered" + ADVICE), "environment"),
        (torch.AcceleratorError("CUDA error: out of memory" + ADVICE), "cuda_oom"),
    ],
)
def test_a_broken_gpu_is_recorded_with_its_node_and_the_run_is_not_blocked(
    error: Exception, failure_class: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **named: object) -> None:
        raise error

    monkeypatch.setattr("transfergrid.training.loop._forward_backward", broken)
    monkeypatch.setenv("SLURMD_NODENAME", "gpu-n7")
    asked = small_runs.request(tmp_path, "model=tinynet", "phase=scratch")
    run = small_runs.final_run(asked)
    assert job.carry_out(run, asked.runtime) == "failed"
    record = read_record(small_runs.paths_of(run, asked.runtime))
    assert record is not None and record.failure_class == failure_class and record.error is not None
    assert record.error.startswith(f"AcceleratorError: {str(error).split(chr(10))[0]}")
    assert record.error.endswith(" (on gpu-n7)") and "\n" not in record.error
    [planned] = make_plan([run.run_id], asked.runs, asked.runtime).runs
    assert planned.state == "run" and planned.why.startswith(f"failed before ({failure_class}): ")
