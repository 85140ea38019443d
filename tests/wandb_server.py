"""A stand-in for the W&B server on loopback, for tests and benchmarks: real wandb talks to it, nothing is patched.

    with StandIn() as server:
        os.environ |= server.environment()
        ...
        assert server.run("my-run").state == "finished"

As a process of its own: `python tests/wandb_server.py --port 8080 --folder DIR`
(GET /_state, POST /_fail, POST /_clear).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import gzip
import json
import re
import secrets
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from wandb_faults import AfterThen, BlackHole, Delay, Die, Fault, Faults, Garbage, Reset, parsed
from wandb_graphql import OPERATIONS
from wandb_state import ENTITY, Json, Refusal, ServerRun, State, dumps

KEY = "f" * 40  # wandb refuses a key that is shorter

_OPERATION = re.compile(r"\b(?:query|mutation)\s+(\w+)")
_FILE_STREAM = re.compile(r"^/files/([^/]+)/([^/]+)/([^/]+)/file_stream$")
_REASONS = {200: "OK", 201: "Created", 206: "Partial Content"}


class Request(NamedTuple):
    method: str
    path: str
    operation: str  # of GraphQL, else ""


class Answer(NamedTuple):
    status: int
    body: bytes
    content_type: str = "application/json"


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
        self.received: list[bytes] = []  # with record_bodies: all but the Authorization headers
        self.authorization = "Basic " + base64.b64encode(f"api:{key}".encode()).decode()
        self._http: _Server | None = None
        self._lock = threading.Lock()

    # ------------------------------------------------------------------------------------------------- life and death
    def start(self) -> StandIn:
        with self._lock:
            assert self._http is None, "the stand-in server runs already"
            self._http = _Server(("127.0.0.1", self.port), self)
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

    # ----------------------------------------------------------------------------------------------- answers by right
    def answer(self, method: str, path: str, query: str, operation: str, sent: Json, body: bytes) -> Answer:
        """The answer to a request that no fault stopped. Raises Refusal."""
        stream = _FILE_STREAM.match(path)
        with self.state.lock:
            if path == "/graphql":
                return _json(200, self._graphql(operation, sent))
            if stream:
                return self._file_stream(*(unquote(part) for part in stream.groups()), body=body)
            if path.startswith("/storage/"):
                return self._storage(method, unquote(path[len("/storage/") :]), body)
            if path.startswith("/_"):
                return self._control(path, body)
        raise Refusal(404, f"nothing is at {method} {path}")

    def _graphql(self, operation: str, sent: Json) -> Json:
        function = OPERATIONS.get(operation)
        if function is None:
            self.state.unknown_operations[operation] += 1
            return {"errors": [{"message": f"Unknown operation {operation}"}], "data": None}
        return {"data": function(self.state, (sent.get("variables") or {}) | {"__query__": sent["query"]})}

    def _file_stream(self, entity: str, project: str, name: str, *, body: bytes) -> Answer:
        run = self.state.run(entity, project, name)
        if run is None:
            raise Refusal(404, f"no run {entity}/{project}/{name}")
        run.stream(json.loads(body))
        return _json(200, {"exitcode": None, "limits": {}})

    def _storage(self, method: str, path: str, body: bytes) -> Answer:
        kind, _, rest = path.partition("/")
        place, name = self.state.blobs, path
        if kind == "run":
            entity, project, run_id, name = rest.split("/", 3)
            run = self.state.run(entity, project, run_id)
            if run is None:
                raise Refusal(404, f"no run {entity}/{project}/{run_id}")
            place = run.files
        if method == "PUT":
            place[name] = body
            return Answer(200, b"")
        if name not in place:
            raise Refusal(404, f"nothing was stored at {path}")
        return Answer(200, place[name], "application/octet-stream")

    def _control(self, path: str, body: bytes) -> Answer:
        if path == "/_state":
            return _json(200, self.snapshot())
        if path == "/_clear":
            self.clear_faults()
            return _json(200, {})
        if path == "/_fail":
            asked = json.loads(body)
            self.fail(asked["what"], parsed(asked["how"]), times=asked.get("times"), after=asked.get("after", 0))
            return _json(200, {})
        raise Refusal(404, f"nothing is at {path}")

    # ------------------------------------------------------------------------------------------------------- snapshot
    def snapshot(self) -> Json:
        """All that is known, as JSON; of files and blobs their sizes."""
        with self.state.lock:
            runs = {path: _run_snapshot(run) for path, run in self.runs.items()}
            counts, unknown = dict(self.counts()), dict(self.unknown_operations)
            return {"runs": runs, "reports": self.reports, "requests": counts, "unknown_operations": unknown}

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


def kind_of(path: str) -> str:
    if path == "/graphql":
        return "graphql"
    if path.endswith("/file_stream"):
        return "file_stream"
    return "storage" if path.startswith("/storage/") else "other"


def _json(status: int, content: Json) -> Answer:
    return Answer(status, dumps(content).encode())


def _refused(refusal: Refusal) -> Answer:
    return _json(refusal.status, {"errors": [{"message": str(refusal)}], "error": str(refusal)})


class _Server(ThreadingHTTPServer):
    """Knows its connections, so that it can break them."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], stand_in: StandIn) -> None:
        super().__init__(address, _Handler)
        self.stand_in = stand_in
        self.connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def break_connections(self) -> None:
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or a connection broken on purpose, is no error; all else is one of this file."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _any(self) -> None:
        stand_in = self.server.stand_in
        parts = urlsplit(self.path)
        body = self._body()
        sent: Json = {}
        operation = ""
        if parts.path == "/graphql":
            sent = json.loads(body)
            found = _OPERATION.search(sent["query"])
            operation = found.group(1) if found else ""
        if not parts.path.startswith("/_"):
            stand_in.requests.append(Request(self.command, parts.path, operation))
        if stand_in.record_bodies:
            headers = "\n".join(f"{key}: {text}" for key, text in self.headers.items() if key != "Authorization")
            stand_in.received.append(f"{self.requestline}\n{headers}\n".encode() + body)
        if stand_in.latency_s:
            time.sleep(stand_in.latency_s)
        self._send(self._answer(parts.path, parts.query, operation, sent, body))

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _any  # noqa: N815

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, path: str, query: str, operation: str, sent: Json, body: bytes) -> Answer:
        stand_in = self.server.stand_in
        if path == "/healthz":
            return _json(200, {"ok": True})
        fault = None if path.startswith("/_") else stand_in.faults.choose(kind_of(path), operation)
        early = self._faulty(fault) if fault is not None else None
        if early is not None:
            return early
        try:
            if not self._may(path, query):
                raise Refusal(401, "user is not logged in")
            answer = stand_in.answer(self.command, path, query, operation, sent, body)
        except Refusal as refusal:
            answer = _refused(refusal)
        if isinstance(fault, AfterThen):
            if isinstance(fault.answer, Reset):
                self._reset()
            return _refused(Refusal(int(fault.answer), "injected after the work was done"))  # type: ignore[arg-type]
        return answer

    def _may(self, path: str, query: str) -> bool:
        """Whether the key is right; a signed URL of the storage carries its right in itself."""
        stand_in = self.server.stand_in
        if path.startswith("/_") or (path.startswith("/storage/") and query == f"token={stand_in.state.token}"):
            return True
        return self.headers.get("Authorization") == stand_in.authorization

    def _faulty(self, fault: Fault) -> Answer | None:
        """The fault's answer, or None if the right one shall follow."""
        stand_in = self.server.stand_in
        match fault:
            case int():
                return _refused(Refusal(fault, f"injected {fault}"))
            case Garbage():
                return Answer(200, b"<html>this is not JSON</html>", "text/html")
            case Delay():
                time.sleep(fault.seconds)
            case BlackHole():
                stand_in.faults.cleared.wait()
            case Reset():
                self._reset()
            case Die():
                stand_in.stop()
                raise ConnectionAbortedError("the server died")
            case AfterThen():
                pass
        return None

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # The files made of the socket hold it open: only without them does close() send the RST.
        self.rfile.close()
        self.wfile.close()
        self.connection.close()
        raise ConnectionAbortedError("reset on purpose")

    def _send(self, answer: Answer) -> None:
        reason = _REASONS.get(answer.status, "No")
        head = f"HTTP/1.1 {answer.status} {reason}\r\nContent-Type: {answer.content_type}\r\n"
        head += f"Content-Length: {len(answer.body)}\r\n\r\n"
        self.wfile.write(head.encode() + (b"" if self.command == "HEAD" else answer.body))


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
