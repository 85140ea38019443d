"""Real W&B clients against the stand-in server: nothing of wandb is patched, and nothing they ask for is unknown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb_client import Http, real_wandb
from wandb_faults import Die
from wandb_server import StandIn

pytestmark = pytest.mark.wandb


@pytest.fixture()
def server() -> Iterator[StandIn]:
    with StandIn(record_bodies=True) as running:
        yield running
    assert (running.errors, running.unknown_operations) == ([], Counter())


def epochs(server: StandIn, run_id: str) -> list[int]:
    return [row["epoch"] for row in server.run(run_id).history]


# ------------------------------------------------------------------------------------------------------------ live runs
TWO_ATTEMPTS = """
run = start("a", name="A", group="g", job_type="ft", tags=["x", "y"], config={"grid": "q", "lr": 0.1})
run.define_metric("epoch")
run.define_metric("val/*", step_metric="epoch")
for epoch in range(10):
    run.log({"epoch": epoch, "val/acc": epoch / 10})
run.finish(1)
run = start("a", config={"grid": "q", "lr": 0.1})
first_step = run.starting_step
for epoch in range(10, 15):
    run.log({"epoch": epoch, "val/acc": epoch / 10})
run.summary.update({"test/acc": 0.75})
run.finish(0)
start("b").finish(1)
tell(first_step=first_step)
"""


def test_a_resumed_run_holds_every_row_once(server: StandIn, tmp_path: Path) -> None:
    assert real_wandb(server, tmp_path, TWO_ATTEMPTS) == {"first_step": 10}
    run = server.run("a")
    assert epochs(server, "a") == list(range(15))
    assert [row["_step"] for row in run.history] == list(range(15))
    assert (run.name, run.group, run.job_type, run.tags) == ("A", "g", "ft", ["x", "y"])
    assert run.plain_config == {"grid": "q", "lr": 0.1}
    assert (run.summary["test/acc"], run.summary["val/acc"]) == (0.75, 1.4)
    assert (run.state, run.exit_code, server.run("b").state) == ("finished", 0, "failed")
    assert not server.seen_bytes(server.key)


MANY_AT_ONCE = """
from concurrent.futures import ThreadPoolExecutor

def one(number):
    run = start(f"run-{number}", group="g", config={"number": number})
    for epoch in range(5):
        run.log({"epoch": epoch})
    run.finish()

with ThreadPoolExecutor(4) as threads:
    list(threads.map(one, range(20)))
"""


def test_runs_of_several_threads_do_not_mix(server: StandIn, tmp_path: Path) -> None:
    real_wandb(server, tmp_path, MANY_AT_ONCE)
    assert {run.id: run.plain_config["number"] for run in server.runs.values()} == {f"run-{n}": n for n in range(20)}
    assert [epochs(server, f"run-{number}") for number in range(20)] == [[0, 1, 2, 3, 4]] * 20
    assert {run.state for run in server.runs.values()} == {"finished"}


# --------------------------------------------------------------------------------------------- media and artifacts
MEDIA_AND_ARTIFACTS = """
import pathlib
import numpy as np

run = start("a")
run.log({"table": wandb.Table(columns=["a", "b"], data=[[1, 2], [3, 4.5]])})
run.log({"image": wandb.Image(np.zeros((4, 4, 3), np.uint8)), "page": wandb.Html("<b>bold</b>")})
run.log({"cm": wandb.plot.confusion_matrix(y_true=[0, 1, 1], preds=[0, 1, 0], class_names=["cat", "dog"])})
pathlib.Path("sub").mkdir()
pathlib.Path("sub/file.txt").write_text("saved")
run.save("sub/file.txt", base_path=".", policy="now")

def tables(text, alias):
    pathlib.Path("final.csv").write_text(text)
    artifact = wandb.Artifact("final-tables", "comparison", metadata={"grid": "q"}, description="the tables")
    artifact.add_file("final.csv", name="tables/final.csv")
    artifact.add_reference("https://example.org/head.pt", name="head", checksum=False)
    return run.log_artifact(artifact, aliases=[alias]).wait(20)

versions = [tables("1", "first").version, tables("1", "same").version, tables("2", "second").version]
run.use_artifact("final-tables:second")
run.finish()

