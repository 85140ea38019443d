"""The command line as a newcomer meets it: help, near misses, shared keys, lists, the printed configuration."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from transfergrid.config import load_doctor, load_grid, load_run
from transfergrid.config.arguments import SHARED, parse, takes
from transfergrid.config.catalog import rows_of
from transfergrid.config.compose import compose_config
from transfergrid.config.keys import keys_of
from transfergrid.config.predict import PredictKeys
from transfergrid.config.printed import printed_grid, printed_run
from transfergrid.config.report import ReportKeys, SyncRequest, parse_report, parse_sync
from transfergrid.config.schema import GROUPS, KEYS, Config
from transfergrid.config.spelling import hydra_value
from transfergrid.config.status import StatusRequest, parse_status
from transfergrid.errors import ConfigError
from transfergrid.paths import VERBS
from transfergrid.specs import FinetuneSettings, ProbeSettings, ScratchSettings

ROOT = Path(__file__).resolve().parents[2]
FIXED = ("phase.name", "dataset.kind", "cluster.name", "cluster.kind", "grid.study")
GRID_IDS = json.loads(Path(__file__).with_name("grid_ids.json").read_text())
READ_WITHOUT_HYDRA = {"status": StatusRequest, "report": ReportKeys, "sync": SyncRequest, "predict": PredictKeys}


def answer(
    verb: str, *arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int = 100
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command, in this process."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.argv", [f"transfergrid {verb}", *arguments])
    code = importlib.import_module(f"transfergrid.cli.{VERBS[verb]}").main()
    written = capsys.readouterr()
    return code, written.out, written.err


# ---------------------------------------------------------------------------------------------------------------- help
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("word", ["--help", "-h", "help"])
def test_help_is_one_screen_with_examples_keys_and_exit_codes(
    verb: str, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, err = answer(verb, word, monkeypatch=monkeypatch, capsys=capsys)
    lines = text.splitlines()
    assert (code, err) == (0, "") and "\x1b" not in text
    assert len(lines) <= 45 and max(map(len, lines)) <= 100
    assert lines[0].startswith("usage: python jobs/") and lines[-1].startswith("exit codes: 0 completed, 1 something")
    examples = lines[lines.index("examples:") + 1 : lines.index("keys, with their defaults:") - 1]
    assert len(examples) >= 2 and all(line.startswith("  python jobs/") for line in examples)
    assert any(line.startswith("  python jobs/") and line.find("--help all") > 0 for line in lines)


def test_a_launch_shows_five_examples_and_the_keys_that_people_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, text, _ = answer("launch", "--help", monkeypatch=monkeypatch, capsys=capsys)
    shown = re.findall(r"^  ([a-z0-9_.]+)=", text, re.MULTILINE)
    assert 18 <= len(shown) <= 24 and {"grid", "grid.models", "cluster", "store.dir", "dry_run", "device"} <= {*shown}
    assert text.count("\n  python jobs/launch_grid.py") == 7  # five examples, two ways to see more


@pytest.mark.parametrize(
    ("topic", "line"),
    [
        ("phase.finetune.optimizer", "phase.finetune.optimizer=sgd  the optimizer (sgd | adam | adamw)"),
        ("phase.finetune.lr", "phase.finetune.lr=0.01  learning rate of the last group of the trunk (above 0 to 100)"),
        ("Phase.Finetune.LR.", "phase.finetune.lr=0.01  learning rate of the last group of the trunk (above 0 to 100)"),
        ("device", "device=auto  auto = the GPU where there is one (auto | cpu | cuda)"),
        (
            "cluster.mem_gb",
            "cluster.mem_gb=16  memory per job; 0 = all of the node; null = not asked (0.1 to 16384 GiB)",
        ),
        (
            "phase.scratch.epochs",
            "phase.scratch.epochs=null  passes over the training images;"
            " null = 30, more where images are few (1 or more)",
        ),
        (
            "phase.probe.select_by",
            "phase.probe.select_by=null  the score on val that chooses; null = as select_by= says (accuracy |"
            " balanced_accuracy | macro_f1)",
        ),
    ],
)
def test_help_on_a_key_names_its_default_choices_range_and_unit(
    topic: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["--help", topic], [f"--help={topic}"]):
        code, text, _ = answer("launch", *arguments, monkeypatch=monkeypatch, capsys=capsys)
        assert (code, " ".join(text.split())) == (0, line.replace("  ", " "))


def test_help_on_a_group_shows_all_its_keys_and_on_a_last_part_every_key_that_has_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, text, _ = answer("launch", "--help", "phase.finetune", monkeypatch=monkeypatch, capsys=capsys, columns=60)
    shown = re.findall(r"^  ([a-z0-9_.]+)=", text, re.MULTILINE)
    assert shown == [f"phase.finetune.{f.name}" for f in fields(FinetuneSettings)]
    assert max(map(len, text.splitlines())) <= 60
    _, text, _ = answer("launch", "--help", "stem_lr", monkeypatch=monkeypatch, capsys=capsys)
    assert text.startswith("  phase.finetune.stem_lr=0.001 ")


def test_help_all_shows_every_key_that_can_be_set_and_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: set[str] = set()
    for verb in ("launch", "run", "doctor"):
        _, text, _ = answer(verb, "--help", "all", monkeypatch=monkeypatch, capsys=capsys)
        shown |= {*re.findall(r"^  ([a-z0-9_.]+)=", text, re.MULTILINE)}
    assert shown == {*KEYS, *GROUPS, "wait_s"} - {*FIXED}


@pytest.mark.parametrize(
    ("topic", "told"),
    [
        ("phase.fintune", "no key begins with 'phase.fintune'; did you mean --help phase.finetune?"),
        ("optimiser", "no key begins with 'optimiser'; did you mean --help phase.scratch.optimizer?"),
        ("xyzzy", "no key begins with 'xyzzy'; --help all shows every key"),
        ("phase.name", "no key begins with 'phase.name' that can be set; choose it as phase=NAME"),
        ("grid.study", "no key begins with 'grid.study' that can be set; it is told by a grid file"),
    ],
)
def test_help_on_what_is_no_key_says_what_was_meant(
    topic: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = answer("launch", "--help", topic, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out) == (2, "") and err.startswith(f"error: {told}") and err.count("\n") == 1


# -------------------------------------------------------------------------------------------- each setting once, typed
def test_every_key_says_what_it_means_in_one_short_line() -> None:
    every = {
        **KEYS,
        **GROUPS,
        **{name: key for kind in READ_WITHOUT_HYDRA.values() for name, key in takes(kind).items()},
    }
    assert [name for name, key in every.items() if not 4 <= len(key.about.doc) <= 90 or "\n" in key.about.doc] == []
    assert [name for name, key in KEYS.items() if key.about.not_set] == [*dict.fromkeys(n for n in KEYS if n in FIXED)]


@pytest.mark.parametrize("kind", [ProbeSettings, FinetuneSettings, ScratchSettings])
def test_a_phases_keys_are_the_fields_of_its_settings_but_what_the_data_set_tells(kind: type) -> None:
    phase = kind.__name__.removesuffix("Settings").lower()
    declared = [f.name for f in fields(kind) if f.name != "image_size_px"]
    assert [n.rpartition(".")[2] for n in KEYS if n.startswith(f"phase.{phase}.")] == declared
    assert keys_of(Config) is KEYS


@pytest.mark.parametrize(
    "grid", [g if g == "quickstart" else pytest.param(g, marks=pytest.mark.slow) for g in GRID_IDS]
)
def test_a_grid_file_makes_the_runs_that_it_always_made_and_says_how_many(grid: str) -> None:
    """grid_ids.json was written before the settings were declared anew: a sha256 over all run ids, which hash all
    fields as canonical JSON."""
    runs = sorted(load_grid([f"grid={grid}", "cluster=local", "dry_run=true"]).runs)
    digest = hashlib.sha256("\n".join(runs).encode()).hexdigest()[:16]
    assert {"runs": len(runs), "ids": digest} == GRID_IDS[grid]
    assert f"\n# Runs: {len(runs)}\n" in (ROOT / f"conf/grid/{grid}.yaml").read_text()


def test_the_ids_of_every_grid_file_are_held() -> None:
    assert {*GRID_IDS} == {path.stem for path in (ROOT / "conf/grid").glob("*.yaml")}


def test_the_keys_that_documents_name_are_keys() -> None:
    groups = "|".join(dict.fromkeys(name.partition(".")[0] for name in KEYS if "." in name))
    named: set[str] = set()
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for code in re.findall(r"`([^`\n]+)`", page.read_text()):
            named |= {*re.findall(rf"(?<![\w/.<-])((?:{groups})(?:\.[a-z_]+)+)(?=[=`, ]|$)", code)}
    nodes = {name[: at.start()] for name in KEYS for at in re.finditer(r"\.", name)}
    assert len(named) > 30
    assert {n for n in named if not n.endswith(".py")} - {*KEYS, *nodes} == set()


# ---------------------------------------------------------------------------------------------------------- near misses
@pytest.mark.parametrize(
    ("verb", "arguments", "told"),
    [
        ("launch", ["--grid", "quickstart"], "'--grid' is not of the form key=value; write grid=quickstart"),
        ("launch", ["--grid=quickstart"], "'--grid=quickstart' is not of the form key=value; write grid=quickstart"),
        ("launch", ["quickstart"], "'quickstart' is not of the form key=value; write grid=quickstart"),
        ("launch", ["quikstart"], "'quikstart' is not of the form key=value; write grid=quickstart"),
        ("launch", ["--dry-run"], "'--dry-run' is not of the form key=value; write dry_run=true"),
        ("launch", ["--dataset", "mnist"], "write dataset=mnist"),
        ("launch", ["resnet18"], "write grid.models=[resnet18]"),
        ("launch", ["-m"], "a sweep belongs to python jobs/run_phase.py"),
        ("launch", ["--verbose"], "'--verbose' is not of the form key=value; see --help"),
        ("launch", ["Grid=quickstart"], "unknown key 'Grid'; did you mean 'grid'?"),
        ("launch", ["STORE.DIR=x"], "unknown key 'STORE.DIR'; did you mean 'store.dir'?"),
        ("launch", ["phase.finetune.=3"], "unknown key 'phase.finetune.'"),
        ("launch", ["phase..lr=3"], "unknown key 'phase..lr'"),
        ("launch", ["=3"], "unknown key ''"),
        ("launch", ["store=x"], "store=x is not a value: store is a group of keys; --help store shows them"),
        ("launch", ["device=[a]"], "device=['a'] is not one of auto, cpu, cuda"),
        ("run", ["resnet18"], "write model=resnet18"),
        ("run", ["scratch"], "write phase=scratch"),
        ("status", ["quickstart"], "write grid=quickstart"),
        ("status", ["--watch"], "write watch=true"),
        ("status", ["Watch=true"], "unknown key 'Watch'; did you mean 'watch'?"),
        ("report", ["--cfg"], "'--cfg' is not of the form key=value"),
        ("report", ["figures=mabye"], "figures='mabye' is not one of true, false, keep"),
        ("report", ["compare=a"], "compare=a is not a list of names; a list is written compare=[a,b]"),
        ("sync", ["project="], "'project=' is empty; give project= a value"),
        ("sync", ["projekt=x"], "unknown key 'projekt'; did you mean 'project'?"),
        ("predict", ["run=a", "top_k=few"], "top_k=few is not a whole number or null"),
        ("predict", ["run=a", "weights_files={a: b}"], "give each entry by itself, as weights_files.NAME=a: b"),
        ("doctor", ["wait_s=soon"], "wait_s=soon is not a number"),
        ("doctor", ["wait_s=1", "wait_s=2"], "'wait_s' is given twice; give it once"),
        ("list", [], "give one of models, datasets, grids, clusters, as python jobs/list.py models"),
        ("list", ["gird"], "unknown list 'gird'; did you mean 'grids'?"),
        ("list", ["models", "no-such-model"], "no line of python jobs/list.py models holds 'no-such-model'"),
    ],
)
def test_what_is_nearly_right_is_answered_in_one_line_with_the_right_spelling(
    verb: str,
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = answer(verb, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out) == (2, "") and told in err
    assert err.startswith("error: ") and err.count("\n") == 1 and len(err) <= 250
    assert list(tmp_path.iterdir()) == []


def test_every_script_takes_the_keys_of_places_and_of_the_machine_needed_or_not() -> None:
    places = ["store.dir=s", "cache.dir=c", "data.dir=d", "weights_dir=w", "device=cpu", "data.resident_gb=2"]
    places += [
        "tracking=disabled",
        "tracking.project=p",
        "tracking.entity=e",
        "cluster.num_threads=2",
        "grid=quickstart",
    ]
    places += ["cache.also_read=[a,b]", "tracking.mode=disabled", "cluster=local"]
    assert {*SHARED, "grid", "tracking", "cluster"} == {place.partition("=")[0] for place in places}
    for kind in READ_WITHOUT_HYDRA.values():
        values: Any = parse(kind, places).values
        assert values.store_dir == "s"
    requests = (parse_status(places), parse_report(places), parse_sync(places))
    assert [request.store.root for request in requests] == [Path("s")] * 3
    assert compose_config(places).cache.also_read == ["a", "b"]
    runtime = load_doctor([*places, "wait_s=3"]).runtime
    assert (runtime.store_dir, runtime.cache_dir, runtime.data_dir, runtime.num_threads) == ("s", "c", "d", 2)


def test_the_names_that_a_launch_has_for_project_and_entity_hold_too_and_left_out_they_are_the_grids_own() -> None:
    for parsed in (parse_sync(["grid=g"]), parse_sync(["grid=g", "tracking.project=p", "tracking.entity=e"])):
        given = ("p", "e") if parsed.tracking_project else (None, None)
        assert (parsed.project, parsed.entity) == given
    assert parse_report(["grid=g", "publish=true"]).publish == (None, None)
    assert parse_report(["grid=g", "publish=true", "tracking.project=p"]).publish == (None, "p")
    assert parse_report(["grid=g", "source=wandb"]).wandb == (None, "transfergrid")


def test_a_shared_key_is_checked_where_it_is_not_needed() -> None:
    with pytest.raises(ConfigError, match=r"^device='gpu' is not one of auto, cpu, cuda"):
        parse(SyncRequest, ["device=gpu"])
    with pytest.raises(ConfigError, match="at least 0 and at most 1024"):
        parse(ReportKeys, ["cluster.num_threads=-1"])


# ----------------------------------------------------------------------------------------------------- the newest grid
def launched(store: Path, name: str, age_s: float) -> None:
    path = store / "grids" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"grid": name, "configurations": []}))
    os.utime(path, (1e9 - age_s, 1e9 - age_s))


def test_without_a_grid_a_status_is_of_the_one_launched_last_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launched(tmp_path, "newer", 10)
    launched(tmp_path, "a-first", 1000)
    code, out, _ = answer("status", f"store.dir={tmp_path}", monkeypatch=monkeypatch, capsys=capsys, columns=300)
    assert (code, out.splitlines()[0]) == (0, f"grid=newer, the one launched last in {tmp_path}")
    assert "grid newer: nothing was sent" in out


@pytest.mark.parametrize("verb", ["status", "report", "sync"])
def test_in_an_empty_store_it_says_what_to_do(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = answer(verb, monkeypatch=monkeypatch, capsys=capsys)
    told = "error: nothing was launched in results; python jobs/launch_grid.py runs the quickstart, store.dir= names"
    assert (code, out) == (2, "") and err.startswith(told) and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------- the printed configuration
@pytest.mark.parametrize(
    "typed",
    [
        ["grid=quickstart", "phase.finetune.lr=0.003", "grid.seeds=[4]"],
        ["grid=quickstart", "grid.variants={bal: {class_weights: balanced}}"],
        [
            "grid=quickstart",
            "grid.rules=[{phases: [finetune], set: {phase.finetune.lr: 0.003}}]",
            "phase.finetune={lr: 0.004}",
        ],
        pytest.param(["grid=individual_vs_parallel_as_published", "phase.finetune.lr=0.003"], marks=pytest.mark.slow),
        pytest.param(["grid=scratch_cifar10", "dataset.max_images=500"], marks=pytest.mark.slow),
    ],
    ids=lambda typed: " ".join(argument.partition("=")[0] for argument in typed),
)
def test_a_printed_grid_is_a_grid_file_that_makes_the_same_runs(
    typed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_grid([*typed, "cluster=local"])
    monkeypatch.chdir(tmp_path)
    name = f"again-{typed[0][5:]}"
    (tmp_path / "conf/grid").mkdir(parents=True)
    (tmp_path / f"conf/grid/{name}.yaml").write_text(printed_grid(typed))
    after = load_grid([f"grid={name}", "cluster=local"])
    assert sorted(after.runs) == sorted(before.runs) and after.grid == before.grid


def test_the_values_of_a_printed_run_typed_in_again_make_the_same_run() -> None:
    from omegaconf import OmegaConf

    chosen = ["model=baseline_cnn", "dataset=mnist", "phase=scratch"]
    typed = [*chosen, "phase.scratch.epochs=3", "class_weights=balanced", "dataset.shots=5", "seed=7"]
    printed = printed_run(typed)
    assert printed.splitlines()[1].endswith("run_phase.py dataset=mnist phase=scratch")
    values = OmegaConf.create(printed)
    assert values.phase.scratch.class_weights == "balanced"  # resolved

    def spelled(node: object, prefix: str) -> list[str]:
        if isinstance(node, dict) and node and prefix != "grid.variants.":
            return [line for key, value in node.items() for line in spelled(value, f"{prefix}{key}.")]
        return [f"{prefix[:-1]}={hydra_value(node)}"]

    content = {key: value for key, value in OmegaConf.to_container(values).items() if key != "grid"}  # type: ignore[union-attr]
    again = ["dataset=mnist", "phase=scratch", *spelled(content, "")]
    assert [*load_run(again).runs] == [*load_run(typed).runs]


def test_printing_starts_nothing_and_refuses_what_a_launch_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = answer("launch", "--cfg", "grid.seeds=[5]", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (0, "") and out.startswith("# @package _global_\n") and "seeds:\n  - 5\n" in out
    code, out, err = answer("run", "--cfg=job", "model=lenet5", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (0, "") and "model: lenet5\n" in out
    code, out, err = answer("launch", "--cfg", "phase.finetune.lr=900", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out) == (2, "") and "phase.finetune.lr=900.0 is out of range" in err
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------------------- lists
def listed(*words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    code, out, err = answer("list", *words, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (0, "")
    return [re.split(r"  +", line) for line in out.splitlines()]


def test_lists_hold_what_is_known_without_torch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models = listed("models", monkeypatch=monkeypatch, capsys=capsys)
    assert ["resnet18", "11.18 M", "512", "backbone: IMAGENET1K_V1"] in models
    assert [
        "lenet5",
        "from scratch: LeNet-5 for colour images of 32 px, as PyTorch's tutorial on CIFAR-10 has it",
    ] in models
    assert models[-1] == ["and timm/<name>, a thousand more: give a word to search them"]
    found = listed("models", "ResNet18", monkeypatch=monkeypatch, capsys=capsys)
    assert ["timm/resnet18", "a network of timm"] in found and all("resnet18" in " ".join(r).lower() for r in found[1:])
    datasets = listed("datasets", monkeypatch=monkeypatch, capsys=capsys)
    assert ["mnist", "10", "60000", "10000", "MNIST (LeCun, Cortes, Burges)"] in datasets
    assert ["image_folder", "A folder of the user's: dataset.folder=DIR"] in datasets
    (header, grid) = listed("grid", "cutout", monkeypatch=monkeypatch, capsys=capsys)
    assert header == ["grid", "runs", "what it asks"]
    assert grid == ["small_resnet18_cutout", "40", "What is Cutout worth (arXiv 1708.04552), and at which size?"]


def test_a_users_own_files_are_listed_and_a_broken_one_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for group in ("cluster", "dataset", "grid"):
        (tmp_path / "conf" / group).mkdir(parents=True)
    (tmp_path / "conf/cluster/lab.yaml").write_text("kind: slurm\npartition: gpu\n")
    (tmp_path / "conf/cluster/torn.yaml").write_text("kind slurm\n")
    (tmp_path / "conf/dataset/pets.yaml").write_text("kind: image_folder\nfolder: /data/pets\n")
    (tmp_path / "conf/dataset/torn.yaml").write_text("a: [\n")
    (tmp_path / "conf/grid/mine.yaml").write_text("# @package _global_\n# Which is best? More.\ngrid: {name: mine}\n")
    clusters = listed("clusters", monkeypatch=monkeypatch, capsys=capsys)
    assert ["lab", "slurm", "gpu", f"{tmp_path}/conf/cluster/lab.yaml"] in clusters
    assert next(row for row in clusters if row[0] == "torn")[1].startswith(f"{tmp_path}/conf/cluster/torn.yaml")
    datasets = listed("datasets", monkeypatch=monkeypatch, capsys=capsys)
    assert ["pets", "A folder of the user's: dataset.folder=/data/pets"] in datasets
    assert next(row for row in datasets if row[0] == "torn")[1].startswith(
        f"{tmp_path}/conf/dataset/torn.yaml cannot be"
    )
    grids = listed("grids", "mine", monkeypatch=monkeypatch, capsys=capsys)
    assert grids[1] == ["mine", f"Which is best? [{tmp_path}/conf/grid/mine.yaml]"]


def test_lists_and_help_load_neither_torch_nor_hydra_and_come_within_two_seconds() -> None:
    code = (
        "import sys, time; sys.argv = ['x', *sys.argv[1:]]\n"
        "from transfergrid.__main__ import main\n"
        "code = main(); print(code, time.process_time() < 2, *({'torch', 'hydra', 'timm'} & {*sys.modules}))"
    )
    for words in (["list", "models", "vgg"], ["launch", "--help", "all"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "0 True"


@pytest.mark.parametrize(
    ("printer", "typed", "wanted"),
    [
        (printed_grid, ["grid.models=[nosuch]"], "nosuch"),
        (printed_grid, ["grid.datasets=[nosuch]"], "unknown dataset 'nosuch'"),
        (printed_grid, ["grid.phases=[foo]"], "foo"),
        (printed_grid, ["protocol=published"], "grid.study"),
        (printed_run, ["again=nosuch"], "again= takes its settings from a run"),
        (printed_run, ["phase=evaluate", "run=nosuch"], "run= takes its settings from a run"),
    ],
)
def test_no_configuration_is_printed_that_a_launch_refuses(
    printer: Callable[[list[str]], str], typed: list[str], wanted: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(wanted)):
        printer(typed)


def test_a_data_set_file_over_another_is_listed_and_a_damaged_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf/dataset").mkdir(parents=True)
    (tmp_path / "conf/dataset/sub.yaml").write_text("defaults: [mnist, _self_]\nname: mymnist\n")
    (tmp_path / "conf/dataset/torn.yaml").write_text("a: [1\n")
    rows = {row[0]: row for row in rows_of("datasets", None)}
    assert rows["sub"][1:4] == rows["mnist"][1:4] == ("10", "60000", "10000")
    assert "torn.yaml cannot be read" in rows["torn"][4]
    with pytest.raises(ConfigError, match="torn.yaml cannot be read"):
        printed_grid(["grid.datasets=[torn]"])


@pytest.mark.parametrize(
    ("parser", "typed", "wanted"),
    [
        (parse_report, ["source=wandb", "grid=a", "store.dir=x"], "leave store.dir= out"),
        (parse_report, ["source=wandb"], "grid=NAME"),
        (parse_status, ["retry=failed", "tracking.mode=online"], "tracking.mode= cannot be changed for a retry"),
    ],
)
def test_a_key_that_would_have_no_effect_is_refused(
    parser: Callable[[list[str]], object], typed: list[str], wanted: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(wanted)):
        parser(typed)
