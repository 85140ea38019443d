"""What the stand-in W&B server remembers: runs, artifacts and reports, all in memory.

Everything a client sent is kept as it came (rows are lines of JSON by offset), so that a test can compare.
"""

from __future__ import annotations

import base64
import json
import math
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from wandb_artifacts import ServerArtifact

Json = dict[str, Any]
RunState = Literal["running", "finished", "failed", "crashed"]

ENTITY = "local"

_NOT_JSON = re.compile(r"NaN|Infinity")


class Refusal(Exception):
    """The server answers `status` with this message instead of data."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def node_id(kind: str, *parts: str) -> str:
    """An opaque id as the real server makes them: base64 of `Kind:v1:parts`."""
    return base64.b64encode(":".join((kind, "v1", *parts)).encode()).decode()


def dumps(content: Any) -> str:
    """JSON as the server answers it: a number that JSON does not know becomes a string, "NaN" or "Infinity"."""
    try:
        return json.dumps(content, allow_nan=False)
    except ValueError:
        return json.dumps(_strings_for_nan(content))


def _strings_for_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _strings_for_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_strings_for_nan(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return "NaN" if math.isnan(content) else "Infinity" if content > 0 else "-Infinity"
    return content


def connection(items: list[Any], cursor: str | None, size: int, shown: Callable[[Any], Json]) -> Json:
    """A page of a GraphQL connection; the cursor of an item is its position."""
    start = int(cursor) + 1 if cursor else 0
    part = items[start : start + size]
    edges = [{"node": shown(item), "cursor": str(position)} for position, item in enumerate(part, start=start)]
    end = edges[-1]["cursor"] if edges else None
    more = {"__typename": "PageInfo", "endCursor": end, "hasNextPage": start + size < len(items)}
    return {"edges": edges, "totalCount": len(items), "pageInfo": more}


class Lines:
    """A file of the file stream: lines by their offset. A line sent again to the same offset takes its place."""

    def __init__(self) -> None:
        self._texts: dict[int, str] = {}
        self._rows: list[Json] | None = None
        self.received = 0  # lines ever received, repeated ones too

    def put(self, offset: int, texts: list[str]) -> None:
        self._texts.update(enumerate(texts, start=offset))
        self._rows = None
        self.received += len(texts)

    @property
    def count(self) -> int:
        """Where the next line goes: one more than the highest offset."""
        return max(self._texts, default=-1) + 1

    def texts(self) -> list[str]:
        """The lines as the server shows them."""
        return [
            dumps(row) if _NOT_JSON.search(text) else text
            for text, row in zip(self._ordered(), self.rows(), strict=True)
        ]

    def tail(self) -> list[str]:
        """The last line alone, or none."""
        if not self._texts:
            return []
        text = self._texts[self.count - 1]
        return [dumps(json.loads(text)) if _NOT_JSON.search(text) else text]

    def rows(self) -> list[Json]:
        if self._rows is None:
            self._rows = [json.loads(text) for text in self._ordered()]
        return self._rows

    def _ordered(self) -> list[str]:
        return [self._texts[offset] for offset in sorted(self._texts)]


@dataclass
class ServerRun:
    """One run as the server holds it. `config` is in W&B's form, {"key": {"value": ...}}."""

    id: str
    project: str
    entity: str
    name: str
    number: int
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    notes: str = ""
    config: Json = field(default_factory=dict)
    summary: Json = field(default_factory=dict)
    history_lines: Lines = field(default_factory=Lines)
    event_lines: Lines = field(default_factory=Lines)
    output_lines: Lines = field(default_factory=Lines)
    exit_code: int | None = None
    state: RunState = "running"
    files: dict[str, bytes] = field(default_factory=dict)
    uploaded: set[str] = field(default_factory=set)  # files that the client declared complete
    logged_artifacts: list[str] = field(default_factory=list)
    used_artifacts: list[str] = field(default_factory=list)
    created_at: str = field(default_factory=now)
    heartbeat_at: str = field(default_factory=now)

    @property
    def path(self) -> str:
        return f"{self.entity}/{self.project}/{self.id}"

    @property
    def storage_id(self) -> str:
        return node_id("Run", self.id, self.project, self.entity)

    @property
    def history(self) -> list[Json]:
        """The rows in the order of their offsets."""
        return self.history_lines.rows()

    @property
    def events(self) -> list[Json]:
        return self.event_lines.rows()

    @property
    def plain_config(self) -> Json:
        """The configuration as {"key": value}, without W&B's own keys."""
        return {
            key: entry["value"] if isinstance(entry, dict) and "value" in entry else entry
            for key, entry in self.config.items()
            if key not in ("_wandb", "wandb_version")
        }

    def stream(self, sent: Json) -> None:
        """Take one request of the file stream."""
        for name, chunk in (sent.get("files") or {}).items():
            offset, content = int(chunk.get("offset") or 0), chunk.get("content") or []
            if name == "wandb-history.jsonl":
                self.history_lines.put(offset, content)
            elif name == "wandb-events.jsonl":
                self.event_lines.put(offset, content)
            elif name == "output.log":
                self.output_lines.put(offset, content)
            elif name == "wandb-summary.json" and content:
                self.summary = json.loads(content[-1])
        self.uploaded.update(sent.get("uploaded") or [])
        self.heartbeat_at = now()
        if sent.get("complete"):
            self.exit_code = int(sent.get("exitcode") or 0)
            self.state = "failed" if self.exit_code else "finished"
        else:
            self.exit_code, self.state = None, "running"


