"""What jobs/doctor.py says of GPUs: their driver, memory and arithmetic."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from pretended_cuda import pretended_cuda

from transfergrid.doctor import node_findings, nodecheck
from transfergrid.doctor.checks import Check
from transfergrid.doctor.nodecheck_jobs import ProbeAnswer
from transfergrid.errors import MachineError
from transfergrid.training import usage

WELL: dict[str, Any] = {
    "names": ["A100", "T4"],
    "problem": None,
    "driver": "580.65.06",
    "cudnn": 91002,
    "without_bf16": [],
    "free_gib": [70.2, 14.6],
    "total_gib": [79.3, 15.0],
}


def judged(**finding: Any) -> Check:
    answer = ProbeAnswer(findings={"gpu": WELL | finding})
    return node_findings.check_gpu(answer, device="auto", gpus=1, on_slurm=True)


def test_names_memory_driver_and_cudnn_are_told() -> None:
    check = judged()
    expected = "A100 (70 of 79 GiB free), T4 (15 of 15 GiB free); driver 580.65.06; cuDNN 91002"
    assert (check.ok, check.message) == (True, expected)


def test_a_gpu_that_only_emulates_bfloat16_is_told_with_what_is_faster_there() -> None:
    check = judged(without_bf16=["T4"])
    assert check.ok is True
    assert check.message.endswith("; T4 only emulates bfloat16, so phase.<name>.precision=fp32 is faster there")


def test_a_gpu_that_others_have_filled_is_not_fit() -> None:
    check = judged(free_gib=[70.2, 0.4])
    assert (check.ok, check.remedy) == (False, "end other programs on it: 2 GiB are needed")


def test_a_probe_multiplies_and_convolves_on_each_gpu_and_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_cuda(monkeypatch) as device:
        monkeypatch.setattr(usage, "driver_version", lambda: "580.65.06")
        found = nodecheck._gpu()
        assert device.launches >= 2  # in float32 and in bfloat16
    assert json.loads(json.dumps(found)) == found
    expected = {"names": ["pretended"], "problem": None, "driver": "580.65.06", "without_bf16": []}
    assert found == expected | {"free_gib": [70.0], "total_gib": [80.0], "cudnn": found["cudnn"]}


def test_a_gpu_that_convolves_wrongly_is_an_error_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_cuda(monkeypatch):
        nodecheck._convolve(torch.device("cuda", 0), torch.float32, 1e-2)
        with pytest.raises(MachineError, match="^pretended: a convolution in torch.bfloat16 is off by 0.00"):
            nodecheck._convolve(torch.device("cuda", 0), torch.bfloat16, 1e-9)


def test_a_driver_that_torch_cannot_use_is_named_beside_torchs_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from transfergrid.training import device

    monkeypatch.setattr(device, "gpus", lambda: device.Gpus((), "the driver is too old"))
    monkeypatch.setattr(usage, "driver_version", lambda: "470.1")
    with pytest.raises(MachineError, match=r"^the driver is too old \(driver 470.1\)$"):
        nodecheck._gpu()


def test_where_there_is_no_driver_there_is_no_version() -> None:
    """With the real pynvml."""
    version = usage.driver_version()
    assert version is None or version[0].isdigit()
