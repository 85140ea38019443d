"""`cluster.*` of a command line -> what is asked of a cluster; what no SLURM could take is refused in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from transfergrid.config.cluster import SITE_DEFAULTS, changed_cluster, cluster_settings, plain
from transfergrid.config.compose import parse_overrides, set_overrides
from transfergrid.config.schema import ClusterConfig
from transfergrid.errors import ConfigError
from transfergrid.resources import ClusterSettings, Resources

ROOT = Path(__file__).resolve().parents[2]
DEFAULTS = ClusterSettings(name="slurm", kind="slurm")


@pytest.fixture(autouse=True)
def no_site_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in SITE_DEFAULTS.values():
        monkeypatch.delenv(variable, raising=False)


def settings(*arguments: str, kind: str = "slurm") -> ClusterSettings:
    """As `cluster=slurm` and these arguments of a command line give them."""
    config = OmegaConf.create({"cluster": OmegaConf.structured(ClusterConfig(name=kind, kind=kind))})
    set_overrides(config, parse_overrides(arguments))
    return cluster_settings(config.cluster)


# ------------------------------------------------------------------------------------------------------------- taken
def test_without_arguments_every_default_is_that_of_the_dataclass() -> None:
    """A default stands in one place of the library and in one of its schema: they are equal."""
    assert settings() == DEFAULTS


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["cluster.partition='gpu,long'"], replace(DEFAULTS, resources=Resources(partition="gpu,long"))),
        (
            ["cluster.constraint='[rack1|rack2]&a100'"],
            replace(DEFAULTS, resources=Resources(constraint="[rack1|rack2]&a100")),
        ),
        (["cluster.gpus=0", "cluster.cpus=2"], replace(DEFAULTS, resources=Resources(gpus=0, cpus=2))),
        (["cluster.gpu_type=a100.80gb"], replace(DEFAULTS, resources=Resources(gpu_type="a100.80gb"))),
        (
            ["cluster.mem_gb=1.5", "cluster.timeout_min=4"],
            replace(DEFAULTS, resources=Resources(mem_gb=1.5, timeout_min=4)),
        ),
        (
            ["cluster.account=lab", "cluster.qos=high"],
            replace(DEFAULTS, resources=Resources(account="lab", qos="high")),
        ),
        (["cluster.exclude='n[1-3],n7'"], replace(DEFAULTS, exclude="n[1-3],n7")),
        (["cluster.finish_partition=cpu", "cluster.wckey=w"], replace(DEFAULTS, finish_partition="cpu", wckey="w")),
        (
            ["cluster.setup=['module load cuda','source env']"],
            replace(DEFAULTS, setup=("module load cuda", "source env")),
        ),
        (
            ["cluster.python='apptainer exec --nv tg.sif python'"],
            replace(DEFAULTS, python="apptainer exec --nv tg.sif python"),
        ),
        (
            ["cluster.sbatch={mail-type: END, hold: true, nice: 5}"],
            replace(DEFAULTS, sbatch={"mail-type": "END", "hold": True, "nice": "5"}),
        ),
        (
            ["cluster.stage_folders=true", "cluster.scratch_dir='$TMPDIR/tg'"],
            replace(DEFAULTS, stage_folders=True, scratch_dir="$TMPDIR/tg"),
        ),
        (
            ["cluster.runs_per_job=8", "cluster.array_parallelism=3"],
            replace(DEFAULTS, runs_per_job=8, array_parallelism=3),
        ),
        (["cluster.max_requeues=0", "cluster.poll_s=2"], replace(DEFAULTS, max_requeues=0, poll_s=2.0)),
    ],
    ids=lambda value: value[0].partition("=")[0] if isinstance(value, list) else "",
)
def test_what_is_given_replaces_the_default(arguments: list[str], expected: ClusterSettings) -> None:
    assert settings(*arguments) == expected


def test_a_phase_gets_what_by_phase_gives_it_and_all_else_from_the_cluster() -> None:
    asked = settings(
        "cluster.partition=gpu",
        "cluster.mem_gb=8",
        "cluster.by_phase={extract: {mem_gb: 64, gpus: 0}, finetune: {partition: null, timeout_min: 600}}",
    )
    common = Resources(partition="gpu", mem_gb=8)
    assert asked.resources == common == asked.of_phase("probe") == asked.of_phase("scratch")
    assert asked.of_phase("extract") == replace(common, mem_gb=64, gpus=0)
    assert asked.of_phase("finetune") == replace(common, partition=None, timeout_min=600)


# ----------------------------------------------------------------------------------------------------------- refused
REFUSED = [
    (
        "cluster.gpus=2",
        "cluster.gpus=2: a run computes on one GPU, the other one would be idle; give cluster.gpus=1; for a whole node:"
        " cluster.sbatch={exclusive: true}",
    ),
    (
        "cluster.by_phase={probe: {gpus: 4}}",
        "cluster.by_phase.probe.gpus=4: a run computes on one GPU, the other 3 would be idle; give"
        " cluster.by_phase.probe.gpus=1; for a whole node: cluster.sbatch={exclusive: true}",
    ),
    ("cluster.gpus=-1", "cluster.gpus=-1 is out of range; it must be at least 0 and at most 64"),
    ("cluster.gpus=65", "cluster.gpus=65 is out of range"),
    ("cluster.gpus=1.5", "cluster.gpus=1.5 is not a whole number"),
    ("cluster.gpus=two", "cluster.gpus=two is not a whole number"),
    ("cluster.cpus=0", "cluster.cpus=0 is out of range; it must be at least 1"),
    ("cluster.mem_gb=0.05", "cluster.mem_gb=0.05 is out of range; it must be at least 0.1"),
    ("cluster.mem_gb=nan", "cluster.mem_gb=nan is out of range"),
    ("cluster.mem_gb=inf", "cluster.mem_gb=inf is out of range"),
    ("cluster.mem_gb=16X", "cluster.mem_gb=16X is not a number or null"),
    (
        "cluster.by_phase={probe: {mem_gb: 4, mem_per_gpu_gb: 2}}",
        "cluster.by_phase.probe.mem_gb=4 and cluster.by_phase.probe.mem_per_gpu_gb=2 both ask for memory; give one of",
    ),
    (
        "cluster.gpu_request=gpus-per-task",
        "cluster.gpu_request='gpus-per-task' is not one of auto, gpus-per-node, gres",
    ),
    ("cluster.gpus='a100:1'", "cluster.gpus=a100:1 is not a whole number; give gpus=1 and gpu_type=a100"),
    ("cluster.partition=gpu,gpu-long", "'cluster.partition=gpu,gpu-long' gives several values where one is needed; as"),
    ("cluster.time=30", "unknown key 'cluster.time'; did you mean 'cluster.timeout_min'?"),
    ("cluster.mem=30", "unknown key 'cluster.mem'; did you mean 'cluster.mem_gb'?"),
    ("cluster.gres='gpu:1'", "unknown key 'cluster.gres'; did you mean 'cluster.gpus'? (with cluster.gpu_type)"),
    ("cluster.by_phase={probe: {time: 30}}", "cluster.by_phase.probe: unknown key 'time'; did you mean 'timeout_min'?"),
    (
        "cluster.by_phase={probe: {qos: 12e3}}",
        "cluster.by_phase.probe.qos=12000.0 was read as a float; write that name",
    ),
    ("cluster.asked=[mem_gb]", "unknown key 'cluster.asked'"),
    ("cluster.timeout_min=0", "cluster.timeout_min=0 is out of range; it must be at least 1"),
    ("cluster.timeout_min='4 hours'", "cluster.timeout_min='4 hours' is not a time; give minutes as 480, or 8:00:00"),
    ("cluster.timeout_min=1:30", "cluster.timeout_min=2 leaves a job no time"),  # minutes:seconds, as SLURM reads it
    ("cluster.num_threads=-1", "cluster.num_threads=-1 is out of range"),
    ("cluster.array_parallelism=-1", "cluster.array_parallelism=-1 is out of range"),
    ("cluster.runs_per_job=0", "cluster.runs_per_job=0 is out of range; it must be at least 1 and at most 1000"),
    ("cluster.runs_per_job=1001", "cluster.runs_per_job=1001 is out of range"),
    ("cluster.signal_delay_s=9", "cluster.signal_delay_s=9 is out of range; it must be at least 10"),
    ("cluster.max_requeues=-1", "cluster.max_requeues=-1 is out of range"),
    ("cluster.poll_s=0", "cluster.poll_s=0.0 is out of range; it must be at least 0.5"),
    ("cluster.stage_folders=maybe", "cluster.stage_folders=maybe is not true or false"),
    ("cluster.partition=", "cluster.partition='' is not a name that SLURM takes"),
    ("cluster.partition='gpu --uid=0'", "cluster.partition='gpu --uid=0' is not a name that SLURM takes; one word"),
    ("cluster.finish_partition='a b'", "cluster.finish_partition='a b' is not a name"),
    ("cluster.account='lab;id'", "cluster.account='lab;id' is not a name"),
    ("cluster.qos='$HOME'", "cluster.qos='$HOME' is not a name"),
    ("cluster.constraint='`id`'", "cluster.constraint='`id`' is not a name"),
    ("cluster.gpu_type='a\"100'", "cluster.gpu_type='a\"100' is not a name"),
    ("cluster.wckey='a b'", "cluster.wckey='a b' is not a name"),
    ("cluster.exclude='n1 n2'", "cluster.exclude='n1 n2' is not a name"),
    ("cluster.scratch_dir=scratch", "cluster.scratch_dir='scratch' is no folder of a node"),
    ("cluster.scratch_dir=", "cluster.scratch_dir='' is no folder of a node"),
    (
        "cluster.sbatch={--hold: true}",
        "cluster.sbatch: '--hold' is not an option of sbatch; write it as {mail-type: END}",
    ),
    ("cluster.sbatch={Mail: END}", "cluster.sbatch: 'Mail' is not an option"),
    ("cluster.sbatch={mail-type: 'a b'}", "cluster.sbatch.mail-type='a b' is not a name"),
    ("cluster.sbatch={mail-type: [END]}", "cluster.sbatch.mail-type="),
    ("cluster.sbatch={hold: false}", "cluster.sbatch.hold=False is no value of an option; leave it out"),
    ("cluster.sbatch={hold: null}", "cluster.sbatch.hold=None is no value of an option; leave it out"),
    ("cluster.sbatch={dependency: 'afterok:1'}", "cluster.sbatch: 'dependency' is set by the launcher itself"),
    ("cluster.sbatch={job-nam: mine}", "cluster.sbatch: 'job-nam' is set by the launcher itself"),
    (
        "cluster.sbatch={clusters: beta}",
        "cluster.sbatch: 'clusters' would be followed by sbatch alone; export SLURM_CLUSTERS=beta",
    ),
    (
        "cluster.sbatch={M: beta}",
        "cluster.sbatch: 'M' (clusters) would be followed by sbatch alone; export SLURM_CLUSTERS=beta",
    ),
    ("cluster.sbatch={signal: 'USR1@10'}", "cluster.sbatch: 'signal' is set by the launcher itself; leave it out"),
    ("cluster.sbatch={time: 10}", "cluster.sbatch: 'time' has a key of its own, cluster.timeout_min="),
    ("cluster.sbatch={mem: 10G}", "cluster.sbatch: 'mem' has a key of its own, cluster.mem_gb="),
    ("cluster.sbatch={partition: gpu}", "cluster.sbatch: 'partition' has a key of its own, cluster.partition="),
    ("cluster.by_phase={probes: {cpus: 1}}", "cluster.by_phase: unknown phase 'probes'; did you mean 'probe'?"),
    (
        "cluster.by_phase={probe: 4}",
        "cluster.by_phase.probe=4 is not a dictionary; it is written {probe: {mem_gb: 32}}",
    ),
    ("cluster.by_phase={probe: {memgb: 4}}", "cluster.by_phase.probe: unknown key 'memgb'; did you mean 'mem_gb'?"),
    ("cluster.by_phase={probe: {setup: x}}", "cluster.by_phase.probe: unknown key 'setup'; known: partition, account"),
    ("cluster.by_phase={probe: {gpus: true}}", "cluster.by_phase.probe.gpus=True is not a whole number"),
    ("cluster.by_phase={probe: {cpus: 1.5}}", "cluster.by_phase.probe.cpus=1.5 is not a whole number"),
    ("cluster.by_phase={probe: {cpus: null}}", "cluster.by_phase.probe.cpus=None is not a whole number"),
    ("cluster.by_phase={probe: {mem_gb: 0.01}}", "cluster.by_phase.probe.mem_gb=0.01 is out of range"),
    ("cluster.by_phase={probe: {qos: 'a b'}}", "cluster.by_phase.probe.qos='a b' is not a name"),
    ("cluster.by_phase={probe: {timeout_min: 2}}", "cluster.by_phase.probe.timeout_min=2 leaves a job no time"),
    ("cluster.kind=slurm", "cluster.kind= cannot be set on its own"),
    ("cluster.partitions=gpu", "unknown key 'cluster.partitions'; did you mean 'cluster.partition'?"),
    ("cluster.by_phase=4", "cluster.by_phase"),
    ("cluster.sbatch=hold", "cluster.sbatch"),
]


@pytest.mark.parametrize(("argument", "told"), REFUSED, ids=[argument for argument, _ in REFUSED])
def test_a_value_that_no_slurm_could_take_is_refused_in_one_line_that_names_its_key(argument: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        settings(argument)
    assert str(refused.value).startswith(told) and "\n" not in str(refused.value)


@pytest.mark.parametrize("lines", ["module load a\nrm -rf b", "a\0b"])
def test_a_line_of_setup_is_one_line(lines: str) -> None:
    node = OmegaConf.structured(ClusterConfig)
    node.setup = ["true", lines]
    with pytest.raises(ConfigError, match="^cluster.setup: one line of shell each; give a list$"):
        cluster_settings(node)


@pytest.mark.parametrize("key", ["python", "scratch_dir"])
def test_what_reaches_a_job_script_is_one_line(key: str) -> None:
    node = OmegaConf.structured(ClusterConfig)
    node[key] = "/tmp\n#SBATCH --uid=0"
    with pytest.raises(ConfigError, match=f"^cluster.{key}="):
        cluster_settings(node)


@pytest.mark.parametrize(
    ("timeout_min", "delay_s", "fits"),
    [
        (3, 120, False),
        (4, 120, True),
        (2, 10, False),
        (3, 60, True),
        (3, 61, False),
        (61, 3600, False),
        (62, 3600, True),
    ],
)
def test_a_job_has_time_to_start_to_work_and_to_save(timeout_min: int, delay_s: int, fits: bool) -> None:
    """A minute to start, and the signal may come a minute early."""
    arguments = [f"cluster.timeout_min={timeout_min}", f"cluster.signal_delay_s={delay_s}"]
    if fits:
        assert settings(*arguments).resources.timeout_min == timeout_min
        return
    with pytest.raises(ConfigError, match=f"^cluster.timeout_min={timeout_min} leaves a job no time: ") as refused:
        settings(*arguments)
    enough = int(str(refused.value).rpartition("give cluster.timeout_min=")[2].split()[0])
    assert settings(f"cluster.timeout_min={enough}", arguments[1]).resources.timeout_min == enough
    with pytest.raises(ConfigError):
        settings(f"cluster.timeout_min={enough - 1}", arguments[1])


def test_a_script_says_it_on_one_line_and_ends_with_code_2_before_anything_is_written(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "launch_grid.py"), "cluster=slurm", "cluster.timeout_min=1"],
        cwd=tmp_path,
        env=os.environ | {"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: cluster.timeout_min=1 leaves a job no time")
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------- defaults of the site
def test_what_a_user_sets_for_all_jobs_of_a_cluster_is_the_default_and_an_argument_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for variable in SITE_DEFAULTS.values():
        monkeypatch.setenv(variable, variable.lower())
    asked = settings("cluster.qos=mine")
    expected = Resources(
        partition="sbatch_partition", account="sbatch_account", qos="mine", constraint="sbatch_constraint"
    )
    assert (asked.resources, asked.wckey) == (expected, "sbatch_wckey")
    assert settings(kind="local") == ClusterSettings()


def test_an_empty_variable_is_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in SITE_DEFAULTS.values():
        monkeypatch.setenv(variable, "")
    assert settings() == DEFAULTS


# -------------------------------------------------------------------------------------------------------------- retry
def test_a_launchs_settings_come_back_from_its_payload_with_those_changed_that_a_retry_names() -> None:
    launched = changed_cluster(
        plain(OmegaConf.structured(ClusterConfig)) | {"name": "slurm", "kind": "slurm"},
        [
            "cluster.mem_gb=8",
            "cluster.sbatch={mail-type: END, hold: true}",
            "cluster.by_phase={probe: {cpus: 1}, extract: {gpus: 0}}",
            "cluster.setup=['module load a','b']",
        ],
    )
    before, stored = cluster_settings(launched), plain(launched)
    assert cluster_settings(changed_cluster(stored, [])) == before
    after = cluster_settings(changed_cluster(stored, ["cluster.mem_gb=64", "cluster.by_phase={probe: {cpus: 3}}"]))
    common = replace(before.resources, mem_gb=64)
    assert after == replace(before, resources=common, by_phase={"probe": replace(common, cpus=3)})


def test_a_retry_changes_cluster_keys_only() -> None:
    stored = plain(OmegaConf.structured(ClusterConfig))
    with pytest.raises(ConfigError, match="^phase.probe.epochs= cannot be changed for a retry; cluster.* can"):
        changed_cluster(stored, ["phase.probe.epochs=2"])