def project_node(state: State, entity: str, project: str) -> Json:
    """A project as queries show it; made if it is new."""
    number = state.project_number(entity, project)
    return {
        "__typename": "Project",
        "id": node_id("Project", project, entity),
        "internalId": node_id("ProjectInternalId", str(number)),
        "name": project,
        "entityName": entity,
        "description": None,
        "access": "USER_READ",
        "views": "{}",
        "createdAt": now(),
        "isBenchmark": False,
        "readOnly": False,
        "user": None,
        "entity": {"id": node_id("Entity", entity), "name": entity},
    }


class State:
    """All that the server knows; `lock` is held for every request that reads or changes it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.runs: dict[str, ServerRun] = {}
        self.by_storage_id: dict[str, ServerRun] = {}
        self.deleted_runs: set[str] = set()
        self.projects: dict[str, int] = {}  # "entity/project" -> its number
        self.reports: dict[str, Json] = {}
        self.artifacts: dict[str, ServerArtifact] = {}  # by id, also those not committed
        self.same_as: dict[str, str] = {}  # client's id of an artifact -> the earlier one with the same digest
        self.contents: dict[str, bytes] = {}  # of artifacts' files, by MD5 in hex
        self.unknown_operations: Counter[str] = Counter()
        self.base_url = ""
        self.token = ""
        self._number = 0

    def next_number(self) -> int:
        self._number += 1
        return self._number

    def project_number(self, entity: str, project: str) -> int:
        return self.projects.setdefault(f"{entity}/{project}", len(self.projects) + 1)

    def run(self, entity: str | None, project: str | None, name: str | None) -> ServerRun | None:
        return self.runs.get(f"{entity or ENTITY}/{project}/{name}")

    def make_run(self, entity: str, project: str, name: str) -> ServerRun:
        path = f"{entity}/{project}/{name}"
        if path in self.deleted_runs:
            raise Refusal(409, f"run {path} was previously created and deleted; try a new run name")
        self.project_number(entity, project)
        run = ServerRun(id=name, project=project, entity=entity, name=name, number=self.next_number())
        self.runs[path] = self.by_storage_id[run.storage_id] = run
        return run

    def delete_run(self, run: ServerRun) -> None:
        del self.runs[run.path], self.by_storage_id[run.storage_id]
        self.deleted_runs.add(run.path)

    def storage_url(self, path: str) -> str:
        """Where the client may PUT and GET `path` (already quoted) without its key, as with a signed URL."""
        return f"{self.base_url}/storage/{path}?token={self.token}"


Operation = Callable[[State, Json], Json]

USER: Json = {"id": node_id("User", "1"), "name": ENTITY, "username": ENTITY, "email": "", "admin": False}
