"""What the stand-in W&B server answers to a request that is allowed and that no fault stops."""

from __future__ import annotations

import hashlib
import json
import re
from typing import NamedTuple
from urllib.parse import unquote

from wandb_operations import OPERATIONS
from wandb_state import Json, Refusal, State, dumps

_FILE_STREAM = re.compile(r"^/files/([^/]+)/([^/]+)/([^/]+)/file_stream$")
_CONTENT = re.compile(r"^/artifacts(?:V2)?/.*?\b([0-9a-f]{32})\b")


class Answer(NamedTuple):
    status: int
    body: bytes
    content_type: str = "application/json"


def as_json(status: int, content: Json) -> Answer:
    return Answer(status, dumps(content).encode())


def refused(refusal: Refusal) -> Answer:
    return as_json(refusal.status, {"errors": [{"message": str(refusal)}], "error": str(refusal)})


def kind_of(path: str) -> str:
    """The kind of request that faults and counts speak of."""
    if path == "/graphql":
        return "graphql"
    if path.endswith("/file_stream"):
        return "file_stream"
    return "storage" if path.startswith(("/storage/", "/artifacts")) else "other"


def answer(state: State, method: str, path: str, operation: str, sent: Json, body: bytes) -> Answer:
    """`sent` is the parsed body of a GraphQL request. Raises Refusal."""
    with state.lock:
        if path == "/graphql":
            return as_json(200, _graphql(state, operation, sent))
        stream = _FILE_STREAM.match(path)
        if stream:
            return _file_stream(state, *(unquote(part) for part in stream.groups()), body=body)
        if path.startswith("/storage/"):
            return _storage(state, method, path[len("/storage/") :], body)
        content = _CONTENT.match(path)
        if content:
            return _content(state, content.group(1))
    raise Refusal(404, f"nothing is at {method} {path}")


def _graphql(state: State, operation: str, sent: Json) -> Json:
    function = OPERATIONS.get(operation)
    if function is None:
        state.unknown_operations[operation] += 1
        return {"errors": [{"message": f"Unknown operation {operation}"}], "data": None}
    return {"data": function(state, (sent.get("variables") or {}) | {"__query__": sent["query"]})}


def _file_stream(state: State, entity: str, project: str, name: str, *, body: bytes) -> Answer:
    run = state.run(entity, project, name)
    if run is None:
        raise Refusal(404, f"no run {entity}/{project}/{name}")
    run.stream(json.loads(body))
    return as_json(200, {"exitcode": None, "limits": {}})


def _storage(state: State, method: str, path: str, body: bytes) -> Answer:
    """A run's file (run/entity/project/id/name), an artifact's manifest (manifest/id) or content (content/md5)."""
    kind, _, rest = path.partition("/")
    if kind == "run":
        entity, project, run_id, name = (unquote(part) for part in rest.split("/", 3))
        run = state.run(entity, project, run_id)
        if run is None:
            raise Refusal(404, f"no run {entity}/{project}/{run_id}")
        if method == "PUT":
            run.files[name] = body
            return Answer(200, b"")
        if name in run.files:
            return Answer(200, run.files[name], "application/octet-stream")
    artifact = state.artifacts.get(unquote(rest)) if kind == "manifest" else None
    if artifact is not None:
        if method == "PUT":
            artifact.manifest = body
            return Answer(200, b"")
        if artifact.manifest is not None:
            return Answer(200, artifact.manifest)
    if kind == "content" and method == "PUT":
        found = hashlib.md5(body).hexdigest()
        if found != rest:
            raise Refusal(400, f"the MD5 of what was sent is {found}, announced was {rest}")
        state.contents[rest] = body
        return Answer(200, b"")
    if kind == "content":
        return _content(state, rest)
    raise Refusal(404, f"nothing was stored at {path}")


def _content(state: State, md5: str) -> Answer:
    if md5 not in state.contents:
        raise Refusal(404, f"no artifact has a file with the MD5 {md5}")
    return Answer(200, state.contents[md5], "application/octet-stream")
