"""The stand-in W&B server by its protocol: what it remembers, how it answers, and that each fault does what it says."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb_client import Http
from wandb_faults import AfterThen, BlackHole, Delay, Die, Garbage, Reset
from wandb_server import KEY, StandIn


@pytest.fixture()
def server() -> Iterator[StandIn]:
    with StandIn(record_bodies=True) as running:
        yield running
    assert running.errors == []


@pytest.fixture()
def client(server: StandIn) -> Iterator[Http]:
    with Http(server.port) as http:
        yield http


def rows(*steps: int) -> list[dict[str, Any]]:
    return [{"_step": step, "epoch": step} for step in steps]


def epochs(server: StandIn, run_id: str) -> list[int]:
    return [row["epoch"] for row in server.run(run_id).history]


# --------------------------------------------------------------------------------------------------- what it remembers
def test_a_chunk_that_is_sent_again_takes_the_place_of_the_first(server: StandIn, client: Http) -> None:
    client.make_run("a")
    assert client.stream("a", rows(0, 1, 2)) == 200
    assert client.stream("a", rows(1, 2, 3), offset=1) == 200
    assert epochs(server, "a") == [0, 1, 2, 3]
    assert server.run("a").history_lines.received == 6


@pytest.mark.parametrize(("exit_code", "state"), [(0, "finished"), (1, "failed"), (143, "failed")])
def test_the_exit_code_decides_the_state_of_a_run(server: StandIn, client: Http, exit_code: int, state: str) -> None:
    client.make_run("a")
    assert server.run("a").state == "running"
    client.stream("a", rows(0), complete=True, exitcode=exit_code)
    assert (server.run("a").state, server.run("a").exit_code) == (state, exit_code)


def test_the_resume_status_tells_the_truth(server: StandIn, client: Http) -> None:
    asked = {"entity": "local", "project": "p", "name": "a"}
    assert client.graphql("RunResumeStatus", **asked)[1]["data"]["model"] is None
    client.make_run("b")
    assert client.graphql("RunResumeStatus", **asked)[1]["data"]["model"]["bucket"] is None
    client.make_run("a", config={"lr": 0.1}, tags=["x"])
    client.stream("a", rows(0, 1) + [{"_step": 2, "loss": float("nan")}])
    bucket = client.graphql("RunResumeStatus", **asked)[1]["data"]["model"]["bucket"]
    assert (bucket["historyLineCount"], bucket["eventsLineCount"], bucket["tags"]) == (3, 0, ["x"])
    assert json.loads(json.loads(bucket["historyTail"])[0]) == {"_step": 2, "loss": "NaN"}
    assert json.loads(bucket["config"]) == {"lr": {"value": 0.1}}


def test_the_id_of_a_deleted_run_is_refused_for_ever(server: StandIn, client: Http) -> None:
    node = client.make_run("a")
    assert client.graphql("DeleteRun", id=node["id"])[0] == 200
    assert server.runs == {}
    status, answer = client.graphql("UpsertBucket", name="a", project="p")
    assert status == 409
    assert "previously created and deleted" in answer["errors"][0]["message"]


def test_a_report_that_is_saved_again_stays_one_report(server: StandIn, client: Http) -> None:
    fields = {"projectName": "p", "entityName": "local", "type": "runs", "name": "n", "displayName": "A"}
    made = client.graphql("upsertView", spec='{"blocks": []}', **fields)[1]["data"]["upsertView"]["view"]
    client.graphql("upsertView", id=made["id"], spec='{"blocks": [1]}', **fields)
    assert {key: report["spec"] for key, report in server.reports.items()} == {made["id"]: {"blocks": [1]}}


def test_state_outlives_the_death_of_the_server(server: StandIn, client: Http) -> None:
    client.make_run("a")
    port = server.port
    server.stop()
    with pytest.raises(OSError):
        client.graphql("Viewer")
    client.connection.close()
    with Http(port) as other, pytest.raises(ConnectionRefusedError):
        other.graphql("Viewer")
    server.start()
    assert server.port == port
    assert client.stream("a", rows(0)) == 200


# ------------------------------------------------------------------------------------------------------------- look-ups
@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, ["a", "b", "c"]),
        ({"group": "g1"}, ["a", "b"]),
        ({"jobType": "ft"}, ["b", "c"]),
        ({"job_type": {"$ne": "ft"}}, ["a"]),
        ({"tags": "seed-0"}, ["a", "c"]),
        ({"tags": {"$in": ["seed-1", "seed-2"]}}, ["b"]),
        ({"config.grid.value": "quickstart"}, ["a", "c"]),
        ({"config.optimizer.value.lr": 0.1}, ["b"]),
        ({"config.grid": {"$nin": ["quickstart"]}}, ["b"]),
        ({"$and": [{"group": "g1"}, {"$or": [{"name": "a"}, {"name": "c"}]}]}, ["a"]),
        ({"summary_metrics.test/acc": {"$gte": 0.5}}, ["c"]),
        ({"summary_metrics.test/acc": {"$exists": False}}, ["a"]),
        ({"display_name": {"$regex": "^[ab]"}}, ["a", "b"]),
    ],
)
def test_filters_choose_runs(client: Http, filters: dict[str, Any], found: list[str]) -> None:
    client.make_run("a", groupName="g1", jobType="fe", tags=["seed-0"], config={"grid": "quickstart"})
    client.make_run("b", groupName="g1", jobType="ft", tags=["seed-1"], config={"optimizer": {"lr": 0.1}})
    client.make_run("c", groupName="g2", jobType="ft", tags=["seed-0"], config={"grid": "quickstart"})
    for run_id, accuracy in (("b", 0.25), ("c", 0.75)):
        summary = {"files": {"wandb-summary.json": {"offset": 0, "content": [json.dumps({"test/acc": accuracy})]}}}
        client.send("POST", f"/files/local/p/{run_id}/file_stream", json.dumps(summary).encode())
    answer = client.graphql("Runs", project="p", entity="local", filters=json.dumps(filters))[1]["data"]["project"]
    assert [edge["node"]["name"] for edge in answer["runs"]["edges"]] == found
    assert answer["runCount"] == len(found)


def test_pages_hold_every_run_once_in_the_order_asked_for(client: Http) -> None:
    for number in (3, 1, 4, 0, 2):
        client.make_run(f"r{number}", config={"number": number})
    names: list[str] = []
    page: dict[str, Any] = {"pageInfo": {"hasNextPage": True, "endCursor": None}}
    while page["pageInfo"]["hasNextPage"]:
        asked = {"order": "-config.number.value", "perPage": 2, "cursor": page["pageInfo"]["endCursor"]}
        page = client.graphql("Runs", project="p", entity="local", **asked)[1]["data"]["project"]["runs"]
        names += [edge["node"]["name"] for edge in page["edges"]]
    assert names == ["r4", "r3", "r2", "r1", "r0"]


def test_a_sampled_history_is_cut_to_its_samples(client: Http) -> None:
    client.make_run("a")
    client.stream("a", rows(*range(100)))
    spec = json.dumps({"keys": ["_step", "epoch"], "samples": 10})
    answer = client.graphql("RunSampledHistory", entity="local", project="p", name="a", specs=[spec])[1]
    (sampled,) = answer["data"]["project"]["run"]["sampledHistory"]
    assert [row["epoch"] for row in sampled] == list(range(0, 100, 10))


# -------------------------------------------------------------------------------------------------- keys and unknowns
def test_another_key_is_refused_everywhere_but_for_health(server: StandIn, client: Http) -> None:
    client.make_run("a")
    with Http(server.port, key="e" * 40) as stranger:
        assert stranger.graphql("Viewer")[0] == 401
        assert stranger.stream("a", rows(0)) == 401
        assert stranger.send("PUT", "/storage/run/local/p/a/f.txt", b"x")[0] == 401
        assert stranger.send("GET", "/healthz")[0] == 200
    assert (server.run("a").history, server.run("a").files) == ([], {})


def test_what_was_received_is_searched_but_for_the_authorization(server: StandIn, client: Http) -> None:
    client.make_run("a", config={"note": "canary"})
    assert server.seen_bytes("canary")
    assert not server.seen_bytes(client.headers["Authorization"].split()[1])
    client.make_run("b", config={"token": KEY})
    assert server.seen_bytes(KEY)


def test_an_unknown_operation_is_refused_and_listed(server: StandIn, client: Http) -> None:
    assert client.graphql("MakeCoffee")[1]["errors"] == [{"message": "Unknown operation MakeCoffee"}]
    assert server.unknown_operations == {"MakeCoffee": 1}
    assert server.requests[-1] == ("POST", "/graphql", "MakeCoffee")


# --------------------------------------------------------------------------------------------------------------- faults
@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 429, 500, 503])
def test_a_status_is_answered_and_nothing_is_done(server: StandIn, client: Http, status: int) -> None:
    client.make_run("a")
    server.fail("file_stream", status)
    assert client.stream("a", rows(0)) == status
    assert client.graphql("Viewer")[0] == 200
    assert epochs(server, "a") == []
    server.clear_faults()
    assert client.stream("a", rows(0)) == 200


def test_a_fault_spares_the_first_and_ends_after_its_times(server: StandIn, client: Http) -> None:
    server.fail("Viewer", 500, times=2, after=1)
    assert [client.graphql("Viewer")[0] for _ in range(5)] == [200, 500, 500, 200, 200]
    server.fail("graphql", 503)
    assert client.graphql("GetProjects", entity="local")[0] == 503


def test_a_delayed_answer_is_right_but_late(server: StandIn, client: Http) -> None:
    server.fail("*", Delay(0.2))
    began = time.monotonic()
    assert client.graphql("Viewer")[1]["data"]["viewer"]["entity"] == "local"
    assert time.monotonic() - began >= 0.2


def test_a_reset_breaks_the_connection_and_the_next_one_works(server: StandIn, client: Http) -> None:
    client.make_run("a")
    server.fail("file_stream", Reset(), times=1)
    with pytest.raises(ConnectionResetError):
        client.stream("a", rows(0))
    client.connection.close()
    assert client.stream("a", rows(0)) == 200


def test_a_black_hole_answers_when_the_faults_are_cleared(server: StandIn) -> None:
    server.fail("Viewer", BlackHole())
    with Http(server.port, timeout_s=0.2) as impatient, pytest.raises(TimeoutError):
        impatient.graphql("Viewer")
    answers: list[int] = []
    with Http(server.port) as patient:
        waiting = threading.Thread(target=lambda: answers.append(patient.graphql("Viewer")[0]))
        waiting.start()
        time.sleep(0.1)
        assert answers == []
        server.clear_faults()
        waiting.join(5)
        assert answers == [200]


def test_garbage_is_no_json(server: StandIn, client: Http) -> None:
    server.fail("Viewer", Garbage())
    with pytest.raises(json.JSONDecodeError):
        client.graphql("Viewer")


def test_a_dying_server_stops_in_the_middle_of_the_request(server: StandIn, client: Http) -> None:
    client.make_run("a")
    server.fail("file_stream", Die())
    with pytest.raises(OSError):
        client.stream("a", rows(0))
    client.connection.close()
    with pytest.raises(ConnectionRefusedError):
        client.graphql("Viewer")
    assert (server.is_running, epochs(server, "a")) == (False, [])


@pytest.mark.parametrize("answer", [500, Reset()])
def test_work_can_be_done_though_its_answer_is_an_error(server: StandIn, client: Http, answer: int | Reset) -> None:
    client.make_run("a")
    server.fail("file_stream", AfterThen(answer))
    if isinstance(answer, Reset):
        with pytest.raises(ConnectionResetError):
            client.stream("a", rows(0))
    else:
        assert client.stream("a", rows(0)) == answer
    assert epochs(server, "a") == [0]


# --------------------------------------------------------------------------------------------- as a process of its own
def test_as_a_process_it_is_controlled_by_http_and_writes_its_state_at_the_end(tmp_path: Path) -> None:
    program = Path(__file__).parents[1] / "support" / "wandb_server.py"
    command = [sys.executable, str(program), "--folder", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().strip().rpartition(":")[2])
        with Http(port) as client:
            client.make_run("a")
            client.send("POST", "/_fail", b'{"what": "file_stream", "how": 503, "times": 1}')
            assert client.stream("a", rows(0)) == 503
            assert client.stream("a", rows(0), complete=True, exitcode=0) == 200
            client.send("POST", "/_fail", b'{"what": "*", "how": ["AfterThen", "Reset"]}')
            client.send("POST", "/_clear")
            shown = json.loads(client.send("GET", "/_state")[1])
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert shown["runs"]["local/p/a"]["state"] == "finished"
    assert json.loads((tmp_path / "state.json").read_text()) == shown
    seen = [json.loads(line)["operation"] for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert seen == ["UpsertBucket", "", ""]
