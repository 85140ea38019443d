"""A module imports only what stands on a lower floor, or in its own room: held against the imports themselves.

Every import counts: at the top of a module, inside a function, and those for types alone. There are no exemptions.
docs/architecture.md draws the floors.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "src" / "transfergrid"

# Lowest first. A room is a folder of the package, or one of the loose files on the lowest floor.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "names", "specs", "resources", "paths"),
    ("store",),
    ("data",),
    ("networks",),
    ("training",),
    ("phases",),
    ("planning", "config"),
    ("tracking", "export"),
    ("cluster", "report"),
    ("doctor",),
    ("cli",),
)
# The loose files may use each other in this direction only.
VOCABULARY = FLOORS[0]
MOST_ROOMS = 20
# Third parties of each room; a room that is not named has none.
THIRD_PARTIES: Mapping[str, frozenset[str]] = {
    "store": frozenset({"numpy", "h5py"}),
    "data": frozenset({"numpy", "torch", "torchvision", "PIL", "pillow_heif", "scipy", "sklearn"}),
    "networks": frozenset({"numpy", "torch", "torchvision", "timm", "sklearn", "safetensors", "huggingface_hub"}),
    "training": frozenset({"numpy", "torch", "scipy", "timm", "pynvml"}),
    "phases": frozenset({"numpy", "torch"}),
    "config": frozenset({"hydra", "omegaconf", "yaml"}),
    "tracking": frozenset({"numpy", "PIL", "wandb", "wandb_workspaces"}),
    "export": frozenset({"numpy", "torch", "PIL", "safetensors", "onnx", "onnxruntime", "onnxscript"}),
    "cluster": frozenset({"submitit"}),
    "report": frozenset({"numpy", "scipy", "matplotlib", "jinja2", "markupsafe", "torch", "torchinfo", "PIL"}),
    "doctor": frozenset({"torch", "torchvision"}),
    "cli": frozenset({"rich", "torch"}),
}
# What one room alone may import, one file of it where a file is named.
ONLY_HERE = {
    "wandb": "tracking",
    "wandb_workspaces": "tracking",
    "h5py": "store.feature_store",
    "submitit": "cluster.submit",
    "hydra": "config",
    "omegaconf": "config",
    "matplotlib": "report.figures",
    "jinja2": "report.page",
    "rich": "cli",
    "pynvml": "training.usage",
}
HEAVY = ("torch", "torchvision", "timm", "sklearn", "pandas")


@dataclass(frozen=True)
class Import:
    module: str  # dotted, within the package: config.resolve
    line: int
    target: str  # dotted: transfergrid.specs, or torch.nn

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


@cache
def modules() -> Mapping[str, Path]:
    """Dotted name within the package -> file; a package is named by its __init__.py, the whole one is ``."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports() -> tuple[Import, ...]:
    return tuple(i for name, path in modules().items() for i in imports_of(name, path.read_text()))


def imports_of(module: str, text: str) -> Iterator[Import]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = whole.removeprefix("transfergrid.") in modules()
                yield Import(module, node.lineno, whole if is_module else str(node.module))


def room(dotted: str) -> str:
    return dotted.removeprefix("transfergrid.").partition(".")[0]


def floor(name: str) -> int:
    return next((i for i, rooms in enumerate(FLOORS) if name in rooms), len(FLOORS))


def own(found: Iterable[Import]) -> list[Import]:
    return [i for i in found if i.target.startswith("transfergrid.")]


def third_parties(found: Iterable[Import]) -> list[Import]:
    known = {*sys.stdlib_module_names, "transfergrid"}
    return [i for i in found if i.target.partition(".")[0] not in known]


def not_downward(found: Iterable[Import]) -> list[str]:
    """Imports that lead to another room on the same floor or above."""
    crossing = (i for i in own(found) if room(i.target) != room(i.module))
    return [str(i) for i in crossing if floor(room(i.target)) >= floor(room(i.module)) and not _in_vocabulary(i)]


def _in_vocabulary(found: Import) -> bool:
    pair = (room(found.module), room(found.target))
    return all(name in VOCABULARY for name in pair)  # held by the test of circles


def circle(edges: Iterable[tuple[str, str]]) -> set[str]:
    """Names on a circle, or between two; empty where there is none."""
    left = {(start, end) for start, end in edges if start != end}
    while True:
        starts, ends = {start for start, _ in left}, {end for _, end in left}
        kept = {(start, end) for start, end in left if end in starts and start in ends}
        if kept == left:
            return starts
        left = kept