api = wandb.Api()
found = api.artifact("local/p/final-tables:first")
found.download(root="down")
remote = api.run("local/p/a")
tell(
    versions=versions,
    newest=api.artifact("local/p/final-tables:latest").version,
    all=[one.name for one in api.artifacts("comparison", "local/p/final-tables")],
    metadata=found.metadata,
    downloaded=pathlib.Path("down/tables/final.csv").read_text(),
    logged=sorted(one.name for one in remote.logged_artifacts()),
    used=[one.name for one in remote.used_artifacts()],
    table=api.artifact("local/p/run-a-table:latest").get("table").data,
    saved=remote.file("sub/file.txt").download(root="files").read(),
    size_of_none=remote.file("none.txt").size,
    files=sorted(pathlib.PurePath(one.name).parts[0] for one in remote.files()),
)
"""


def test_tables_images_files_and_artifacts_arrive_and_come_back(server: StandIn, tmp_path: Path) -> None:
    told = real_wandb(server, tmp_path, MEDIA_AND_ARTIFACTS)
    assert told["versions"] == ["v0", "v0", "v1"]
    assert (told["newest"], told["all"]) == ("v1", ["final-tables:v1", "final-tables:v0"])
    assert (told["metadata"], told["downloaded"], told["saved"]) == ({"grid": "q"}, "1", "saved")
    assert told["logged"] == ["final-tables:v0", "final-tables:v1", "run-a-cm_table:v0", "run-a-table:v0"]
    assert (told["used"], told["table"]) == (["final-tables:v1"], [[1, 2], [3, 4.5]])
    assert (told["size_of_none"], told["files"].count("media")) == (0, 4)
    first = server.artifact("final-tables:same", "p")
    assert (first.type, first.version, first.aliases) == ("comparison", 0, ["first", "same"])
    assert first.entries["tables/final.csv"].content == b"1"
    assert first.entries["head"].ref == "https://example.org/head.pt"
    assert server.run("a").files["sub/file.txt"] == b"saved"
    assert {row["image"]["_type"] for row in server.run("a").history if "image" in row} == {"image-file"}


# ----------------------------------------------------------------------------------------------------------------- sync
OFFLINE_THEN_SYNCED = """
import subprocess

folders = []
for epochs in (range(3), range(3, 5)):
    run = start("a", mode="offline", group="g")
    for epoch in epochs:
        run.log({"epoch": epoch})
    folders.append(run.settings.sync_dir)
    run.finish()
subprocess.run([sys.executable, "-m", "wandb", "sync", *folders], check=True, capture_output=True)
tell()
"""


def test_offline_attempts_that_are_synced_make_one_run(server: StandIn, tmp_path: Path) -> None:
    real_wandb(server, tmp_path, OFFLINE_THEN_SYNCED)
    assert epochs(server, "a") == [0, 1, 2, 3, 4]
    assert (server.run("a").group, server.run("a").state) == ("g", "finished")


# ----------------------------------------------------------------------------------------------------------- public API
READ_BACK = """
api = wandb.Api()
run = api.run("local/p/r3")

def refusal(read):
    try:
        read()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def ids(**asked):
    return [one.id for one in api.runs("local/p", per_page=2, **asked)]

told = dict(
    state=run.state, config=dict(run.config), group=run.group, job_type=run.job_type, tags=run.tags,
    lines=run.historyLineCount, last_step=run.lastHistoryStep,
    scanned=[row["epoch"] for row in run.scan_history(page_size=3)],
    chosen=[row["epoch"] for row in run.scan_history(keys=["epoch"])],
    sampled=len(run.history(pandas=False)),
    by_group=ids(filters={"group": "odd"}),
    by_config=ids(filters={"$or": [{"config.number.value": 0}, {"config.number.value": {"$in": [4, 5]}}]}),
    backwards=ids(order="-config.number.value"),
    full=[dict(one.config) for one in api.runs("local/p", lazy=False)],
    no_run=refusal(lambda: api.run("local/p/none")),
    no_project=refusal(lambda: list(api.runs("local/none"))),
)
run.summary.update({"test/acc": 0.5})
run.config["note"] = "new"
run.update()
api.run("local/p/r4").delete()
told["deleted"] = refusal(lambda: start("r4"))
tell(**told)
"""


def test_the_public_interface_reads_and_changes_runs(server: StandIn, tmp_path: Path) -> None:
    with Http(server.port) as client:
        for number in range(6):
            group = "odd" if number % 2 else "even"
            fields = {"groupName": group, "jobType": "ft", "tags": ["t"], "config": {"number": number}}
            client.make_run(f"r{number}", displayName=f"R{number}", **fields)
            client.stream(
                f"r{number}", [{"_step": step, "epoch": step} for step in range(8)], complete=True, exitcode=0
            )
    told = real_wandb(server, tmp_path, READ_BACK, init_s=1)
    assert (told["state"], told["config"], told["group"], told["job_type"]) == ("finished", {"number": 3}, "odd", "ft")
    assert (told["tags"], told["lines"], told["last_step"]) == (["t"], 8, 7)
    assert told["scanned"] == told["chosen"] == list(range(8))
    assert (told["sampled"], told["by_group"]) == (8, ["r1", "r3", "r5"])
    assert (told["by_config"], told["backwards"]) == (["r0", "r4", "r5"], ["r5", "r4", "r3", "r2", "r1", "r0"])
    assert told["full"] == [{"number": number} for number in range(6)]
    assert told["no_run"].startswith("CommError: Could not find run")
    assert told["no_project"] == "ValueError: Could not find project none"
    assert server.run("r3").summary == {"test/acc": 0.5}
    assert server.run("r3").plain_config == {"number": 3, "note": "new"}
    assert "previously created and deleted" in told["deleted"]


# -------------------------------------------------------------------------------------------------------------- reports
REPORT = """
import wandb_workspaces.reports.v2 as wr

