"""Projects and reports at the stand-in W&B server: their GraphQL operations."""

from __future__ import annotations

import base64
import json

from wandb_state import ENTITY, USER, Json, Operation, State, connection, dumps, now, project_node


def _view_node(state: State, view: Json) -> Json:
    project = project_node(state, view["entity"], view["project"])
    return view | {"spec": dumps(view["spec"]), "project": project, "user": USER | {"photoUrl": None}}


def upsert_view(state: State, variables: Json) -> Json:
    """A report is made, or with an id that is known changed in place."""
    known = state.reports.get(variables.get("id") or "")
    if known is None:
        # Seven digits give base64 without padding: the client cuts the padding off in addresses.
        view_id = base64.b64encode(f"View:{1_000_000 + state.next_number()}".encode()).decode()
        entity, project = variables.get("entityName") or ENTITY, variables["projectName"]
        known = state.reports[view_id] = {"id": view_id, "entity": entity, "project": project, "createdAt": now()}
        known["user"] = USER["username"]
    known |= {key: variables.get(key) for key in ("name", "displayName", "description", "type")}
    known |= {"spec": json.loads(variables["spec"]), "updatedAt": now()}
    return {"upsertView": {"view": _view_node(state, known), "inserted": not variables.get("id")}}


def view(state: State, variables: Json) -> Json:
    known = state.reports.get(variables["reportId"])
    return {"view": _view_node(state, known) if known else None}


def delete_view(state: State, variables: Json) -> Json:
    gone = state.reports.pop(variables["id"], None)
    return {"deleteView": {"success": gone is not None, "pendingDrafts": [], "__typename": "DeleteViewPayload"}}


def project_views(state: State, variables: Json) -> Json:
    entity, project = variables.get("entity") or ENTITY, variables["project"]
    here = [one for one in state.reports.values() if (one["entity"], one["project"]) == (entity, project)]
    chosen = [one for one in here if one["type"] == "runs" and variables.get("viewName") in (None, one["name"])]
    page = connection(
        chosen, variables.get("reportCursor"), variables.get("reportLimit") or 50, lambda one: _view_node(state, one)
    )
    return {"project": {"allViews": page} if f"{entity}/{project}" in state.projects else None}


def projects(state: State, variables: Json) -> Json:
    entity = variables.get("entity") or ENTITY
    names = [path.partition("/")[2] for path in state.projects if path.startswith(entity + "/")]
    size = variables.get("perPage") or 50
    return {"models": connection(names, variables.get("cursor"), size, lambda name: project_node(state, entity, name))}


def project(state: State, variables: Json) -> Json:
    """Serves all queries that read one project."""
    entity = variables.get("entity") or variables.get("entityName") or ENTITY
    name = variables.get("projectName") or variables.get("name") or variables.get("project") or ""
    known = f"{entity}/{name}" in state.projects
    return {"project": project_node(state, entity, name) if known else None}


def create_project(state: State, variables: Json) -> Json:
    asked = variables["input"]
    entity = asked.get("entityName") or asked.get("entity_name") or ENTITY
    inserted = f"{entity}/{asked['name']}" not in state.projects
    made = project_node(state, entity, asked["name"])
    return {"result": {"project": made, "model": made, "inserted": inserted}}


REPORT_OPERATIONS: dict[str, Operation] = {
    "CreateProject": create_project,
    "GetProject": project,
    "GetProjects": projects,
    "IsProjectReadOnly": project,
    "ProjectInternalId": project,
    "ProjectViews": project_views,
    "SpecificReport": view,
    "deleteView": delete_view,
    "upsertView": upsert_view,
}
