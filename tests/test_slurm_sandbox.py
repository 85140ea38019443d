"""The throwaway SLURM itself: that it is a real one, that its options mean what they say, and that it leaves nothing."""

from __future__ import annotations

import pytest
from sandbox import Sandbox


@pytest.mark.slurm
def test_a_job_sees_its_gpu(slurm: Sandbox) -> None:
    slurm.run(
        "sbatch", "--wait", f"--output={slurm.dir}/gpu.out", "--gres=gpu:1", "--wrap=echo gpu $CUDA_VISIBLE_DEVICES"
    )
    assert (slurm.dir / "gpu.out").read_text() in ("gpu 0\n", "gpu 1\n")
