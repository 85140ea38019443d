"""A grid's final tables in W&B: real wandb against the stand-in server, and every number read where it arrived."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import page_cases
import pytest
import wandb
import wandb_report_cases as cases
from wandb_server import StandIn
from wandb_state import ServerRun

from transfergrid.cli.console import FAILED, run_script
from transfergrid.cli.report import report
from transfergrid.paths import StorePaths
from transfergrid.tracking.account import DEFAULT_URL, Account, Unreachable
from transfergrid.tracking.client import SETTINGS
from transfergrid.tracking.remote import Remote
from transfergrid.tracking.wandb_report import Table, WandbReport
from transfergrid.tracking.wandb_report_sending import SentReport, differences, send_report
from transfergrid.tracking.workspace import report_blocks

pytestmark = pytest.mark.wandb
PROJECT = "project"
CANARY = "c0ffee" * 7  # a key that is found nowhere by chance


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with StandIn(record_bodies=True, key=CANARY) as running:
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path / "results")


def sent(server: StandIn, store: StorePaths, wandb_report: WandbReport) -> SentReport:
    """Sent as it should be: nothing that is not as it was sent."""
    there = send_report(Account(server.url, PROJECT), store, wandb_report, say=lambda text: None, patience_s=0)
    assert there.problems == ()
    return there


def summary_runs(server: StandIn) -> dict[str, ServerRun]:
    """Those of the table's rows, by the name of the row."""
    return {run.name: run for run in server.runs.values() if run.tags == ["summary:g"]}


def told(run: ServerRun) -> dict[str, Any]:
    return {name: value for name, value in run.summary.items() if not name.startswith("_")}


def table_of(run: ServerRun, name: str) -> list[dict[str, Any]]:
    """The table's file, as the server has it."""
    content = json.loads(run.files[run.summary[f"final/{name}"]["path"]])
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