def inner_room(dotted: str) -> str:
    """report.figures for report.figures.style; a file that lies loose in a room is one of its own."""
    name = dotted.removeprefix("transfergrid.")
    return ".".join(name.split(".")[:2])


def test_every_room_has_its_floor() -> None:
    rooms = {room(name) for name in modules()} - {"", "__main__"}
    assert rooms == {name for rooms in FLOORS for name in rooms}


def test_the_first_page_of_the_package_has_few_rooms() -> None:
    entries = [p for p in ROOT.iterdir() if p.suffix == ".py" or (p.is_dir() and (p / "__init__.py").exists())]
    assert len([p for p in entries if p.name != "__init__.py"]) <= MOST_ROOMS


def test_a_module_imports_only_lower_floors_or_its_own_room() -> None:
    assert len(own(imports())) > 800
    assert not_downward(imports()) == []


def test_no_rooms_and_no_modules_import_each_other_in_however_many_steps() -> None:
    found = [(i.module, i.target.removeprefix("transfergrid.")) for i in own(imports())]
    assert circle((room(start), room(end)) for start, end in found) == set()
    assert circle((inner_room(start), inner_room(end)) for start, end in found if room(start) == room(end)) == set()
    assert circle(found) == set()


def test_a_room_imports_its_own_third_parties_only() -> None:
    foreign = [
        str(i)
        for i in third_parties(imports())
        if i.target.partition(".")[0] not in THIRD_PARTIES.get(room(i.module), frozenset())
    ]
    assert foreign == []


@pytest.mark.parametrize("library", sorted(ONLY_HERE))
def test_a_library_is_imported_in_its_one_place_only(library: str) -> None:
    place = ONLY_HERE[library]
    users = [i for i in imports() if i.target.partition(".")[0] == library]
    assert users and [str(i) for i in users if not f"{i.module}.".startswith(f"{place}.")] == []


PLANTED = {
    "at the top": "from transfergrid.cli import launch\n",
    "in a function": "def f():\n    def g():\n        from transfergrid.cli.launch import launch\n",
    "for types alone": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import transfergrid.cli.launch\n",
}


@pytest.mark.parametrize("way", PLANTED)
def test_a_planted_import_upwards_is_found(way: str) -> None:
    (wrong,) = not_downward(imports_of("store.durable", PLANTED[way]))
    assert wrong.startswith("store.durable:") and wrong.endswith(" imports transfergrid.cli.launch")


def test_planted_imports_beside_and_around_are_found() -> None:
    beside = imports_of("planning.plan", "def f():\n    from transfergrid import config\n")
    assert not_downward(beside) == ["planning.plan:2 imports transfergrid.config"]
    around = [*imports(), Import("store.durable", 1, "transfergrid.store.records")]
    found = circle((i.module, i.target.removeprefix("transfergrid.")) for i in own(around))
    assert {"store.durable", "store.records"} <= found and "cli.launch" not in found
    (wandb,) = third_parties(imports_of("store.durable", "import os\nimport wandb.sdk\n"))
    assert wandb.target == "wandb.sdk" and "wandb" not in THIRD_PARTIES["store"]


def test_importing_a_module_defines_and_does_nothing() -> None:
    """No statement at module level but imports, definitions, assignments and the guard of a script."""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    doing = []
    for name, path in modules().items():
        for node in ast.parse(path.read_text()).body:
            text = ast.unparse(node)
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            is_guard = text.startswith(("if __name__ == '__main__'", "if TYPE_CHECKING"))
            if not (isinstance(node, allowed) or is_docstring or is_guard):
                doing.append(f"{name}:{node.lineno} {text[:60]}")
    assert doing == []


def test_what_plans_and_reports_states_loads_no_heavy_library() -> None:
    """Imported for real, in a process of its own: a chain of imports is easily overlooked."""
    planning = (
        "planning.plan",
        "planning.job",
        "config",
        "cluster.local",
        "cli.launch",
        "cli.run_phase",
        "cli.progress",
    )
    code = (
        "import importlib, sys\n"
        f"for name in {planning}: importlib.import_module('transfergrid.' + name)\n"
        f"print(sorted(set({HEAVY}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
