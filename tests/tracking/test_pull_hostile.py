"""A pull from servers that lie, break off or refuse: nothing escapes, nothing crashes, what it was is said."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pull_cases import make_run, pull_g, put_grid, run_report, small_grid, stand_in
from wandb_server import StandIn

from transfergrid.paths import StorePaths
from transfergrid.tracking import pull, remote
from transfergrid.tracking.account import Account, Unreachable
from transfergrid.tracking.client import make_api, wandb_session


@pytest.fixture
def server() -> Iterator[StandIn]:
    with stand_in() as found:
        yield found


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "store")


@pytest.fixture
def pulled(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "pulled")


# ----------------------------------------------------------------------------------------------------- hostile servers
@pytest.mark.wandb
@pytest.mark.parametrize("run_id", ["../../evil", "..", "a/b", "/evil", "", "x" * 300, "a\x1b[2Jb"])
def test_a_run_whose_name_leads_elsewhere_is_left_alone(
    server: StandIn, store: StorePaths, pulled: StorePaths, run_id: str
) -> None:
    small_grid(store, seeds=1)
    put_grid(server, store)
    grid = server.run("grid-g")
    listed = json.loads(grid.files["grid.json"])
    listed["configurations"].append(listed["configurations"][0] | {"run_id": run_id})
    grid.files["grid.json"] = json.dumps(listed).encode()
    hostile = make_run(server, run_id, job_type="probe", tags=["grid:g"])
    hostile.files["record.json"] = b"{}"
    around = set(pulled.root.parent.rglob("*"))
    result, _ = pull_g(server, pulled)
    assert len(result.problems) == 1 and result.problems[0].endswith("is no run that a grid can hold")
    assert result.problems[0].isprintable()
    made = set(pulled.root.parent.rglob("*")) - around
    assert all(path.is_relative_to(pulled.root) for path in made)
    assert sorted(p.name for p in pulled.runs.iterdir()) == sorted(result.run_ids)


@pytest.mark.wandb
def test_a_link_in_a_run_s_place_is_not_followed(
    server: StandIn, store: StorePaths, pulled: StorePaths, tmp_path: Path
) -> None:
    run_id = small_grid(store, seeds=1)[0].run_id
    put_grid(server, store)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "record.json").write_text("mine")
    pulled.runs.mkdir(parents=True)
    (pulled.runs / run_id).symlink_to(elsewhere)
    result, _ = pull_g(server, pulled)
    assert result.problems == (f"{run_id}: {pulled.runs / run_id} is a link, which no pull makes; remove it",)
    assert [(p.name, p.read_text()) for p in elsewhere.iterdir()] == [("record.json", "mine")]


@pytest.mark.wandb
@pytest.mark.parametrize("content", [b"not JSON", b'"text"', b"[]", b"{}", b"[" * 100_000, b"\xff\x00"])
def test_a_record_that_is_none_is_a_problem_of_its_row(
    server: StandIn, store: StorePaths, pulled: StorePaths, content: bytes
) -> None:
    run_id = small_grid(store, seeds=1)[0].run_id
    put_grid(server, store)
    pull_g(server, pulled)
    server.run(run_id).files["record.json"] = content
    result, _ = pull_g(server, pulled)
    assert len(result.problems) == 1
    assert result.problems[0].startswith(f"{run_id}: record.json is no record of this version (")
    assert run_id not in result.run_ids and not pulled.run(run_id).record.exists()


@pytest.mark.wandb
def test_a_record_of_another_run_is_not_taken(server: StandIn, store: StorePaths, pulled: StorePaths) -> None:
    first, second, *_ = (run.run_id for run in small_grid(store, seeds=1))
    put_grid(server, store)
    server.run(first).files["record.json"] = server.run(second).files["record.json"]
    result, _ = pull_g(server, pulled)
    assert result.problems == (f"{first}: record.json is that of another run ({second})",)


@pytest.mark.wandb
def test_files_of_absurd_size_are_refused(
    server: StandIn, store: StorePaths, pulled: StorePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = (run.run_id for run in small_grid(store, seeds=1))
    put_grid(server, store)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("test_index.npy", b"0" * 2_000_000)
    server.run(first).files["predictions.npz"] = (tmp_path / "bomb.npz").read_bytes()
    server.run(second).files["predictions.npz"] = b"0" * 1_000_001
    monkeypatch.setitem(pull.LARGEST_BYTES, "predictions.npz", 1_000_000)
    result, _ = pull_g(server, pulled)
    assert result.problems == (
        f"{first}: predictions.npz unpacks to 2000000 bytes, larger than any of its kind; not kept",
        f"{second}: predictions.npz of 1000001 bytes is larger than any of its kind; not downloaded",
    )
    assert {first, second} <= set(result.run_ids)
    assert not pulled.run(first).predictions.exists() and not pulled.run(second).predictions.exists()


@pytest.mark.wandb
def test_a_history_without_end_is_not_read(server: StandIn, store: StorePaths, pulled: StorePaths) -> None:
    run_id = small_grid(store, seeds=1)[0].run_id
    put_grid(server, store)
    run = server.run(run_id)
    run.history_lines.put(run.history_lines.count, [json.dumps({"line": 7, "kind": "step", "_step": 10**15})])
    result, _ = pull_g(server, pulled)
    assert result.problems == (f"{run_id}: its history ends at step {10**15}, which no run reaches; not read",)


# -------------------------------------------------------------------------------------------- servers that do not serve
@pytest.mark.wandb
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["project=other"], 2, "has no project local/other"),
        (["entity=nobody"], 2, "has no project nobody/transfergrid"),
        ([], 2, "no grid 'h' is in local/transfergrid; grids there: g"),
    ],
)
def test_an_argument_that_names_nothing_on_the_server_is_told_in_one_line(
    server: StandIn,
    store: StorePaths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    small_grid(store, seeds=1)
    put_grid(server, store)
    grid = "h" if arguments == [] else "g"
    cache = f"cache.dir={tmp_path / 'cache'}"
    assert run_report(monkeypatch, "source=wandb", cache, *arguments, grid=grid) == code
    assert said in capsys.readouterr().err


@pytest.mark.wandb
def test_a_key_that_is_refused_and_a_server_that_is_silent_are_told_in_one_line(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = f"cache.dir={tmp_path / 'cache'}"
    os.environ["WANDB_API_KEY"] = "a" * 40
    assert run_report(monkeypatch, "source=wandb", cache) == 1
    refused = capsys.readouterr().err
    assert refused.startswith(f"error: {server.url}: it does not say whose key this is (user is not logged in); for ")
    os.environ["WANDB_API_KEY"] = server.key
    server.stop()
    assert run_report(monkeypatch, "source=wandb", cache) == 1
    silent = capsys.readouterr().err
    assert silent.startswith(f"error: {server.url} does not answer (")
    assert refused.count("\n") == silent.count("\n") == 1


@pytest.mark.wandb
def test_a_server_that_fails_when_the_key_is_checked_is_not_taken_for_one_that_refuses_the_key(
    server: StandIn, store: StorePaths
) -> None:
    server.fail("graphql", 500)
    silent = pytest.raises(Unreachable, match="it fails or is silent when asked whose key this is; try again")
    with wandb_session(store, server.url), silent:
        make_api(Account(server.url, "p"), timeout_s=1)


@pytest.mark.wandb
@pytest.mark.parametrize("what", ["Runs", "RunFiles", "storage", "HistoryPage"])
def test_a_server_that_falls_silent_ends_the_pull_and_the_next_completes_it(
    server: StandIn, store: StorePaths, pulled: StorePaths, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    small_grid(store, seeds=1)
    put_grid(server, store)
    monkeypatch.setattr(remote, "ANSWER_TIMEOUT_S", 1)
    monkeypatch.setattr(remote, "TRANSFER_TIMEOUT_S", 1.0)
    server.fail(what, 500, after=1)
    with pytest.raises(Unreachable, match="did not answer in time"):
        pull_g(server, pulled)
    server.clear_faults()
    result, said = pull_g(server, pulled)
    assert (len(result.run_ids), result.missing, result.problems, said) == (5, (), (), [])


@pytest.mark.wandb
def test_a_file_that_cannot_be_had_is_a_problem_and_no_row_is_said_to_be_lacking(
    server: StandIn, store: StorePaths, pulled: StorePaths
) -> None:
    small_grid(store, seeds=1)
    put_grid(server, store)
    server.fail("storage", 404, after=1)
    result, said = pull_g(server, pulled)
    assert result.missing == () and result.run_ids == () and said == []
    assert len(result.problems) == 3 and all("404" in problem for problem in result.problems)
