"""Defaults of ours yield to what a partition has, one line says so; what was asked for is refused where impossible."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from cluster_cases import executable

from transfergrid.cluster import slurm
from transfergrid.cluster.limits import Limits, NodeShape, Partition, gpus_of
from transfergrid.cluster.ownership import Here
from transfergrid.cluster.possible import assert_possible, fitted
from transfergrid.cluster.slurm import SlurmRefused
from transfergrid.errors import ConfigError
from transfergrid.resources import UNLIMITED, Resources

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = Resources(partition="p", defaults=frozenset({"cpus", "mem_gb", "timeout_min"}))


def cluster(*, time_min: int | None = None, cpus: int = 8, mem_mib: int = 64_000, gres: str = "gpu:2") -> Limits:
    shape = NodeShape(count=1, usable=1, cpus=cpus, mem_mib=mem_mib, gpus_by_type=gpus_of(gres))
    partition = Partition(name="p", shapes=(shape,), max_time_min=time_min)
    return Limits(here=Here("c"), max_array_size=1001, max_jobs=None, partitions={"p": partition})


@pytest.mark.parametrize(
    ("limits", "lowered", "told"),
    [
        (cluster(), {}, None),
        (cluster(time_min=60), {"timeout_min": 60}, "cluster.timeout_min=60 (default 240)"),
        (cluster(cpus=2), {"cpus": 2}, "cluster.cpus=2 (default 4)"),
        (cluster(mem_mib=4096), {"mem_gb": 4.0}, "cluster.mem_gb=4 (default 16)"),
        (cluster(mem_mib=1), {"mem_gb": None}, "cluster.mem_gb=null (default 16)"),
    ],
)
def test_a_default_becomes_what_the_partition_has(limits: Limits, lowered: dict[str, int], told: str | None) -> None:
    asked, line = fitted(DEFAULT, limits, what="jobs")
    assert asked == replace(DEFAULT, **lowered)  # type: ignore[arg-type]
    has = "all that partition p has"
    has += "; nobody has told SLURM what memory its nodes have" if asked.mem_gb is None else ""
    assert line == (None if told is None else f"jobs: jobs ask for {told}, {has}")
    assert_possible(asked, limits, what="jobs")


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        (cluster(time_min=60), "cluster.timeout_min=240 is more than partition p ever gives; give"),
        (cluster(cpus=2), "cluster.cpus=4 is more than any node of partition p has; give cluster.cpus=2 or less"),
        (cluster(mem_mib=4096), "cluster.mem_gb=16 is more than any node of partition p has; give cluster.mem_gb=4"),
    ],
)
def test_what_was_asked_for_is_refused_where_it_is_impossible(limits: Limits, told: str) -> None:
    asked = replace(DEFAULT, defaults=frozenset())
    assert fitted(asked, limits, what="jobs") == (asked, None)
    with pytest.raises(ConfigError, match=told):
        assert_possible(asked, limits, what="jobs")


def test_no_end_is_more_than_a_partition_with_one_gives_and_the_sites_own_time_never_is() -> None:
    limits = cluster(time_min=60)
    with pytest.raises(ConfigError, match="cluster.timeout_min=UNLIMITED is more than partition p ever gives"):
        assert_possible(replace(DEFAULT, timeout_min=UNLIMITED), limits, what="jobs")
    assert_possible(replace(DEFAULT, timeout_min=None), limits, what="jobs")
    assert_possible(replace(DEFAULT, timeout_min=UNLIMITED), cluster(), what="jobs")


@pytest.mark.parametrize("mem_gb", [0, None, 16.0])
def test_memory_is_not_checked_where_the_site_has_not_told_slurm_of_it(mem_gb: float | None) -> None:
    assert_possible(replace(DEFAULT, mem_gb=mem_gb, defaults=frozenset()), cluster(mem_mib=1), what="jobs")


@pytest.mark.parametrize(
    ("each", "told"),
    [
        ({"mem_per_cpu_gb": 16.0}, "cluster.mem_per_cpu_gb=16 makes 64 GiB, and no node of partition p has more"),
        ({"mem_per_gpu_gb": 63.0}, "cluster.mem_per_gpu_gb=63 makes 63 GiB, and no node of partition p has more"),
    ],
)
def test_memory_by_cpu_or_gpu_counts_by_what_it_makes(each: dict[str, float], told: str) -> None:
    asked = replace(DEFAULT, mem_gb=None, mem_per_cpu_gb=each.get("mem_per_cpu_gb"), defaults=frozenset())
    asked = replace(asked, mem_per_gpu_gb=each.get("mem_per_gpu_gb"))
    with pytest.raises(ConfigError, match=told):
        assert_possible(asked, cluster(mem_mib=62_000), what="jobs")
    assert_possible(asked, cluster(mem_mib=66_000), what="jobs")


def test_a_gpu_type_may_be_a_number() -> None:
    assert gpus_of("gpu:3090:2(S:0-1),gpu:4090:1,gpu:a100:4,gpu:2") == {"3090": 2, "4090": 1, "a100": 4, "": 2}
    assert_possible(replace(DEFAULT, gpu_type="3090", gpus=2), cluster(gres="gpu:3090:2"), what="jobs")
    with pytest.raises(ConfigError, match="cluster.gpus=3 is more than any node"):
        assert_possible(replace(DEFAULT, gpu_type="3090", gpus=3), cluster(gres="gpu:3090:2"), what="jobs")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("sbatch: error: allocation failure: Requested reservation is invalid", "Requested reservation is invalid"),
        ("sbatch: error: this site wants --mem-per-cpu, not --mem", "this site wants --mem-per-cpu, not --mem"),
        ("sbatch: fatal: --mem, --mem-per-cpu, and --mem-per-gpu are mutually exclusive.", "fatal: --mem, --mem-per"),
        ("", "sbatch ends with code 3"),
    ],
)
def test_every_refusal_of_a_question_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, told: str
) -> None:
    executable(tmp_path / "sbatch", f'echo "{said}" >&2; exit 3' if said else "exit 3")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(SlurmRefused) as refused:
        slurm.test_only([])
    assert str(refused.value).startswith(told)


@pytest.mark.parametrize("script", ["launch_grid", "run_phase"])
def test_a_job_script_that_is_sent_from_elsewhere_says_how_to_send_it(tmp_path: Path, script: str) -> None:
    """SLURM runs a copy of it, in the folder where sbatch was called."""
    done = subprocess.run(
        ["bash", str(ROOT / "slurm" / f"{script}.sbatch")],
        env={"PATH": "/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    told = f"error: {tmp_path} is not the folder of transfergrid; send the job from there, or export"
    assert done.returncode == 2 and done.stderr.strip() == (
        f"{told} TRANSFERGRID_HOME=FOLDER, or TRANSFERGRID_PYTHON=PYTHON, or put transfergrid on the PATH"
    )
