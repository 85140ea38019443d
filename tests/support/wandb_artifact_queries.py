"""The GraphQL queries of the stand-in W&B server that concern artifacts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wandb_artifacts import (
    Entry,
    ServerArtifact,
    alias_node,
    by_name,
    hex_md5,
    manifest_node,
    node,
    sequence_id,
    sequence_node,
    versions,
)
from wandb_state import ENTITY, Json, Operation, ServerRun, State, connection, node_id, now, project_node


def client_id_mapping(state: State, variables: Json) -> Json:
    """Which artifact a client means by an id that it made up itself."""
    client_id = variables["clientID"]
    known = next((one.id for one in state.artifacts.values() if one.client_id == client_id), None)
    found = known or state.same_as.get(client_id)
    return {"clientIDMapping": {"serverID": found} if found else None}


def _member(state: State, artifact: ServerArtifact) -> Json:
    return {
        "__typename": "ArtifactCollectionMembership",
        "id": node_id("ArtifactCollectionMembership", artifact.id),
        "versionIndex": artifact.version,
        "createdAt": artifact.created_at,
        "aliases": [alias_node(artifact, alias) for alias in artifact.aliases],
        "artifactCollection": sequence_node(state, artifact),
        "artifact": node(state, artifact),
    }


def membership_by_name(state: State, variables: Json) -> Json:
    found = by_name(state, variables["entity"], variables["project"], variables["name"])
    return {"project": {"artifactCollectionMembership": _member(state, found) if found else None}}


def artifact_by_id(state: State, variables: Json) -> Json:
    """Serves all queries that read one artifact by its id."""
    artifact = state.artifacts.get(variables.get("id") or variables.get("artifact_id") or "")
    if artifact is None:
        return {"artifact": None}
    creator = state.runs.get(artifact.run or "")
    users = [run for run in state.runs.values() if artifact.id in run.used_artifacts]
    more = {
        "currentManifest": manifest_node(state, artifact),
        "createdBy": _run_node(state, creator) if creator else None,
        "usedBy": {"edges": [{"node": _run_node(state, run)} for run in users]},
    }
    return {"artifact": node(state, artifact) | more}


def _run_node(state: State, run: ServerRun) -> Json:
    project = project_node(state, run.entity, run.project)
    return {"__typename": "Run", "id": run.storage_id, "name": run.id, "project": project}


def artifact_type(state: State, variables: Json) -> Json:
    """The type of an artifact by name, or (ProjectArtifactType) whether the project knows a type."""
    entity, project = variables.get("entity") or ENTITY, variables.get("project") or ""
    found = by_name(state, entity, project, variables["name"]) if "name" in variables else None
    artifact = {"artifactType": {"name": found.type}} if found else None
    wanted = [one for one in _types(state, entity, project) if one["name"] == variables.get("type")]
    return {"project": {"artifact": artifact, "artifactType": wanted[0] if wanted else None}}


def _types(state: State, entity: str, project: str) -> list[Json]:
    here = [one for one in state.artifacts.values() if (one.entity, one.project) == (entity, project)]
    first = {one.type: one for one in reversed(here) if one.state == "COMMITTED"}
    return [
        {
            "__typename": "ArtifactType",
            "id": node_id("ArtifactType", entity, project, name),
            "name": name,
            "description": None,
            "createdAt": one.created_at,
        }
        for name, one in sorted(first.items())
    ]


def project_types(state: State, variables: Json) -> Json:
    types = _types(state, variables["entity"], variables["project"])
    return {"project": {"artifactTypes": _page(types, variables, lambda one: one)}}


def collections(state: State, variables: Json) -> Json:
    """The sequences of a project, of one type if the query names it, as one page or one of them by name."""
    entity, project = variables["entity"], variables["project"]
    here = [one for one in state.artifacts.values() if (one.entity, one.project) == (entity, project)]
    kinds = {variables["type"]} if "type" in variables else {one.type for one in here}
    wanted = [one for one in reversed(here) if one.state == "COMMITTED" and one.type in kinds]
    first = {one.sequence: one for one in wanted}
    nodes = [sequence_node(state, first[name]) for name in sorted(first)]
    chosen = next((one for one in nodes if one["name"] == variables.get("name")), None)
    answer = {"artifactCollections": _page(nodes, variables, lambda one: one), "artifactCollection": chosen}
    return {"project": answer | {"artifactType": answer}}


def project_artifacts(state: State, variables: Json) -> Json:
    """The versions of a sequence, the newest first."""
    found = versions(state, variables["entity"], variables["project"], variables["collection"])[::-1]
    page = _page(found, variables, lambda one: node(state, one))
    page["edges"] = [edge | {"version": f"v{edge['node']['versionIndex']}"} for edge in page["edges"]]
    collection = {"__typename": "ArtifactSequence", "artifacts": page}
    return {"project": {"artifactType": {"artifactCollection": collection if found else None}}}


def run_artifacts(attribute: str) -> Operation:
    """The operation that lists what a run logged ("logged_artifacts") or used ("used_artifacts")."""

    def operation(state: State, variables: Json) -> Json:
        run = state.run(variables["entity"], variables["project"], variables["run"])
        found = [state.artifacts[one] for one in getattr(run, attribute)] if run else []
        found = [one for one in found if one.state == "COMMITTED"]
        return {"project": {"run": {"artifacts": _page(found, variables, lambda one: node(state, one))}}}

    return operation


def collection_aliases(state: State, variables: Json) -> Json:
    found = [one for one in state.artifacts.values() if sequence_id(one) == variables["id"]]
    nodes = [alias_node(one, alias) for one in found if one.state == "COMMITTED" for alias in one.aliases]
    return {
        "artifactCollection": {"__typename": "ArtifactSequence", "aliases": _page(nodes, variables, lambda one: one)}
    }


def member_files(state: State, variables: Json) -> Json:
    """The uploaded files of a version with the addresses to get them from."""
    name = f"{variables['collection']}:{variables['alias']}"
    artifact = by_name(state, variables["entity"], variables["project"], name)
    entries = artifact.entries.items() if artifact else ()
    names = variables.get("fileNames")
    files = [(path, entry) for path, entry in entries if entry.ref is None and (not names or path in names)]
    member = {"files": _page(files, variables, lambda one: _file_node(state, *one))}
    collection = {"__typename": "ArtifactSequence", "artifactMembership": member}
    return {"project": {"artifactCollection": collection if artifact else None}}


def _file_node(state: State, path: str, entry: Entry) -> Json:
    url = state.storage_url(f"content/{hex_md5(entry.digest)}")
    return {
        "__typename": "File",
        "id": node_id("File", path, entry.digest),
        "name": path,
        "displayName": path,
        "url": url,
        "directUrl": url,
        "sizeBytes": entry.size,
        "storagePath": path,
        "mimetype": "application/octet-stream",
        "updatedAt": now(),
        "digest": entry.digest,
        "md5": entry.digest,
    }


def _page(items: list[Any], variables: Json, shown: Callable[[Any], Json]) -> Json:
    return connection(items, variables.get("cursor"), variables.get("perPage") or 50, shown)


ARTIFACT_QUERIES: dict[str, Operation] = {
    "ArtifactByID": artifact_by_id,
    "ArtifactCollectionAliases": collection_aliases,
    "ArtifactCreatedBy": artifact_by_id,
    "ArtifactManifest": artifact_by_id,
    "ArtifactMembershipByName": membership_by_name,
    "ArtifactMembershipFiles": member_files,
    "ArtifactType": artifact_type,
    "ArtifactTypeArtifactCollections": collections,
    "ArtifactUsedBy": artifact_by_id,
    "ClientIDMapping": client_id_mapping,
    "FetchArtifactManifest": artifact_by_id,
    "GetArtifactMembershipFileUrls": member_files,
    "ProjectArtifactCollection": collections,
    "ProjectArtifactCollections": collections,
    "ProjectArtifacts": project_artifacts,
    "ProjectArtifactType": artifact_type,
    "ProjectArtifactTypes": project_types,
    "RunInputArtifacts": run_artifacts("used_artifacts"),
    "RunOutputArtifacts": run_artifacts("logged_artifacts"),
}
