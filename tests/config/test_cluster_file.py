"""conf/cluster/<mylab>.yaml as a newcomer writes it: read as typed, or refused by file, key, value and form."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from transfergrid.config import compose
from transfergrid.config.cluster import (
    COLLIDES,
    SHORT,
    SITE_DEFAULTS,
    changed_cluster,
    checked_option,
    cluster_settings,
    plain,
)
from transfergrid.config.cluster_file import gigabytes, minutes
from transfergrid.config.folders import VARIABLE
from transfergrid.errors import ConfigError
from transfergrid.resources import UNLIMITED, ClusterSettings

Lab = Callable[..., ClusterSettings]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The settings of cluster=mylab whose file holds this text, with these arguments."""
    (tmp_path / "conf" / "cluster").mkdir(parents=True)
    for variable in SITE_DEFAULTS.values():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "conf"))

    def settings(text: str, *arguments: str) -> ClusterSettings:
        (tmp_path / "conf" / "cluster" / "mylab.yaml").write_text(f"name: mylab\nkind: slurm\n{text}")
        return cluster_settings(compose.compose_config(["cluster=mylab", *arguments]).cluster)

    return settings


# --------------------------------------------------------------------------------------------------------------- times
TIMES = {
    "30": 30,
    "30:00": 30,
    "1:30": 2,
    "8:00:00": 480,
    "08:00:00": 480,
    "0:50:00": 50,
    "1-00": 1440,
    "1-12:30": 2190,
    "1-00:00:00": 1440,
    "2-00:00:01": 2881,
    "UNLIMITED": UNLIMITED,
    "infinite": UNLIMITED,
    "eight": None,
    "8h": None,
    "1-": None,
    "1:2:3:4": None,
    "٣": None,
}


@pytest.mark.parametrize(("text", "expected"), TIMES.items())
def test_a_time_is_read_as_slurm_reads_it(text: str, expected: int | None) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize("text", [t for t, m in TIMES.items() if m is not None and (m > 3 or m == UNLIMITED)])
def test_a_time_means_the_same_in_a_file_in_by_phase_and_on_the_command_line(lab: Lab, text: str) -> None:
    """YAML 1.1 makes 28800 of 8:00:00."""
    expected = TIMES[text]
    assert lab(f"timeout_min: {text}\n").resources.timeout_min == expected
    assert lab("", f"cluster.timeout_min={text}").resources.timeout_min == expected
    assert lab(f"by_phase:\n  probe: {{timeout_min: {text}}}\n").of_phase("probe").timeout_min == expected
    typed = lab("", f"cluster.by_phase={{probe: {{timeout_min: {text}}}}}")
    assert typed.of_phase("probe").timeout_min == expected and typed.resources.timeout_min == 240


def test_no_time_is_asked_for_where_the_sites_own_is_wanted(lab: Lab) -> None:
    assert lab("timeout_min: null\n").resources.timeout_min is None
    assert "time" not in (settings := lab("", "cluster.timeout_min=null")).options(settings.resources)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("32G", 32.0), ("32GB", 32.0), ("1.5T", 1536.0), ("512M", 0.5), ("32 GiB", 32.0), ("32x", None), ("", None)],
)
def test_a_size_may_have_slurms_unit(text: str, expected: float | None) -> None:
    assert gigabytes(text) == expected


# --------------------------------------------------------------------------------------------------------------- names
@pytest.mark.parametrize("name", ["0123", "12e3", "3090", "yes", "no", "on", "0x1F", "1_000", "1:30", "true"])
def test_a_name_that_looks_like_a_number_stays_as_it_was_typed(lab: Lab, name: str) -> None:
    keys = ("partition", "account", "qos", "gpu_type")
    lines = "".join(f"{key}: {name}\n" for key in keys)
    settings = lab(f"{lines}by_phase: {{probe: {{account: {name}}}}}\n")
    asked = settings.resources
    assert (asked.partition, asked.account, asked.qos, asked.gpu_type) == (name,) * 4
    assert settings.of_phase("probe").account == name
    typed = lab("", *(f"cluster.{key}={name}" for key in keys)).resources
    assert (typed.partition, typed.account, typed.qos, typed.gpu_type) == (name,) * 4


def test_what_has_one_clear_meaning_is_taken(lab: Lab) -> None:
    settings = lab(
        "partition: [gpu, gpu-long]\nsetup: module load apptainer\nmem_gb: 32G\nstage_folders: yes\n"
        "sbatch: {hold: true, begin: 16:00, comment: 0123, gres: 'lscratch:10'}\n"
    )
    assert (settings.resources.partition, settings.setup) == ("gpu,gpu-long", ("module load apptainer",))
    assert settings.resources.mem_gb == 32.0 and settings.stage_folders
    assert settings.sbatch == {"hold": True, "begin": "16:00", "comment": "0123", "gres": "lscratch:10"}
    assert lab("", "cluster.partition=[gpu,gpu-long]").resources.partition == "gpu,gpu-long"


def test_one_file_may_build_on_another(lab: Lab) -> None:
    (Path(os.environ[VARIABLE]) / "cluster" / "base.yaml").write_text("account: vision\nmem_gb: 8\n")
    settings = lab("defaults: [base, _self_]\nmem_per_gpu_gb: 16\n")
    assert (settings.resources.account, settings.resources.mem_gb, settings.name) == ("vision", None, "mylab")