runs = wr.Runset(entity="local", project="p", filters="Config('grid') == 'q'", groupby=["config.model"])
panels = [wr.LinePlot(x="epoch", y=["val/acc"]), wr.RunComparer(diff_only=True)]
blocks = [wr.H1("Results"), wr.MarkdownBlock("| a |"), wr.PanelGrid(runsets=[runs], panels=panels)]
report = wr.Report(entity="local", project="p", title="Comparison of q", blocks=blocks).save()
again = wr.Report.from_url(report.url)
kinds = [type(block).__name__ for block in again.blocks]
again.blocks = [wr.H1("Changed")]
again.save()
listed = [one.display_name for one in wandb.Api().reports("local/p")]
tell(id=report.id, again=again.id, kinds=kinds, title=again.title, listed=listed)
"""


def test_a_report_is_saved_read_and_changed_in_place(server: StandIn, tmp_path: Path) -> None:
    with Http(server.port) as client:
        client.make_run("a", config={"grid": "q"})
    told = real_wandb(server, tmp_path, REPORT)
    assert told["kinds"] == ["H1", "MarkdownBlock", "PanelGrid"]
    assert told["listed"] == [told["title"]] == ["Comparison of q"]
    (report,) = server.reports.values()
    assert report["id"] == told["id"] == told["again"]
    assert report["displayName"] == "Comparison of q"
    headings = [block["children"][0]["text"] for block in report["spec"]["blocks"] if block["type"] == "heading"]
    assert headings == ["Changed"]


# --------------------------------------------------------------------------------------------------------------- faults
TEN_ROWS = """
run = start("a")
for epoch in range(10):
    run.log({"epoch": epoch})
run.finish()
tell()
"""

ONE_FAULT_EACH = """
import os
import urllib.request

def control(path, **asked):
    urllib.request.urlopen(os.environ["WANDB_BASE_URL"] + path, json.dumps(asked).encode()).close()

for run_id, (what, how, after) in CASES.items():
    control("/_fail", what=what, how=how, times=1, after=after)
    run = start(run_id)
    for epoch in range(10):
        run.log({"epoch": epoch})
    run.finish()
    control("/_clear")
tell()
"""


@pytest.mark.slow
def test_after_one_fault_the_client_brings_every_row_once(server: StandIn, tmp_path: Path) -> None:
    """After work whose answer was lost the client sends the rows again, to the same offset."""
    cases = {
        "not made": ("UpsertBucket", 500, 0),
        "made but unanswered": ("UpsertBucket", ["AfterThen", "Reset"], 0),
        "not told": ("RunResumeStatus", "Reset", 0),
        "too fast": ("file_stream", 429, 1),
        "refused": ("file_stream", 503, 1),
        "late": ("file_stream", ["Delay", 0.5], 1),
        "taken but unanswered": ("file_stream", ["AfterThen", 500], 1),
        "not stored": ("storage", "Reset", 0),
    }
    ids = {name: name.replace(" ", "-") for name in cases}
    real_wandb(server, tmp_path, f"CASES = { ({ids[name]: case for name, case in cases.items()})!r}" + ONE_FAULT_EACH)
    assert {name: epochs(server, ids[name]) for name in cases} == dict.fromkeys(cases, list(range(10)))
    assert {name: server.run(ids[name]).state for name in cases} == dict.fromkeys(cases, "finished")
    received = {name: server.run(ids[name]).history_lines.received for name in cases}
    assert received == dict.fromkeys(cases, 10) | {"taken but unanswered": 20}


def test_a_refused_stream_leaves_a_run_that_never_ends(server: StandIn, tmp_path: Path) -> None:
    """The client gives up and raises nothing: whoever wants the rows must look at the server."""
    server.fail("file_stream", 404)
    real_wandb(server, tmp_path, TEN_ROWS)
    assert (server.run("a").state, server.run("a").history) == ("running", [])


DEATH_IN_MID_RUN = """
run = start("a")
for epoch in range(10):
    run.log({"epoch": epoch})
folder = run.settings.sync_dir
run.finish()
tell(folder=folder)
"""


@pytest.mark.slow
def test_what_a_dead_server_missed_is_synced_when_it_lives_again(server: StandIn, tmp_path: Path) -> None:
    server.fail("file_stream", Die())
    told = real_wandb(server, tmp_path, DEATH_IN_MID_RUN, finish_s=1)
    assert not server.is_running
    assert (server.run("a").state, server.run("a").history) == ("running", [])
    server.clear_faults()
    server.start()
    sync = f"""
import subprocess
command = [sys.executable, "-m", "wandb", "sync", "--include-online", {told["folder"]!r}]
subprocess.run(command, check=True, capture_output=True)
"""
    real_wandb(server, tmp_path, sync)
    assert (epochs(server, "a"), server.run("a").state) == (list(range(10)), "finished")
