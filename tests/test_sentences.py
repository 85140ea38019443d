"""No sentence of this project is cut, searched or compared to decide something."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import transfergrid.errors

SOURCE = Path(transfergrid.errors.__file__).parent
OURS = {name for name, kind in vars(transfergrid.errors).items() if inspect.isclass(kind)}
OURS |= {"SlurmDown", "SlurmRefused", "Unreachable", "DeletedRun", "NotRead", "DamagedImage", "DamagedImages"}
FIELDS = {"reason", "remedy", "what", "fact", "problem"}
CUTS = {"startswith", "endswith", "partition", "rpartition", "split", "rsplit", "splitlines", "removeprefix"}
CUTS |= {"removesuffix", "find", "rfind", "index", "replace", "count"}
SEARCHES = {"search", "match", "fullmatch", "findall", "finditer", "sub"}
# Words of others under such a name: SLURM's own why a job waits; what torch or a driver says of a GPU.
FOREIGN = {"entry.reason", "job.reason"}
LEFT = {"report/analysis/joins.py one_line(error).removeprefix(f'{run.run_id}: ')"}


def uses(text: str) -> Iterator[str]:
    """The code of each place where what an error of ours says, or one of FIELDS, decides something."""
    for statement in ast.parse(text).body:
        for each in statement.body if isinstance(statement, ast.ClassDef) else [statement]:
            yield from uses_within(list(ast.walk(each)))


def uses_within(nodes: list[ast.AST]) -> Iterator[str]:
    caught = {h.name for h in nodes if isinstance(h, ast.ExceptHandler) and h.name and is_ours(h.type)}
    held: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Assign) and is_sentence(node.value, caught, held):
            held |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    yield from (ast.unparse(node) for node in nodes if decides(node, caught, held))


def is_ours(caught: ast.expr | None) -> bool:
    return caught is not None and any(last(node) in OURS for node in ast.walk(caught))


def last(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def is_sentence(node: ast.AST, caught: set[str], held: set[str]) -> bool:
    if isinstance(node, ast.Call) and last(node.func) in ("str", "one_line") and node.args:
        return isinstance(node.args[0], ast.Name) and node.args[0].id in caught
    if isinstance(node, ast.Attribute) and node.attr in FIELDS:
        return ast.unparse(node) not in FOREIGN
    return isinstance(node, ast.Name) and node.id in held


def decides(node: ast.AST, caught: set[str], held: set[str]) -> bool:
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        texts = any(isinstance(side, ast.Constant) and isinstance(side.value, str) and side.value for side in sides)
        within = any(isinstance(op, ast.In | ast.NotIn) for op in node.ops) and is_sentence(sides[-1], caught, held)
        return within or (texts and any(is_sentence(side, caught, held) for side in sides))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in SEARCHES:
            return any(is_sentence(argument, caught, held) for argument in node.args[1:])
        return node.func.attr in CUTS and bool(node.args) and is_sentence(node.func.value, caught, held)
    return False


def test_no_sentence_of_ours_decides_anything() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    found = [f"{path.relative_to(SOURCE)} {use}" for path in files for use in uses(path.read_text())]
    assert [use for use in found if use not in LEFT] == []


@pytest.mark.parametrize(
    "code",
    [
        "try: f()\nexcept ConfigError as error: what, _, remedy = str(error).rpartition('; ')",
        "try: f()\nexcept (OSError, DataError) as error:\n    if 'not found' in str(error): pass",
        "try: f()\nexcept GridError as error:\n    text = one_line(error)\n    text.startswith('no')",
        "def f(state): return 'SIGKILL' in state.reason",
        "def f(answer): return answer.problem == 'gone'",
        "def f(error): return re.search('launch again', error.remedy)",
    ],
)
def test_each_way_of_using_one_is_seen(code: str) -> None:
    assert len(list(uses(code))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "try: f()\nexcept OSError as error:\n    if 'stale' in str(error): pass",
        "try: f()\nexcept GridError as error: print(' '.join(str(error).split()), error.failure_class == 'data')",
        "def f(state): return bool(state.reason) and state.reason != ''",
    ],
)
def test_words_of_others_and_plain_fields_are_free(code: str) -> None:
    assert list(uses(code)) == []
