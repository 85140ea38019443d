"""A stand-in for the W&B server on loopback, for tests and benchmarks: real wandb talks to it, nothing is patched.

    with StandIn() as server:
        os.environ |= server.environment()
        ...
        assert server.run("my-run").state == "finished"

As a process of its own: `python tests/support/wandb_server.py --port 8080 --folder DIR`
(GET /_state, POST /_fail, POST /_clear).
"""

from __future__ import annotations

import argparse
import base64
import json
import secrets
import signal
import threading
from collections import Counter
from pathlib import Path
from types import TracebackType

from wandb_artifacts import ServerArtifact, by_name
from wandb_faults import Fault, Faults, parsed
from wandb_http import Request, Server
from wandb_routes import Answer, as_json, kind_of
from wandb_state import ENTITY, Json, Refusal, ServerRun, State

KEY = "f" * 40  # wandb refuses a key that is shorter


class StandIn:
    """The server. Its state outlives stop() and start(); `with` starts and stops it."""

    def __init__(
        self,
        *,
        port: int = 0,
        folder: Path | None = None,
        latency_s: float = 0.0,
        key: str = KEY,
        record_bodies: bool = False,
    ) -> None:
        self.port = port
        self.folder = folder
        self.latency_s = latency_s
        self.key = key
        self.record_bodies = record_bodies
        self.state = State()
        self.state.token = secrets.token_hex(16)
        self.faults = Faults()
        self.requests: list[Request] = []
        self.errors: list[str] = []  # tracebacks of mistakes in the stand-in itself
        self.received: list[bytes] = []  # with record_bodies: all but the Authorization headers
        self.authorization = "Basic " + base64.b64encode(f"api:{key}".encode()).decode()
        self._http: Server | None = None
        self._lock = threading.Lock()

    # ------------------------------------------------------------------------------------------------- life and death
    def start(self) -> StandIn:
        with self._lock:
            assert self._http is None, "the stand-in server runs already"
            self._http = Server(("127.0.0.1", self.port), self)
            self.port = self._http.server_address[1]
            self.state.base_url = self.url
            threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Close the listening socket and all connections, as the death of a server does. Twice does no harm."""
        with self._lock:
            http, self._http = self._http, None
        if http is None:
            return
        http.shutdown()
        http.server_close()
        http.break_connections()
        self.faults.wake()
        if self.folder is not None:
            self.write_state(self.folder)

    def __enter__(self) -> StandIn:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def is_running(self) -> bool:
        return self._http is not None

    # --------------------------------------------------------------------------------------------- what tests look at
    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, folder: Path | None = None) -> dict[str, str]:
        """The environment variables that bring wandb here, all its files below `folder`."""
        variables = {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": self.key, "WANDB_ERROR_REPORTING": "false"}
        if folder is not None:
            variables |= {f"WANDB_{kind}_DIR": str(folder / kind.lower()) for kind in ("DATA", "CACHE", "CONFIG")}
            variables["WANDB_DIR"] = str(folder)
        return variables

    @property
    def runs(self) -> dict[str, ServerRun]:
        return self.state.runs

    def run(self, run_id: str) -> ServerRun:
        """The run with this id, in whatever project of the entity "local"."""
        found = [run for run in self.runs.values() if (run.entity, run.id) == (ENTITY, run_id)]
        assert len(found) == 1, f"{len(found)} runs have the id {run_id!r}; known: {', '.join(sorted(self.runs))}"
        return found[0]

    @property
    def artifacts(self) -> list[ServerArtifact]:
        """The committed versions in the order of their making."""
        return [one for one in self.state.artifacts.values() if one.state == "COMMITTED"]

    def artifact(self, name: str, project: str) -> ServerArtifact:
        """A committed version by "sequence:alias", "sequence:v0" or "sequence" (the latest)."""
        found = by_name(self.state, ENTITY, project, name)
        assert found is not None, f"no artifact {name!r}; known: {', '.join(one.name for one in self.artifacts)}"
        return found

    @property
    def reports(self) -> dict[str, Json]:
        return self.state.reports

    @property
    def unknown_operations(self) -> Counter[str]:
        return self.state.unknown_operations

    def counts(self) -> Counter[str]:
        """How often each GraphQL operation, or each other kind of request, was seen."""
        return Counter(request.operation or kind_of(request.path) for request in self.requests)

    def seen_bytes(self, text: str) -> bool:
        """Whether `text` was in anything received but the Authorization headers."""
        assert self.record_bodies, "only a server made with record_bodies=True remembers what it received"
        return any(text.encode() in one for one in self.received)

    # --------------------------------------------------------------------------------------------------------- faults
    def fail(self, what: str, how: Fault, *, times: int | None = None, after: int = 0) -> None:
        """Let requests fail: all ("*"), a kind ("graphql", "file_stream", "storage") or a GraphQL operation;
        the first `after` of them are spared, `times` of them (default all) fail."""
        self.faults.add(what, how, times=times, after=after)

    def clear_faults(self) -> None:
        self.faults.clear()

    def control(self, path: str, body: bytes) -> Answer:
        """The answer to what another process asks of this server itself. Raises Refusal."""
        if path == "/_state":
            return as_json(200, self.snapshot())
        if path == "/_clear":
            self.clear_faults()
            return as_json(200, {})
        if path == "/_fail":
            asked = json.loads(body)
            self.fail(asked["what"], parsed(asked["how"]), times=asked.get("times"), after=asked.get("after", 0))
            return as_json(200, {})
        raise Refusal(404, f"nothing is at {path}")

    # ------------------------------------------------------------------------------------------------------- snapshot
    def snapshot(self) -> Json:
        """All that is known, as JSON; of files and blobs their sizes."""
        with self.state.lock:
            runs = {path: _run_snapshot(run) for path, run in self.runs.items()}
            counts, unknown = dict(self.counts()), dict(self.unknown_operations)
            return {
                "runs": runs,
                "reports": self.reports,
                "requests": counts,
                "unknown_operations": unknown,
                "errors": self.errors,
                "artifacts": [one.name for one in self.artifacts],
            }

    def write_state(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state.json").write_text(json.dumps(self.snapshot()))
        lines = (json.dumps(request._asdict()) for request in self.requests)
        (folder / "requests.jsonl").write_text("".join(f"{line}\n" for line in lines))


def _run_snapshot(run: ServerRun) -> Json:
    names = ("id", "project", "entity", "name", "group", "job_type", "tags", "config", "summary", "history")
    shown: Json = {name: getattr(run, name) for name in (*names, "events", "exit_code", "state")}
    shown |= {"logged_artifacts": run.logged_artifacts, "used_artifacts": run.used_artifacts}
    return shown | {"files": {name: len(content) for name, content in run.files.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description="a stand-in for the W&B server on loopback")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the state is written when the server ends")
    parser.add_argument("--latency-s", type=float, default=0.0)
    parser.add_argument("--key", default=KEY)
    arguments = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with StandIn(
        port=arguments.port, folder=arguments.folder, latency_s=arguments.latency_s, key=arguments.key
    ) as server:
        print(server.url, flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