# ---------------------------------------------------------------------------------------------- by the command itself
def test_a_number_is_the_same_in_csv_page_table_summary_run_and_report(
    server: StandIn, store: StorePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    page_cases.small_grid(store)
    asked = ["grid=small", f"store.dir={store.root}", "figures=false", "publish=true", f"project={PROJECT}"]
    assert report(asked) == FAILED  # because a row has failed and one is missing, as without publishing
    said = capsys.readouterr().out
    assert "all is there: http" in said
    folder = store.report("small")
    lines = csv.DictReader((folder / "comparison.csv").read_text().splitlines())
    line = next(line for line in lines if line["model"] == "resnet18+googlenet")
    accuracy, low = float(line["test_accuracy"]), float(line["ci95_low"])
    assert accuracy == pytest.approx(0.9525)
    # The run that stands for the row, and the table that the report's panel shows.
    run = next(r for r in server.runs.values() if r.plain_config.get("model") == "resnet18+googlenet")
    row = next(r for r in table_of(server.run("report-small"), "comparison") if r["model"] == "resnet18+googlenet")
    assert (run.summary["test_accuracy"], run.summary["ci95_low"]) == (accuracy, low)
    assert (row["test_accuracy"], row["ci95_low"]) == (accuracy, low)
    # As it is printed: on the page, in the report's Markdown, and on the terminal.
    (spec,) = [made["spec"] for made in server.reports.values()]
    (markdown,) = [b["content"] for b in spec["blocks"] if "| resnet18+googlenet |" in b.get("content", "")]
    for text in (markdown, (folder / "index.html").read_text(), said):
        assert "95.2 [92.1, 98.4]" in text
    # The key is nowhere but in the header that it is for.
    assert not server.seen_bytes(server.key)
    assert not any(server.key.encode() in path.read_bytes() for path in store.root.rglob("*") if path.is_file())
    # Not by chance of the two: every row has its run, with the row's own accuracy.
    table = {(r["model"], r["phase"]): r["test_accuracy"] for r in table_of(server.run("report-small"), "comparison")}
    runs = {
        (r.plain_config["model"], r.plain_config["phase"]): r.summary.get("test_accuracy")
        for r in server.runs.values()
        if r.job_type == "summary"
    }
    assert table == runs and len(runs) == 5


def test_without_a_key_the_report_is_written_and_one_line_says_what_is_missing(
    store: StorePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page_cases.small_grid(store)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    asked = ["report.py", "grid=small", f"store.dir={store.root}", "figures=false", "publish=true"]
    monkeypatch.setattr("sys.argv", asked)
    assert run_script(report) == FAILED
    assert (store.report("small") / "index.html").exists()
    assert capsys.readouterr().err == (
        "error: no W&B key for http://127.0.0.1:9 on this machine; run `wandb login`, or set WANDB_API_KEY\n"
    )


# ------------------------------------------------------------------------------------------------------ again and again
def test_publishing_again_changes_what_has_changed_and_leaves_no_double(
    server: StandIn, store: StorePaths, tmp_path: Path
) -> None:
    rows = [cases.row(i) for i in range(4)]
    first = sent(server, store, cases.wandb_report(rows, tmp_path / "report"))
    versions = set(server.run("report-g").logged_artifacts)
    assert (first.runs, first.written) == (4, 4)
    unchanged = sent(server, store, cases.wandb_report(rows, tmp_path / "report"))
    assert (unchanged.report_url, unchanged.written) == (first.report_url, 0)
    assert len(server.run("report-g").history) == 1  # the same figures are not kept twice
    assert server.counts()["upsertView"] == 1
    assert len(server.reports) == 1 and len(server.runs) == 5

    # One number changes, one cell becomes empty, one row goes.
    changed = [rows[0] | {"test_accuracy": 0.123456789012345678, "verdict": None}, *rows[1:3]]
    third = sent(server, store, cases.wandb_report(changed, tmp_path / "report"))
    assert (third.report_url, third.written) == (first.report_url, 1)
    assert len(server.reports) == 1 and len(server.runs) == 5
    run = summary_runs(server)["mnist · model000 · finetune"]
    assert run.summary["test_accuracy"] == 0.123456789012345678
    assert "verdict" not in told(run)
    assert len(summary_runs(server)) == 3
    (gone,) = [run for run in server.runs.values() if run.tags == ["former:g"]]
    assert gone.name == "cifar10 · model001 · finetune"
    assert gone.plain_config["current"] is False
    assert gone.summary["test_accuracy"] == rows[3]["test_accuracy"]  # it keeps what was said of it
    assert len(table_of(server.run("report-g"), "comparison")) == 3
    assert len(set(server.run("report-g").logged_artifacts)) > len(versions)

    # The row comes back, and its run with it.
    sent(server, store, cases.wandb_report([*changed, rows[3]], tmp_path / "report"))
    assert len(summary_runs(server)) == 4 and len(server.runs) == 5
    assert summary_runs(server)["cifar10 · model001 · finetune"].plain_config["current"] is True


def test_what_reviewers_wrote_stays_and_a_report_that_is_gone_is_made_anew(
    server: StandIn, store: StorePaths, tmp_path: Path
) -> None:
    wandb_report = cases.wandb_report([cases.row(0)], tmp_path / "report")
    url = sent(server, store, wandb_report).report_url
    (made,) = server.reports.values()
    remark = {"type": "markdown-block", "children": [{"text": ""}], "content": "We take model000."}
    assert made["spec"]["blocks"][-2]["children"][0]["text"] == "Discussion"
    made["spec"]["blocks"].insert(-1, remark)
    made["spec"]["blocks"].insert(1, remark | {"content": "in the machine's part"})
    made["spec"]["discussionThreads"] = [{"id": "thread"}]

    elsewhere = StorePaths(tmp_path / "another machine")  # knows the report from the server alone
    assert sent(server, elsewhere, wandb_report).report_url == url
    (made,) = server.reports.values()
    assert [b["content"] for b in made["spec"]["blocks"] if b["type"] == "markdown-block"] == [
        wandb_report.headline,
        wandb_report.markdown_table,
        wandb_report.failures,
        "We take model000.",
    ]
    assert made["spec"]["discussionThreads"] == [{"id": "thread"}]
    assert made["spec"]["width"] == "fluid"

    server.reports.clear()
    new = sent(server, store, wandb_report).report_url
    assert new != url and len(server.reports) == 1
    assert server.run("report-g").summary["report_url"] == new
    assert json.loads((store.wandb / "reports" / "g.json").read_text())["url"] == new


def test_a_run_that_somebody_deleted_gets_another_id_and_keeps_it(
    server: StandIn, store: StorePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SETTINGS, "init_timeout", 2.0)  # W&B asks for the id that it cannot have until then
    wandb_report = cases.wandb_report([cases.row(0), cases.row(1)], tmp_path / "report")
    sent(server, store, wandb_report)
    for run_id in (wandb_report.report_id, wandb_report.summary_id(wandb_report.rows[0])):
        server.state.delete_run(server.run(run_id))
    assert sent(server, store, wandb_report).written == 1
    assert sent(server, store, wandb_report).written == 0
    assert sorted(run.id for run in server.runs.values()) == sorted(
        [
            "report-g-2",
            wandb_report.summary_id(wandb_report.rows[0]) + "-2",
            wandb_report.summary_id(wandb_report.rows[1]),
        ]
    )


# ------------------------------------------------------------------------------------------------------------ in full
def test_two_hundred_rows_arrive_whole_and_tables_are_not_cut(
    server: StandIn, store: StorePaths, tmp_path: Path
) -> None:
    rows = [cases.row(i) for i in range(200)]
    made = cases.wandb_report(rows, tmp_path / "report")
    long = Table(columns=("i", "share"), rows=tuple((i, i / 3) for i in range(12_000)))  # W&B's own cut is at 10,000
    made = replace(made, tables={**made.tables, "long": long})
    assert sent(server, store, made).written == 200
    assert len(table_of(server.run("report-g"), "long")) == 12_000
    assert table_of(server.run("report-g"), "comparison") == rows
    assert sorted(r.summary["test_accuracy"] for r in summary_runs(server).values()) == sorted(
        row["test_accuracy"] for row in rows
    )
    assert {r.state for r in server.runs.values()} == {"finished"}
    # Nothing of W&B stays behind in the store but what is to be kept.
    assert sorted(p.name for p in store.wandb.rglob("*") if p.is_file()) == ["g.json", "publish-g.lock"]
    assert server.unknown_operations == {}


def test_what_is_not_as_it_was_sent_is_told_line_by_line(server: StandIn, store: StorePaths, tmp_path: Path) -> None:
    wandb_report = cases.wandb_report([cases.row(i) for i in range(2)], tmp_path / "report")
    url = sent(server, store, wandb_report).report_url
    summary_runs(server)["mnist · model000 · finetune"].summary["gpu_s"] = 0.2
    summary_runs(server)["cifar10 · model000 · finetune"].tags = []
    report_run = server.run("report-g")
    path = report_run.summary["final/claims"]["path"]
    report_run.files[path] = report_run.files[path].replace(b"0.04", b"0.05")
    del report_run.summary["final/comparison"], report_run.summary["figures/accuracy-mnist"]
    (made,) = server.reports.values()
    (line_plot,) = [p for p in _panels(made["spec"]) if p["config"].get("chartTitle") == "Learning rates"]
    line_plot["config"]["limit"] = 10
    wandb_report.files[0].write_text("other bytes")
    assert _differences(server, wandb_report, url, tmp_path) == [
        "row mnist · model000 · finetune: gpu_s is 0.2 on the server, 0.1 here",
        f"row cifar10 · model000 · finetune: run {wandb_report.summary_id(wandb_report.rows[1])} is not on the server",
        "table final/comparison is not on the server",
        "table final/claims, row 1: p is 0.05 on the server, 0.04 here",
        "figure figures/accuracy-mnist is not on the server",
        "artifact final-tables-g: comparison.csv has other bytes on the server",
        f"block 14 of the report {url} is not what was sent",
    ]
    server.reports.clear()
    assert _differences(server, wandb_report, url, tmp_path)[-1] == f"the report {url} is not on the server"


def _differences(server: StandIn, wandb_report: WandbReport, url: str, folder: Path) -> list[str]:
    remote, blocks = Remote(Account(server.url, PROJECT, "local")), report_blocks(wandb_report)
    found = differences(remote, wandb_report, url, blocks, folder)
    wandb.teardown()
    return found


def _panels(spec: dict[str, Any]) -> list[dict[str, Any]]:
    grids = [block["metadata"] for block in spec["blocks"] if block["type"] == "panel-grid"]
    return [panel for grid in grids for panel in grid["panelBankSectionConfig"]["panels"]]


def test_a_report_that_was_broken_off_is_completed_by_the_next(
    server: StandIn, store: StorePaths, tmp_path: Path
) -> None:
    wandb_report = cases.wandb_report([cases.row(i) for i in range(2)], tmp_path / "report")
    server.fail("upsertView", 403)  # the report comes after the rows, so these are there
    with pytest.raises(Unreachable, match="403.* publish again to complete it"):
        sent(server, store, wandb_report)
    server.clear_faults()
    assert (len(summary_runs(server)), len(server.reports)) == (2, 0)
    assert sent(server, store, wandb_report).written == 0
    assert len(server.reports) == 1


def test_a_server_that_is_not_there_is_said_at_once(server: StandIn, store: StorePaths, tmp_path: Path) -> None:
    wandb_report = cases.wandb_report([cases.row(0)], tmp_path / "report")
    server.stop()
    with pytest.raises(Unreachable, match="does not answer .* publish again where it does"):
        sent(server, store, wandb_report)


def test_the_address_of_wandbs_own_service_is_the_clients() -> None:
    assert wandb.Settings.model_fields["base_url"].default == DEFAULT_URL
