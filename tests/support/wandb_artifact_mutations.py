"""The GraphQL mutations of the stand-in W&B server that concern artifacts."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

from wandb_artifacts import Entry, ServerArtifact, hex_md5, known, manifest_node, node, sequence_id, versions
from wandb_state import ENTITY, Json, Operation, Refusal, State, node_id


def create_artifact(state: State, variables: Json) -> Json:
    asked = variables.get("input") or variables
    entity, project = asked.get("entityName") or ENTITY, asked["projectName"]
    sequence = asked.get("artifactCollectionName") or asked["artifactCollectionNames"][0]
    before = versions(state, entity, project, sequence)
    artifact = next((one for one in before if one.digest == asked["digest"]), None)
    if artifact is None:
        artifact = ServerArtifact(
            id=node_id("Artifact", str(state.next_number())),
            entity=entity,
            project=project,
            type=asked["artifactTypeName"],
            sequence=sequence,
            digest=asked["digest"],
            client_id=asked.get("clientID") or "",
            run=f"{entity}/{project}/{asked['runName']}" if asked.get("runName") else None,
            description=asked.get("description"),
            metadata=json.loads(asked.get("metadata") or "{}"),
        )
        state.artifacts[artifact.id] = artifact
    elif asked.get("clientID"):
        state.same_as[asked["clientID"]] = artifact.id
    _logged_by(state, artifact, asked.get("runName"))
    artifact.aliases += [one["alias"] for one in asked.get("aliases") or [] if one["alias"] not in artifact.aliases]
    if artifact.state == "COMMITTED":
        _move_aliases(state, artifact)
    latest = {"id": before[-1].id, "versionIndex": before[-1].version} if before else None
    chain = {"id": sequence_id(artifact), "latestArtifact": latest}
    return {"createArtifact": {"artifact": {"id": artifact.id, "state": artifact.state, "artifactSequence": chain}}}


def _logged_by(state: State, artifact: ServerArtifact, run_id: str | None) -> None:
    run = state.run(artifact.entity, artifact.project, run_id)
    if run and artifact.id not in run.logged_artifacts:
        run.logged_artifacts.append(artifact.id)


def _move_aliases(state: State, artifact: ServerArtifact) -> None:
    """An alias names one version of a sequence: the one that asked for it last."""
    for other in versions(state, artifact.entity, artifact.project, artifact.sequence):
        if other is not artifact:
            other.aliases = [alias for alias in other.aliases if alias not in artifact.aliases]


def create_manifest(state: State, variables: Json) -> Json:
    artifact = known(state, variables["artifactID"])
    return {"createArtifactManifest": {"artifactManifest": manifest_node(state, artifact)}}


def update_manifest(state: State, variables: Json) -> Json:
    artifact = known(state, base64.b64decode(variables["artifactManifestID"]).decode().split(":", 2)[2])
    return {"updateArtifactManifest": {"artifactManifest": manifest_node(state, artifact)}}


def create_files(state: State, variables: Json) -> Json:
    """Where to upload each file; nowhere for contents that the server holds already."""
    nodes = []
    for spec in variables["input"]["artifactFiles"]:
        artifact = known(state, spec["artifactID"])
        digest = hex_md5(spec["md5"])
        path = f"artifact/{quote(artifact.id, safe='')}/{quote(spec['name'])}"
        nodes.append(
            {
                "storagePath": path,
                "uploadUrl": None if digest in state.contents else state.storage_url(f"content/{digest}"),
                "uploadHeaders": [f"Content-MD5:{spec['md5']}"],
                "uploadMultipartUrls": None,
                "artifact": {"id": artifact.id},
            }
        )
    return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}


def commit_artifact(state: State, variables: Json) -> Json:
    artifact = known(state, variables["artifactID"])
    if artifact.state == "PENDING":
        if artifact.manifest is None:
            raise Refusal(400, f"artifact {artifact.sequence}: no manifest was uploaded")
        contents = json.loads(artifact.manifest)["contents"]
        artifact.entries = {path: _entry(state, path, line) for path, line in contents.items()}
        before = versions(state, artifact.entity, artifact.project, artifact.sequence)
        artifact.version = (before[-1].version or 0) + 1 if before else 0
        artifact.state = "COMMITTED"
        artifact.aliases += [] if "latest" in artifact.aliases else ["latest"]
        _move_aliases(state, artifact)
    return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}


def _entry(state: State, path: str, line: Json) -> Entry:
    content = None
    if not line.get("ref"):
        content = state.contents.get(hex_md5(line["digest"]))
        if content is None:
            raise Refusal(400, f"the file {path!r} of the manifest was never uploaded")
    size = line.get("size") or 0
    return Entry(line["digest"], line.get("ref"), size, content, line.get("extra") or {})


def update_artifact(state: State, variables: Json) -> Json:
    asked = variables.get("input") or variables
    artifact = known(state, asked["artifactID"])
    if asked.get("metadata") is not None:
        artifact.metadata = json.loads(asked["metadata"])
    if asked.get("description") is not None:
        artifact.description = asked["description"]
    if asked.get("aliases") is not None:
        artifact.aliases = [one["alias"] for one in asked["aliases"]]
        _move_aliases(state, artifact)
    answer = {"artifact": node(state, artifact)}
    return {"updateArtifact": answer, "result": answer}


def add_aliases(state: State, variables: Json) -> Json:
    artifact = known(state, variables["input"]["artifactID"])
    artifact.aliases += [one["alias"] for one in variables["input"]["aliases"]]
    _move_aliases(state, artifact)
    return {"result": {"success": True}}


def delete_aliases(state: State, variables: Json) -> Json:
    artifact = known(state, variables["input"]["artifactID"])
    gone = {one["alias"] for one in variables["input"]["aliases"]}
    artifact.aliases = [alias for alias in artifact.aliases if alias not in gone]
    return {"result": {"success": True}}


def delete_artifact(state: State, variables: Json) -> Json:
    artifact = known(state, variables["input"]["artifactID"])
    artifact.state = "DELETED"
    return {"result": {"artifact": {"id": artifact.id}}}


def use_artifact(state: State, variables: Json) -> Json:
    asked = variables.get("input") or variables
    artifact = known(state, asked["artifactID"])
    run = state.run(asked.get("entityName"), asked.get("projectName"), asked.get("runName"))
    if run is None:
        raise Refusal(404, f"no run {asked.get('runName')!r} that could use an artifact")
    if artifact.id not in run.used_artifacts:
        run.used_artifacts.append(artifact.id)
    return {"useArtifact": {"artifact": node(state, artifact)}}


ARTIFACT_MUTATIONS: dict[str, Operation] = {
    "AddAliases": add_aliases,
    "CommitArtifact": commit_artifact,
    "CreateArtifact": create_artifact,
    "CreateArtifactFiles": create_files,
    "CreateArtifactManifest": create_manifest,
    "DeleteAliases": delete_aliases,
    "DeleteArtifact": delete_artifact,
    "UpdateArtifact": update_artifact,
    "UpdateArtifactManifest": update_manifest,
    "UseArtifact": use_artifact,
}
