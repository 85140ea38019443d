"""A module imports only what stands below it: the layers of the library, held against the imports themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "src" / "transfergrid"

# A module or package may import those of lower layers and, inside a package, its own siblings; members of one layer
# see each other only as WITHIN_LAYER lists.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "names", "specs", "resources", "paths", "durable", "owner_locks", "stopping", "usage"),
    (
        "data",
        "backbones",
        "architectures",
        "feature_store",
        "attempts",
        "provenance",
        "metrics_log",
        "records",
        "bills",
        "network_size",
        "evaluation",
    ),
    (
        *("tracking", "config", "preprocess", "augment", "training", "optimization", "heads", "folds", "images"),
        *("solved_head", "head_path", "reference_heads"),
        *("network", "image_training", "results", "device", "classes", "finished", "images_at_hand", "small_images"),
    ),
    ("phases",),
    ("plan", "job", "cost", "inference", "export"),
    ("cluster", "report"),
    ("commands",),
    ("__main__",),
)
WITHIN_LAYER = {
    ("durable", "errors"),
    ("errors", "names"),
    ("durable", "names"),
    ("durable", "owner_locks"),
    ("owner_locks", "errors"),
    ("paths", "specs"),
    ("attempts", "provenance"),
    ("records", "attempts"),
    ("backbones", "network_size"),  # the catalog states what a forward pass costs
    ("backbones", "architectures"),  # a backbone that this project trained is one of its architectures
    ("config", "classes"),
    ("config", "folds"),  # how many images are trained on decides batch and epochs
    ("export", "inference"),
    ("finished", "network"),
    ("head_path", "solved_head"),
    ("images_at_hand", "folds"),
    ("tracking", "images_at_hand"),
    ("images", "augment"),
    ("images", "preprocess"),
    ("images", "small_images"),
    ("small_images", "augment"),
    ("small_images", "preprocess"),
    ("image_training", "device"),
    ("image_training", "folds"),
    ("image_training", "heads"),
    ("image_training", "images"),
    ("image_training", "network"),
    ("results", "device"),
    ("results", "folds"),
    ("tracking", "config"),  # how a command is spelled
    ("training", "optimization"),
}
# Third parties that one place alone may import.
ONLY_HERE = {
    "wandb": ("tracking",),
    "wandb_workspaces": ("tracking",),
    "h5py": ("feature_store",),
    "submitit": ("cluster",),
    "hydra": ("config",),
    "omegaconf": ("config",),
    "pandas": ("report",),
    "statsmodels": ("report",),
    "matplotlib": ("report",),
    "jinja2": ("report",),
    "rich": ("commands",),
    "timm": ("backbones", "optimization", "training"),
}
HEAVY = ("torch", "torchvision", "timm", "sklearn", "pandas")


@dataclass(frozen=True)
class Import:
    module: str  # dotted, within the package: config.resolve
    line: int
    target: str  # dotted: transfergrid.specs, or torch.nn
    deferred: bool  # inside a function


@cache
def modules() -> dict[str, Path]:
    """Dotted name within the package -> file; a package is named by its __init__.py."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports() -> tuple[Import, ...]:
    """Every import but those for types alone."""
    return tuple(i for name, path in modules().items() for i in imports_of(name, ast.parse(path.read_text())))


def imports_of(module: str, tree: ast.AST, *, deferred: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        inside = deferred or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, node.lineno, alias.name, deferred)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = whole.removeprefix("transfergrid.") in modules()
                yield Import(module, node.lineno, whole if is_module else str(node.module), deferred)
        else:
            yield from imports_of(module, node, deferred=inside)


def unit(dotted: str) -> str:
    """The module or package of the library that a dotted name belongs to."""
    return dotted.removeprefix("transfergrid.").partition(".")[0]


def layer(name: str) -> int:
    return next(i for i, members in enumerate(LAYERS) if name in members)


def own() -> list[Import]:
    return [i for i in imports() if i.target.startswith("transfergrid.")]


def test_every_module_has_its_layer() -> None:
    units = {unit(name) for name in modules()} - {""}
    assert units == {name for members in LAYERS for name in members}


def test_a_module_imports_only_lower_layers_or_its_own_package() -> None:
    crossing = [i for i in own() if unit(i.target) != unit(i.module)]
    assert len(crossing) > 300
    wrong = [
        f"{i.module}:{i.line} imports {i.target}"
        for i in crossing
        if layer(unit(i.target)) >= layer(unit(i.module)) and (unit(i.module), unit(i.target)) not in WITHIN_LAYER
    ]
    assert wrong == []


def test_no_two_modules_import_each_other_in_whatever_many_steps() -> None:
    """Function-level imports count, too; a package's __init__ may hold names that its own modules use."""
    edges: dict[str, set[str]] = {name: set() for name in modules()}
    for i in own():
        target = i.target.removeprefix("transfergrid.")
        if target != i.module and not (i.deferred and unit(target) == unit(i.module)):
            edges[i.module].add(target)
    for name in list(edges):
        edges[name] &= set(edges)
    while leaves := [name for name, targets in edges.items() if not targets]:
        for leaf in leaves:
            del edges[leaf]
        for targets in edges.values():
            targets.difference_update(leaves)
    assert edges == {}


@pytest.mark.parametrize("library", sorted(ONLY_HERE))
def test_a_library_is_imported_in_its_one_place_only(library: str) -> None:
    elsewhere = [
        f"{i.module}:{i.line}"
        for i in imports()
        if i.target.partition(".")[0] == library and unit(i.module) not in ONLY_HERE[library]
    ]
    assert elsewhere == []


def test_the_lowest_layer_needs_no_third_party() -> None:
    foreign = {
        f"{i.module}:{i.line} imports {i.target}"
        for i in imports()
        if i.module in LAYERS[0] and i.target.partition(".")[0] not in {*sys.stdlib_module_names, "transfergrid"}
    }
    assert foreign == set()


def test_these_checks_see_what_they_are_to_see() -> None:
    text = "import a\nif TYPE_CHECKING:\n    import b\ndef f():\n    from transfergrid import specs\n    import c.d\n"
    seen = [(i.target, i.deferred) for i in imports_of("m", ast.parse(text))]
    assert seen == [("a", False), ("transfergrid.specs", True), ("c.d", True)]
    assert layer(unit("transfergrid.config.resolve")) == 2 and layer(unit("commands.launch")) == 6


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
    planning = ["plan", "job", "config", "cluster.local", "commands.launch", "commands.run_phase", "commands.progress"]
    code = (
        "import importlib, sys\n"
        f"for name in {planning}: importlib.import_module('transfergrid.' + name)\n"
        f"print(sorted(set({HEAVY}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
