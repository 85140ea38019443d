"""Every command in the documents and help texts can be typed; and so can each that any test prints (conftest.py)."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from printed_commands import Collector, commands_in, problem_of
from rich.console import Console

from transfergrid.config.compose import parse_overrides
from transfergrid.config.spelling import command, command_of_grid, launch_again, where_runs_are
from transfergrid.errors import ConfigError
from transfergrid.paths import StorePaths

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src/transfergrid").rglob("*.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *SOURCES]
# Of examples: a name that the reader has put in.
PUT_IN = {
    "[A,B]": "[a,b]",
    "RUN_ID": "r-1",
    "PROBE_ID": "p-1",
    "=ID": "=r-1",
    "=NAME": "=quickstart",
    "<backbone>": "resnet18",
}


def commands() -> list[tuple[str, str]]:
    found = [c for page in PAGES for line in page.read_text().splitlines() for c in commands_in(line)]
    return sorted(
        {(script, line) for script, line in found if "=" in line and "={" not in line and "{" not in line[:3]}
    )


@pytest.mark.parametrize(("script", "line"), commands())
def test_a_command_of_the_documents_parses(script: str, line: str) -> None:
    for word, name in PUT_IN.items():
        line = line.replace(word, name)
    assert problem_of(script, line.rstrip("`")) is None


def test_the_documents_hold_commands_and_the_spelling_for_a_backbone_of_timm() -> None:
    assert len(commands()) > 20
    assert "weights_files.timm/resnet18=FILE" in (ROOT / "docs/adding.md").read_text()
    (override,) = parse_overrides(["weights_files.timm/resnet18=FILE"])
    assert (override.key_or_group, override.value()) == ("weights_files.timm/resnet18", "FILE")


def test_a_command_with_a_name_in_it_is_made_in_one_place_alone() -> None:
    """What is put into a command must be quoted: no f-string holds one, but for words about a script."""
    for path in (p for p in SOURCES if "jobs/" in p.read_text()):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr) and path.name not in ("spelling.py", "help.py"):
                text = ast.unparse(node)
                assert not re.search(r"jobs/\w+\.py [\w.]+=", text), f"{path.name}:{node.lineno} {text}"


def test_what_cannot_be_typed_fails_the_test_that_printed_it(capsys: pytest.CaptureFixture[str]) -> None:
    collector = Collector()
    for text in (
        "next: python jobs/launch_grid.py grid=compare-pets; else nothing",
        "python jobs/status.py run=RUN_ID tells",
        "`python jobs/report.py grid=quickstart model=resnet18` makes it",
        "python jobs/run_phase.py model=resnet18 phase=probe weights=a,b.pth.",
        "python jobs/sync.py grid=quickstart (jobs/doctor.py looks at a node), jobs/report.py 'store.dir=/a b'",
    ):
        collector.take(text)
    names = [problem.split(":")[0] for problem in collector.problems()]
    assert names == [
        "jobs/launch_grid.py grid=compare-pets",
        "jobs/status.py run=RUN_ID",
        "jobs/report.py grid=quickstart model=resnet18",
        "jobs/run_phase.py model=resnet18 phase=probe weights=a,b.pth",
    ]


def test_print_console_and_errors_are_watched(collector: Collector) -> None:
    Console(quiet=True).print("see jobs/status.py grid=NAME")
    print("see jobs/report.py grid=NAME")
    ConfigError("see jobs/sync.py grid=NAME")
    assert len(collector.problems()) == 3


@pytest.mark.parametrize("folder", ["results", "a b", "x,y", "k=v", "it's", "ré", "(1)", "[a]", "1e3"])
def test_commands_name_whatever_store_there_is(folder: str, tmp_path: Path) -> None:
    store = StorePaths(tmp_path / folder)
    for script in ("launch_grid", "status", "report", "sync"):
        told = command_of_grid(f"{script}.py", "quickstart", store)
        ((found, _),) = commands_in(told)
        assert found == script
        assert problem_of(script, shlex.join(shlex.split(told)[2:])) is None
    (given,) = [a for a in shlex.split(command_of_grid("launch_grid.py", "quickstart", store)) if "store.dir" in a]
    (override,) = parse_overrides([given])
    assert override.value() == str(store.root)


def test_a_grid_without_a_file_is_launched_again_as_it_was(tmp_path: Path) -> None:
    store = StorePaths(tmp_path)
    assert launch_again("quickstart", StorePaths(Path("results"))) == command("launch_grid.py", "grid=quickstart")
    assert launch_again("compare-pets", store) == "a launch as it was made before, with grid_name=compare-pets"


def test_where_the_ids_of_runs_are_is_told_once_there_are_some(tmp_path: Path) -> None:
    store = StorePaths(tmp_path)
    assert where_runs_are(store) == f"nothing was launched in {tmp_path}"
    store.grid("pets").parent.mkdir()
    store.grid("pets").write_text("{}")
    assert where_runs_are(store) == f"the folders in {tmp_path}/runs are called by the ids of the runs"
