"""The GraphQL operations of the stand-in W&B server that concern runs: each a function of (state, variables).

An answer may hold more fields than the query asked for; the clients take what they want.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import mimetypes
import re
from collections.abc import Callable
from urllib.parse import quote

from wandb_artifact_mutations import ARTIFACT_MUTATIONS
from wandb_artifact_queries import ARTIFACT_QUERIES
from wandb_filters import matches, ordered
from wandb_reports import REPORT_OPERATIONS
from wandb_state import (
    ENTITY,
    USER,
    Json,
    Operation,
    Refusal,
    ServerRun,
    State,
    connection,
    dumps,
    node_id,
    now,
    project_node,
)


# ------------------------------------------------------------------------------------------------- who, and what server
def viewer(state: State, variables: Json) -> Json:
    teams = {"edges": [{"node": {"name": ENTITY}}]}
    return {"viewer": USER | {"entity": ENTITY, "flags": "{}", "teams": teams, "apiKeys": {"edges": []}}}


def server_features(state: State, variables: Json) -> Json:
    return {"serverInfo": {"features": []}}


def organization(state: State, variables: Json) -> Json:
    return {"entity": None}


# -------------------------------------------------------------------------------------------------------------- writing
def upsert_bucket(state: State, variables: Json) -> Json:
    run, inserted = _bucket(state, variables)
    for variable, attribute in (
        ("groupName", "group"),
        ("jobType", "job_type"),
        ("displayName", "name"),
        ("display_name", "name"),
        ("notes", "notes"),
        ("tags", "tags"),
        ("state", "state"),
    ):
        if variables.get(variable) is not None:
            setattr(run, attribute, variables[variable])
    for variable, attribute in (("config", "config"), ("summaryMetrics", "summary")):
        if variables.get(variable):
            setattr(run, attribute, json.loads(variables[variable]))
    return {"upsertBucket": {"inserted": inserted, "bucket": _node(state, run, variables["__query__"])}}


def _bucket(state: State, variables: Json) -> tuple[ServerRun, bool]:
    """The run that the client means, by its storage id or by its name, and whether it is new."""
    storage_id = variables.get("id")
    if storage_id:
        if storage_id not in state.by_storage_id:
            raise Refusal(404, f"no run has the id {storage_id}")
        return state.by_storage_id[storage_id], False
    entity, project, name = variables.get("entity") or ENTITY, variables.get("project"), variables.get("name")
    project = project or "uncategorized"
    found = state.run(entity, project, name)
    if found:
        return found, False
    return state.make_run(entity, project, name or f"run{state.next_number()}"), True


def delete_run(state: State, variables: Json) -> Json:
    run = state.by_storage_id.get(variables["id"])
    if run is None:
        raise Refusal(404, f"no run has the id {variables['id']}")
    state.delete_run(run)
    return {"deleteRun": {"clientMutationId": None}}


def create_run_files(state: State, variables: Json) -> Json:
    run = state.run(variables.get("entity"), variables.get("project"), variables.get("run"))
    if run is None:
        raise Refusal(404, f"no run {variables.get('run')!r} in project {variables.get('project')!r}")
    files = [{"name": name, "uploadUrl": _file_url(state, run, name)} for name in variables["files"]]
    return {"createRunFiles": {"runID": run.storage_id, "uploadHeaders": [], "files": files}}


def _file_url(state: State, run: ServerRun, name: str) -> str:
    return state.storage_url(quote(f"run/{run.path}/{name}"))


# -------------------------------------------------------------------------------------------------------------- reading
def resume_status(state: State, variables: Json) -> Json:
    entity, project = variables.get("entity") or ENTITY, variables["project"]
    if f"{entity}/{project}" not in state.projects:
        return {"model": None}
    run = state.run(entity, project, variables["name"])
    return {
        "model": project_node(state, entity, project)
        | {"bucket": _node(state, run, variables["__query__"]) if run else None}
    }


def _node(state: State, run: ServerRun, query: str) -> Json:
    """A run as queries show it; what costs time only if the query speaks of it."""
    number = state.project_number(run.entity, run.project)
    node = {
        "id": run.storage_id,
        "internalId": str(run.number),
        "projectId": number,
        "name": run.id,
        "displayName": run.name,
        "description": None,
        "notes": run.notes,
        "sweepName": None,
        "state": run.state,
        "group": run.group,
        "jobType": run.job_type,
        "tags": run.tags,
        "commit": None,
        "readOnly": False,
        "createdAt": run.created_at,
        "heartbeatAt": run.heartbeat_at,
        "user": USER,
        "project": project_node(state, run.entity, run.project),
        "historyLineCount": run.history_lines.count,
        "eventsLineCount": run.event_lines.count,
        "logLineCount": run.output_lines.count,
    }
    if "summaryMetrics" in query:
        telemetry = run.config.get("_wandb", {}).get("value", {}).get("t", {})
        node |= {
            "config": dumps(run.config),
            "summaryMetrics": dumps(run.summary),
            "systemMetrics": "{}",
            "wandbConfig": dumps({"t": telemetry}),
        }
    if "historyKeys" in query:
        node["historyKeys"] = history_keys(run)
    if "historyTail" in query:
        node |= {"historyTail": dumps(run.history_lines.tail()), "eventsTail": dumps(run.event_lines.tail())}
    return node


def history_keys(run: ServerRun) -> Json | None:
    rows = run.history
    if not rows:
        return None
    last = {key: value for row in rows for key, value in row.items()}
    kinds = {key: "string" if isinstance(value, str) else "number" for key, value in last.items()}
    counts = {key: sum(key in row for row in rows) for key in last}
    return {
        "lastStep": max(row.get("_step", -1) for row in rows),
        "sets": [],
        "keys": {
            key: {"typeCounts": [{"type": kinds[key], "count": counts[key]}], "previousValue": last[key]}
            for key in last
        },
    }


def one_run(state: State, variables: Json) -> Json:
    """Serves all queries that read one run (`name` from Python, `run` or `runName` from wandb-core)."""
    entity, project = variables.get("entity") or ENTITY, variables.get("project") or ""
    if f"{entity}/{project}" not in state.projects:
        return {"project": None}
    name = variables.get("name") or variables.get("run") or variables.get("runName")
    run = state.run(entity, project, name)
    node = _node(state, run, variables["__query__"]) if run else None
    return {"project": project_node(state, entity, project) | {"run": node}}


def many_runs(state: State, variables: Json) -> Json:
    entity, project = variables.get("entity") or ENTITY, variables["project"]
    if f"{entity}/{project}" not in state.projects:
        return {"project": None}
    filters = json.loads(variables.get("filters") or "{}")
    here = [run for run in state.runs.values() if (run.entity, run.project) == (entity, project)]
    chosen = ordered([run for run in here if matches(run, filters)], variables.get("order") or "+created_at")
    query = variables["__query__"]
    page = connection(
        chosen, variables.get("cursor"), variables.get("perPage") or 50, lambda run: _node(state, run, query)
    )
    return {"project": project_node(state, entity, project) | {"runCount": len(chosen), "runs": page}}


def _of_run(state: State, variables: Json, answer: Callable[[ServerRun], Json]) -> Json:
    name = variables.get("name") or variables.get("run") or variables.get("runName")
    run = state.run(variables.get("entity"), variables.get("project"), name)
    return {"project": {"run": answer(run) if run else None}}


def history_page(state: State, variables: Json) -> Json:
    """Rows as JSON texts: all with minStep <= _step < maxStep (wandb-core), or the first `samples` (Python)."""

    def answer(run: ServerRun) -> Json:
        rows = zip(run.history_lines.texts(), run.history, strict=True)
        low, high = variables.get("minStep") or 0, variables.get("maxStep", math.inf)
        texts = [text for text, row in rows if low <= row.get("_step", 0) < high]
        samples = variables.get("pageSize") or variables.get("samples") or 500
        return {"history": texts[:samples], "events": run.event_lines.texts()[:samples]}

    return _of_run(state, variables, answer)


def sampled_history(state: State, variables: Json) -> Json:
    """For each spec the rows that hold all of its keys, at even distances if there are more than `samples`.
    Here maxStep is the last step that counts, unlike in history_page."""
    specs = [json.loads(spec) for spec in variables.get("specs") or [variables["spec"]]]
    return _of_run(state, variables, lambda run: {"sampledHistory": [_sampled(run, spec) for spec in specs]})


def _sampled(run: ServerRun, spec: Json) -> list[Json]:
    keys, low, high = spec.get("keys") or [], spec.get("minStep") or 0, spec.get("maxStep", math.inf)
    rows = [row for row in run.history if all(key in row for key in keys) and low <= row.get("_step", 0) <= high]
    samples = spec.get("samples") or 500
    if len(rows) > samples:
        rows = [rows[position * len(rows) // samples] for position in range(samples)]
    return [{key: row[key] for key in keys} for row in rows] if keys else rows


def parquet_history(state: State, variables: Json) -> Json:
    """No row was exported to parquet yet: all are live."""

    def answer(run: ServerRun) -> Json:
        live = [{key: row.get(key) for key in variables["liveKeys"]} for row in run.history]
        return {"parquetHistory": {"parquetUrls": [], "liveData": live}}

    return _of_run(state, variables, answer)


def run_files(state: State, variables: Json) -> Json:
    """A file that is asked for by name is listed even if the run has none: then without a size and a date."""

    def answer(run: ServerRun) -> Json:
        pattern = variables.get("pattern")
        fits = re.compile(re.escape(pattern).replace("%", ".*")).fullmatch if pattern else lambda name: True
        names = variables.get("fileNames") or sorted(name for name in run.files if fits(name))
        size = variables.get("fileLimit") or 50
        page = connection(names, variables.get("fileCursor"), size, lambda name: _file_node(state, run, name))
        return {"fileCount": len(names), "files": page}

    return _of_run(state, variables, answer)


def _file_node(state: State, run: ServerRun, name: str) -> Json:
    content, url = run.files.get(name), _file_url(state, run, name)
    md5 = base64.b64encode(hashlib.md5(content).digest()).decode() if content is not None else None
    return {
        "id": node_id("File", run.path, name),
        "name": name,
        "url": url,
        "directUrl": url,
        "sizeBytes": str(len(content or b"")),
        "mimetype": mimetypes.guess_type(name)[0] or "application/octet-stream",
        "updatedAt": now() if content is not None else None,
        "md5": md5,
    }


def delete_files(state: State, variables: Json) -> Json:
    gone = set(variables["files"])
    for run in state.runs.values():
        for name in [name for name in run.files if node_id("File", run.path, name) in gone]:
            del run.files[name]
    return {"deleteFiles": {"success": True}}


OPERATIONS: dict[str, Operation] = {
    **ARTIFACT_MUTATIONS,
    **ARTIFACT_QUERIES,
    **REPORT_OPERATIONS,
    "Viewer": viewer,
    "GetViewer": viewer,
    "GetDefaultEntity": viewer,
    "ServerFeaturesQuery": server_features,
    "OrganizationCoreWeaveOrganizationID": organization,
    "UpsertBucket": upsert_bucket,
    "DeleteRun": delete_run,
    "CreateRunFiles": create_run_files,
    "RunResumeStatus": resume_status,
    "Run": one_run,
    "RunState": one_run,
    "QueryRunInfo": one_run,
    "RunHistoryKeys": one_run,
    "Runs": many_runs,
    "RunFullHistory": history_page,
    "HistoryPage": history_page,
    "RunSampledHistory": sampled_history,
    "SampledHistoryPage": sampled_history,
    "RunParquetHistory": parquet_history,
    "RunFiles": run_files,
    "deleteFiles": delete_files,
}
