"""What a W&B server holds of a project, read by W&B's own client, with an end to every wait.

Of the public API only what asks for little and trusts little: its `Run` makes a folder wherever a run's id leads, and
its reading of files and history waits for ever.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from transfergrid.errors import ConfigError, DataError, one_line
from transfergrid.store import durable
from transfergrid.tracking.account import Account, Unreachable, why_silent
from transfergrid.tracking.client import make_api

T = TypeVar("T")

ANSWER_TIMEOUT_S = 30
TRANSFER_TIMEOUT_S = 120.0
RUNS_A_PAGE = 100
ROWS_A_PAGE = 1_000  # W&B's own
MOST_STEPS = 2_000_000  # the history is asked for in pages of steps, however few rows they hold

# Operations, arguments and fields are those of W&B's own queries for runs.
_FIELDS = "id name tags jobType createdAt state config summaryMetrics historyLineCount historyKeys"
_RUNS = f"""
query Runs($project: String!, $entity: String!, $cursor: String, $perPage: Int = 50, $order: String,
           $filters: JSONString) {{
  project(name: $project, entityName: $entity) {{
    runs(filters: $filters, after: $cursor, first: $perPage, order: $order) {{
      edges {{ node {{ {_FIELDS} }} cursor }}
      pageInfo {{ endCursor hasNextPage }}
    }}
  }}
}}"""
_RUN = f"""
query Run($project: String!, $entity: String!, $name: String!) {{
  project(name: $project, entityName: $entity) {{ run(name: $name) {{ {_FIELDS} }} }}
}}"""
_UPDATE = """
mutation UpsertBucket($id: String!, $tags: [String!], $config: JSONString) {
  upsertBucket(input: {id: $id, tags: $tags, config: $config}) { bucket { id } }
}"""


class NoProject(ConfigError):
    """The server has no such project that this key may read."""


class NotRead(DataError):
    """The server answered, but not with what was asked for: the run's problem, not the whole reading's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteRun:
    """A run as the server lists it; nothing of it is checked. config: as wandb.init got it. summary: its last values.
    rows: of its history. last_step: the last `_step` there, -1 without one. storage_id: W&B's own. identity: another
    one where the run was deleted and made again."""

    entity: str
    project: str
    id: str
    tags: tuple[str, ...]
    job_type: str
    state: str
    config: dict[str, Any]
    summary: Mapping[str, Any]
    rows: int
    last_step: int
    storage_id: str
    identity: str


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a run. version: other content, other version (size, checksum, time of its upload)."""

    name: str
    size: int
    md5: str
    version: tuple[str, ...]
    _file: Any


class Remote:
    """A project on a server. Safe to use from several threads at once. Raises Unreachable where there is no server, no
    right or no answer in time, NoProject where there is no project. api: W&B's own, for what is not asked here."""

    def __init__(self, account: Account) -> None:
        if reason := why_silent(account.url):
            raise Unreachable(f"{account.url} does not answer ({reason})")
        self._account = account
        self.api = api = make_api(account, timeout_s=ANSWER_TIMEOUT_S)
        # The way to wandb-core, which all of the public API takes.
        self._service: Any = _Bounded(api._service_api, TRANSFER_TIMEOUT_S)
        self._pages: Any = _Bounded(api._service_api, ANSWER_TIMEOUT_S)
        self.entity: str = account.entity or self._answer_to(lambda: api.default_entity) or ""
        self.project = account.project

    def runs(self, filters: Mapping[str, Any]) -> dict[str, RemoteRun]:
        """All runs that fit, by id, oldest first. filters: in the language of the public API."""
        run_by_id: dict[str, RemoteRun] = {}
        cursor: str | None = None
        more = True
        while more:
            runs, cursor, more = self._page(filters, cursor)
            run_by_id |= {run.id: run for run in runs}
        return run_by_id

    def _page(self, filters: Mapping[str, Any], cursor: str | None) -> tuple[list[RemoteRun], str | None, bool]:
        variables = {"entity": self.entity, "project": self.project, "filters": json.dumps(filters)}
        page = {"order": "+created_at", "cursor": cursor, "perPage": RUNS_A_PAGE}
        project = self._answer_to(lambda: self._service.execute_graphql(_RUNS, variables | page)["project"])
        if project is None:
            raise NoProject(
                f"{self._account.url} has no project {self.entity}/{self.project} that this key may read; "
                "give entity=NAME project=NAME as its address in W&B shows them"
            )
        runs = self._answer_to(lambda: [self._run(edge["node"]) for edge in project["runs"]["edges"]])
        info = self._answer_to(lambda: project["runs"]["pageInfo"])
        return runs, info["endCursor"], bool(info["hasNextPage"] and runs)

    def run(self, run_id: str) -> RemoteRun | None:
        """As it is now, which a listing may learn of later."""
        variables = {"entity": self.entity, "project": self.project, "name": run_id}
        project = self._answer_to(lambda: self._service.execute_graphql(_RUN, variables)["project"])
        return self._answer_to(lambda: self._run(project["run"]) if project and project["run"] else None)

    def tagged(self, *tags: str) -> dict[str, RemoteRun]:
        """All runs with one of these tags, by id, oldest first; none where there is no such project yet."""
        try:
            return self.runs({"tags": {"$in": list(tags)}})
        except NoProject:
            return {}

    def update(self, run: RemoteRun, *, tags: Sequence[str], config: dict[str, Any] | None = None) -> None:
        """Give a run these tags, and these values in its config beside those it has."""
        variables: dict[str, Any] = {"id": run.storage_id, "tags": list(tags)}
        if config is not None:
            whole = {name: {"value": value} for name, value in (run.config | config).items()}
            variables["config"] = json.dumps(whole)
        self._answer_to(lambda: self._service.execute_graphql(_UPDATE, variables))

    def runs_named(self, run_ids: Sequence[str]) -> dict[str, RemoteRun]:
        """Those of these runs that the server has."""
        run_by_id: dict[str, RemoteRun] = {}
        for start in range(0, len(run_ids), RUNS_A_PAGE):
            run_by_id |= self.runs({"name": {"$in": list(run_ids[start : start + RUNS_A_PAGE])}})
        return run_by_id

    def files(self, run: RemoteRun, names: Sequence[str]) -> dict[str, RemoteFile]:
        """Those of these files that the run has. Raises NotRead."""
        from wandb.apis.public.files import Files

        of: Any = run  # of a Run it takes entity, project and id
        files: list[Any] = self._answer_to(lambda: list(Files(self._service, of, list(names))))
        file_by_name = {}
        for file in files:
            md5 = getattr(file, "md5", None) or ""
            # Asked for by name, a file that is not there is listed as well: empty, without checksum and date.
            if file.name in names and file.size:
                version = (str(file.size), md5 or str(getattr(file, "updatedAt", "")))
                file_by_name[file.name] = RemoteFile(file.name, file.size, md5, version, file)
        return file_by_name

    def download(self, file: RemoteFile, folder: Path, *, largest_bytes: int) -> Path:
        """folder/<the file's name>. Raises NotRead where it is larger, cannot be had, or is not what was listed."""
        if not 0 <= file.size <= largest_bytes:
            raise NotRead(f"{file.name} of {file.size} bytes is larger than any of its kind; not downloaded")
        durable.make_folder(folder)
        self._answer_to(lambda: file._file.download(root=str(folder), replace=True).close())
        path = folder / file.name
        size = path.stat().st_size
        if size > largest_bytes or (file.md5 and file.md5 != md5_of(path)):
            path.unlink()
            raise NotRead(f"{file.name} is not what the server lists ({size} bytes arrived of {file.size})")
        return path

    def history(self, run: RemoteRun) -> list[dict[str, Any]]:
        """All rows of a run, unsampled, in the order in which the server has them. Raises NotRead."""
        from wandb.apis.public.history import HistoryScan

        if run.last_step > MOST_STEPS:
            raise NotRead(f"its history ends at step {run.last_step}, which no run reaches; not read")
        if run.last_step < 0:
            return []
        of: Any = run  # of a Run it takes entity, project and id
        scan = partial(HistoryScan, of, service_api=self._pages, page_size=ROWS_A_PAGE, use_cache=False)
        return self._answer_to(lambda: list(scan(min_step=0, max_step=run.last_step + 1)))

    def _run(self, node: Mapping[str, Any]) -> RemoteRun:
        config = {
            name: entry.get("value") for name, entry in _object(node["config"]).items() if isinstance(entry, dict)
        }
        return RemoteRun(
            entity=self.entity,
            project=self.project,
            id=str(node["name"]),
            tags=tuple(map(str, node["tags"] or ())),
            job_type=str(node["jobType"] or ""),
            state=str(node["state"] or ""),
            config=config,
            summary=_object(node["summaryMetrics"]),
            rows=int(node["historyLineCount"] or 0),
            last_step=int(_object(node["historyKeys"]).get("lastStep", -1)),
            storage_id=str(node["id"]),
            identity=f"{node['id']} {node['createdAt']}",
        )

    def _answer_to(self, ask: Callable[[], T]) -> T:
        """What `ask` gets, with W&B's many kinds of failure told apart: nobody, not you, and not this."""
        from wandb.errors import CommError
        from wandb.sdk.lib.service.service_connection import WandbApiFailedError

        try:
            return ask()
        except (WandbApiFailedError, CommError) as error:
            cause = error if isinstance(error, WandbApiFailedError) else error.exc
            answer = getattr(cause, "response", None)
            if isinstance(cause, WandbApiFailedError) and answer is None:
                raise Unreachable(f"{self._account.url} did not answer in time; try again later") from error
            status = getattr(answer, "http_status", 0)
            if status in (401, 403):
                raise Unreachable(
                    f"{self._account.url} refuses this key ({status}: {error}); run `wandb login --relogin`, "
                    f"or ask for the right to read {self._account.path()}"
                ) from error
            raise NotRead(f"{self._account.url} answered: {error}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise NotRead(f"{self._account.url} gave an answer that makes no sense ({one_line(error)})") from error


class _Bounded:
    """wandb-core with an end to every wait: the public API's readers of files and history give none."""

    def __init__(self, service: Any, timeout_s: float) -> None:
        self._service = service
        self._timeout_s = timeout_s

    def send_api_request(self, request: Any, timeout: float | None = None) -> Any:
        return self._service.send_api_request(request, timeout=timeout or self._timeout_s)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)


def _object(value: Any) -> dict[str, Any]:
    """A JSON object that comes as such, as its text, or not at all."""
    content = json.loads(value) if isinstance(value, (str, bytes)) else value
    return content if isinstance(content, dict) else {}


def md5_of(path: Path) -> str:
    """In base64, as W&B states it."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return base64.b64encode(digest.digest()).decode()