# -------------------------------------------------------------------------------------------------------------- errors
WRONG = [
    ("mem_gb: lots", "cluster.mem_gb=lots is not a number or null"),
    ("gpus: a100:1", "cluster.gpus=a100:1 is not a whole number; give gpus=1 and gpu_type=a100"),
    ("cpus: many", "cluster.cpus=many is not a whole number"),
    ("timeout_min: 8h", "cluster.timeout_min='8h' is not a time; give minutes as 480, or 8:00:00"),
    ("time: 30", "unknown key 'time'; did you mean 'cluster.timeout_min'?"),
    ("mem: 32G", "unknown key 'mem'; did you mean 'cluster.mem_gb'?"),
    ("gres: gpu:1", "unknown key 'gres'; did you mean 'cluster.gpus'? (with cluster.gpu_type)"),
    ("partitions: gpu", "unknown key 'partitions'; did you mean 'cluster.partition'?"),
    ("mem_gb: 4\nmem_per_cpu_gb: 2", "cluster.mem_gb=4 and cluster.mem_per_cpu_gb=2 both ask for memory; give one of"),
    ("partition: a\npartition: b", "'partition' is given twice"),
    ("partition: [gpu", "; a line is written key: value"),
    ("asked: [mem_gb]", "unknown key 'asked'"),
]


@pytest.mark.parametrize(("text", "told"), WRONG)
def test_an_error_names_the_file_the_key_the_value_and_the_allowed_form(lab: Lab, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        lab(f"{text}\n")
    message = str(refused.value)
    assert message.startswith(f"{os.environ[VARIABLE]}/cluster/mylab.yaml") and "\n" not in message
    assert told in message


# ------------------------------------------------------------------------------------------------------------- memory
def test_the_last_to_speak_of_memory_says_how_it_is_asked_for(lab: Lab) -> None:
    text = "mem_per_cpu_gb: 2\nby_phase: {extract: {mem_per_gpu_gb: 8}, probe: {mem_gb: 0}}\n"
    settings = lab(text)
    asked = {phase: settings.of_phase(phase).memory_options() for phase in ("scratch", "extract", "probe")}
    assert asked == {"scratch": {"mem-per-cpu": "2048M"}, "extract": {"mem-per-gpu": "8192M"}, "probe": {"mem": "0"}}
    assert lab(text, "cluster.mem_gb=64").resources.memory_options() == {"mem": "65536M"}
    stored = plain(compose.compose_config(["cluster=mylab"]).cluster)
    retried = cluster_settings(changed_cluster(stored, ["cluster.mem_gb=64"]))  # as status says after an OOM
    assert retried.resources.memory_options() == {"mem": "65536M"}
    assert lab("mem_gb: null\n").resources.memory_options() == {}


def test_only_what_nobody_asked_for_is_a_default(lab: Lab) -> None:
    assert lab("timeout_min: 240\n").resources.defaults == {"cpus", "mem_gb"}  # asked for, though equal to the default
    assert lab("", "cluster.cpus=4").resources.defaults == {"mem_gb", "timeout_min"}
    assert lab("mem_per_cpu_gb: 2\n").resources.defaults == {"cpus", "timeout_min"}
    assert lab("by_phase: {probe: {timeout_min: 60}}\n").of_phase("probe").defaults == {"cpus", "mem_gb"}


# ------------------------------------------------------------------------------------------------------ cluster.sbatch
@pytest.mark.parametrize("option", [*COLLIDES, *(s for s, long in SHORT.items() if long in COLLIDES)])
@pytest.mark.parametrize("spelled", [str, lambda option: option.replace("-", "_")], ids=["dashes", "underscores"])
def test_whatever_collides_with_a_request_of_ours_is_refused(option: str, spelled: Callable[[str], str]) -> None:
    with pytest.raises(ConfigError, match="^cluster.sbatch: ") as refused:
        checked_option(spelled(option), "2", gpus=False)
    assert any(text in str(refused.value) for text in ("leave it out", "has a key of its own, cluster."))


@pytest.mark.parametrize("option", ["gpus-per", "mem-per-c", "ntasks-per-n", "cpus-per-g", "arr", "depend"])
def test_sbatch_takes_the_beginning_of_an_option_for_the_option(option: str) -> None:
    with pytest.raises(ConfigError, match="^cluster.sbatch: "):
        checked_option(option, "2", gpus=False)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("comment", "lab1", ("comment", "lab1")),
        ("H", True, ("hold", True)),
        ("mail_type", "END", ("mail-type", "END")),
        ("gres", "lscratch:0", ("gres", "lscratch:0")),
        ("mem-bind", "local", ("mem-bind", "local")),
        ("gpu-bind", "none", ("gpu-bind", "none")),
        ("time-min", "60", ("time-min", "60")),
        ("nice", 5, ("nice", "5")),
    ],
)
def test_what_collides_with_nothing_is_passed_on(
    key: str, value: str | bool | int, expected: tuple[str, object]
) -> None:
    assert checked_option(key, value, gpus=True) == expected


@pytest.mark.parametrize("gres", ["gpu:1", "lscratch:1,gpu:a100:2", "gpu", "gres/gpu:1", "gres:gpu:1"])
def test_a_gres_of_the_users_own_asks_for_no_gpus_beside_ours(gres: str) -> None:
    with pytest.raises(ConfigError, match="holds GPUs; cluster.gpus= and cluster.gpu_type= ask for them"):
        checked_option("gres", gres, gpus=True)
    assert checked_option("gres", gres, gpus=False) == ("gres", gres)  # of a site where jobs ask for none otherwise
