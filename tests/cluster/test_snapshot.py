"""The code of a launch, copied beside its payload: what jobs run is what was launched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster_cases import names_in

from transfergrid.cluster import snapshot
from transfergrid.cluster.snapshot import take_snapshot_of_code
from transfergrid.errors import MachineError
from transfergrid.store import provenance
from transfergrid.store.provenance import hash_of, import_path

COMMIT = "c" * 40


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of this package as it is imported: its code hash was asked for when the process began."""
    root = tmp_path / "checkout"
    shutil.copytree(provenance.PACKAGE, root / "src" / "transfergrid", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "conf" / "grid").mkdir(parents=True)
    (root / "conf" / "grid" / "mine.yaml").write_text("name: mine\n")
    begin(root, monkeypatch)
    return root


def begin(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process that starts now sees the checkout."""
    package = root / "src" / "transfergrid"
    hash_then = hash_of(package)
    monkeypatch.setattr(snapshot, "PACKAGE", package)
    monkeypatch.setattr(snapshot, "code_hash", lambda: hash_then)
    monkeypatch.setattr(snapshot, "git_state", lambda: (COMMIT, True))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_snapshot_holds_every_file_of_the_package_as_it_is_now(checkout: Path, tmp_path: Path) -> None:
    source = take_snapshot_of_code(tmp_path / "launch")
    assert source == tmp_path / "launch" / "code" / "src"
    copied = contents(source / "transfergrid")
    assert copied == contents(checkout / "src" / "transfergrid")
    assert {"store/attempts.py", "cluster/task.py", "networks/backbones/catalog.json"} <= set(copied)


def test_changes_that_nobody_committed_are_in_it(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = checkout / "src" / "transfergrid"
    with open(package / "training/stopping.py", "a") as file:
        file.write("EDITED = 1\n")
    (package / "mine.py").write_text("NEW = 2\n")
    begin(checkout, monkeypatch)
    copied = take_snapshot_of_code(tmp_path / "launch") / "transfergrid"
    assert (copied / "training/stopping.py").read_text().endswith("EDITED = 1\n")
    assert (copied / "mine.py").read_text() == "NEW = 2\n"


def edit(package: Path) -> None:
    with open(package / "training/loop.py", "a") as file:
        file.write("\n")


def add(package: Path) -> None:
    (package / "new.py").touch()


def remove(package: Path) -> None:
    (package / "cluster" / "emit.py").unlink()


@pytest.mark.parametrize("change", [edit, add, remove])
def test_code_that_was_edited_since_the_launch_began_is_refused(
    checkout: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """The plan was made with the code as it was imported; jobs would run another."""
    change(checkout / "src" / "transfergrid")
    with pytest.raises(MachineError, match="was edited while this launch was being made; nothing was sent") as refused:
        take_snapshot_of_code(tmp_path / "launch")
    assert str(checkout) in str(refused.value) and "\n" not in str(refused.value)


def test_conf_is_copied_and_what_python_and_editors_leave_is_not(checkout: Path, tmp_path: Path) -> None:
    package = checkout / "src" / "transfergrid"
    for name in ("__pycache__/attempts.cpython-311.pyc", "cluster/__pycache__/x.pyc", ".ipynb_checkpoints/attempts.py"):
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text("anything")
    (package / ".#attempts.py").symlink_to("user@host.1:2")
    code = take_snapshot_of_code(tmp_path / "launch").parent
    assert names_in(code) == ["conf", "origin.json", "src"]
    assert contents(code / "conf") == {"grid/mine.yaml": b"name: mine\n"}
    copied = [p.name for p in code.rglob("*")]
    assert "attempts.py" in copied
    assert [n for n in copied if n == "__pycache__" or n.endswith(".pyc") or n.startswith(".")] == []


def test_an_installed_package_has_no_conf_beside_it(checkout: Path, tmp_path: Path) -> None:
    shutil.rmtree(checkout / "conf")
    assert names_in(take_snapshot_of_code(tmp_path / "launch").parent) == ["origin.json", "src"]


def test_what_runs_from_a_snapshot_is_of_the_commit_and_has_the_hash_of_the_launch(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    source = take_snapshot_of_code(tmp_path / "launch")
    origin = json.loads((source.parent / "origin.json").read_text())
    code_hash = hash_of(checkout / "src" / "transfergrid")
    assert origin == {"git_commit": COMMIT, "git_dirty": True, "code_hash": code_hash}
    program = (
        "import transfergrid; from transfergrid.store.provenance import code_hash, git_state;"
        "print(transfergrid.__file__, code_hash(), *git_state())"
    )
    told = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env=os.environ | {"PYTHONPATH": import_path(source)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert told == [str(source / "transfergrid" / "__init__.py"), code_hash, COMMIT, "True"]


@pytest.mark.parametrize(("given", "expected"), [(None, "/snap/src"), ("", "/snap/src"), ("/a:/b", "/snap/src:/a:/b")])
def test_a_snapshot_goes_in_front_of_what_the_user_has_on_the_path(
    monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if given is not None:
        monkeypatch.setenv("PYTHONPATH", given)
    assert import_path(Path("/snap/src")) == expected
