"""The HTTP side of the stand-in W&B server: connections, the key, and faults on the way."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import struct
import sys
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

import wandb_routes
from wandb_faults import AfterThen, BlackHole, Delay, Die, Fault, Garbage, Reset
from wandb_routes import Answer, as_json, kind_of, refused
from wandb_state import Json, Refusal

if TYPE_CHECKING:
    from wandb_server import StandIn

_OPERATION = re.compile(r"\b(?:query|mutation)\s+(\w+)")
_REASONS = {200: "OK"}


class Request(NamedTuple):
    method: str
    path: str
    operation: str  # of GraphQL, else ""


class Server(ThreadingHTTPServer):
    """Knows its connections, so that it can break them."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], stand_in: StandIn) -> None:
        super().__init__(address, Handler)
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


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

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

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _any

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, path: str, query: str, operation: str, sent: Json, body: bytes) -> Answer:
        stand_in = self.server.stand_in
        if path == "/healthz":
            return as_json(200, {"ok": True})
        fault = None if path.startswith("/_") else stand_in.faults.choose(kind_of(path), operation)
        early = self._faulty(fault) if fault is not None else None
        if early is not None:
            return early
        try:
            if not self._may(path, query):
                raise Refusal(401, "user is not logged in")
            if path.startswith("/_"):
                return stand_in.control(path, body)
            answer = wandb_routes.answer(stand_in.state, self.command, path, operation, sent, body)
        except Refusal as refusal:
            answer = refused(refusal)
        except Exception:
            # Not a 5xx: the client would try again for hours.
            stand_in.errors.append(traceback.format_exc())
            answer = refused(Refusal(400, "the stand-in server made a mistake: see its `errors`"))
        if isinstance(fault, AfterThen):
            if isinstance(fault.answer, Reset):
                self._reset()
            else:
                answer = refused(Refusal(fault.answer, "injected after the work was done"))
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
                return refused(Refusal(fault, f"injected {fault}"))
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

    def _reset(self) -> NoReturn:
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
