"""Every command in the documents and in the help texts can be typed: its arguments go through the script's parser."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from transfergrid.config.compose import parse_overrides
from transfergrid.config.predict import _values

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "src/transfergrid").rglob("*.py"))]
# A command ends where two blanks, a comment or a closing mark begin what is said about it.
COMMAND = re.compile(r"jobs/(launch_grid|run_phase|predict)\.py((?: (?:-m|'[^'\n]*'|[\w.+/-]+=[^\s`\"']+))+)")
OF_HYDRA = ("-m", "hydra/launcher=")


def commands() -> list[tuple[str, str]]:
    found = [m.groups() for page in PAGES for m in COMMAND.finditer(page.read_text())]
    return sorted({(script, line.strip()) for script, line in found if "{" not in line})


@pytest.mark.parametrize(("script", "line"), commands())
def test_a_printed_command_parses(script: str, line: str) -> None:
    arguments = [a.rstrip(".,;") for a in shlex.split(line)]
    if script == "predict":
        _values(arguments)
        return
    is_sweep = "-m" in arguments
    own = ("grid", "model", "seed", "phase", "run", "dry_run", "wait", "emit", "grid_name", "needs", "watch")
    settings = [a for a in arguments if not a.startswith(OF_HYDRA) and a.partition("=")[0] not in own]
    parse_overrides([a for a in settings if not (is_sweep and "," in a)])


def test_the_documents_hold_commands_and_the_spelling_for_a_backbone_of_timm() -> None:
    assert len(commands()) > 20
    assert "weights_files.timm/resnet18=FILE" in (ROOT / "docs/adding.md").read_text()
    (override,) = parse_overrides(["weights_files.timm/resnet18=FILE"])
    assert (override.key_or_group, override.value()) == ("weights_files.timm/resnet18", "FILE")
