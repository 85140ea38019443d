"""What produced a record: the code by its hash, the commit it came from."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from cluster_cases import as_job

from transfergrid.store import provenance
from transfergrid.store.provenance import hash_of


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """One module, one JSON file, in a checkout of their own."""
    folder = tmp_path / "checkout" / "src" / "package"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.py").write_text("x = 1\n")
    (folder / "inner" / "b.json").write_text("{}")
    return folder


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def state_of(package: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str | None, bool]:
    monkeypatch.setattr(provenance, "PACKAGE", package)
    monkeypatch.setattr(provenance, "ORIGIN", package.parents[1] / "origin.json")
    return provenance.git_state.__wrapped__()


def test_the_hash_changes_with_every_name_and_content_of_python_and_json(package: Path) -> None:
    seen = {hash_of(package)}
    assert {len(h) for h in seen} == {16}
    (package / "a.py").write_text("x = 2\n")
    seen.add(hash_of(package))
    (package / "inner" / "b.json").write_text("[]")
    seen.add(hash_of(package))
    (package / "a.py").rename(package / "c.py")
    seen.add(hash_of(package))
    (package / "d.py").touch()
    seen.add(hash_of(package))
    (package / "d.py").rename(package / "inner" / "d.py")
    seen.add(hash_of(package))
    assert len(seen) == 6


def test_it_does_not_change_with_what_python_and_editors_leave_beside_the_code(package: Path) -> None:
    before = hash_of(package)
    for name in ("__pycache__/a.cpython-311.pyc", "notes.txt", ".ipynb_checkpoints/a.py", ".a.py.swp"):
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text("anything")
    (package / ".#a.py").symlink_to("user@host.1234:5678")  # how emacs marks a file that is being edited
    assert hash_of(package) == before


def test_it_is_the_same_wherever_the_package_lies(package: Path, tmp_path: Path) -> None:
    before = hash_of(package)
    moved = tmp_path / "elsewhere"
    package.rename(moved)
    assert hash_of(moved) == before


def test_the_commit_and_whether_tracked_files_differ_from_it(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = package.parents[1]
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "first")
    commit = git(root, "rev-parse", "HEAD")
    assert len(commit) == 40
    assert state_of(package, monkeypatch) == (commit, False)
    (root / "untracked.txt").touch()
    assert state_of(package, monkeypatch) == (commit, False)
    (package / "a.py").write_text("x = 3\n")
    assert state_of(package, monkeypatch) == (commit, True)


def test_a_snapshot_tells_the_commit_it_was_taken_from(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = package.parents[1] / "origin.json"
    origin.write_text(json.dumps({"git_commit": "c" * 40, "git_dirty": True, "code_hash": "0"}))
    assert state_of(package, monkeypatch) == ("c" * 40, True)
    origin.write_text("{ torn")
    assert state_of(package, monkeypatch) == (None, False)


def test_outside_a_checkout_and_without_git_nothing_is_known(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert state_of(package, monkeypatch) == (None, False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert state_of(package, monkeypatch) == (None, False)


def test_a_record_names_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    as_job(monkeypatch, "123")
    told = provenance.provenance()
    assert sorted(told) == ["code_hash", "git_commit", "git_dirty", "host", "machine", "python", "slurm_job_id"]
    assert told["slurm_job_id"] == "123" and told["code_hash"] == provenance.code_hash()
    as_job(monkeypatch, None)
    assert provenance.provenance()["slurm_job_id"] is None
