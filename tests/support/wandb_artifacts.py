"""Artifacts at the stand-in W&B server: their GraphQL operations and the store of their files.

The life of a version: CreateArtifact (PENDING, or the committed one with the same digest), CreateArtifactManifest,
CreateArtifactFiles, PUT of the files and of the manifest, CommitArtifact. Contents are kept once, by their MD5.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote

from wandb_state import Json, Refusal, State, dumps, node_id, now, project_node


@dataclass(frozen=True)
class Entry:
    """One line of a manifest. A reference has `ref`; an uploaded file has its bytes in `content`."""

    digest: str
    ref: str | None
    size: int
    content: bytes | None
    extra: Json


@dataclass
class ServerArtifact:
    """One version of an artifact."""

    id: str
    entity: str
    project: str
    type: str
    sequence: str
    digest: str
    client_id: str
    run: str | None  # path of the run that logged it
    description: str | None = None
    metadata: Json = field(default_factory=dict)
    aliases: list[str] = field(default_factory=list)
    version: int | None = None  # from the commit on
    state: Literal["PENDING", "COMMITTED", "DELETED"] = "PENDING"
    manifest: bytes | None = None
    entries: dict[str, Entry] = field(default_factory=dict)
    created_at: str = field(default_factory=now)

    @property
    def name(self) -> str:
        """As W&B writes it: "final-tables:v0"; without a version before the commit."""
        return self.sequence if self.version is None else f"{self.sequence}:v{self.version}"

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.entries.values())


# ------------------------------------------------------------------------------------------------------------- look-ups
def known(state: State, artifact_id: str) -> ServerArtifact:
    if artifact_id not in state.artifacts:
        raise Refusal(404, f"no artifact has the id {artifact_id}")
    return state.artifacts[artifact_id]


def versions(state: State, entity: str, project: str, sequence: str) -> list[ServerArtifact]:
    """The committed versions, oldest first."""
    place = (entity, project, sequence)
    found = [one for one in state.artifacts.values() if (one.entity, one.project, one.sequence) == place]
    return sorted((one for one in found if one.state == "COMMITTED"), key=lambda one: one.version or 0)


def by_name(state: State, entity: str, project: str, name: str) -> ServerArtifact | None:
    """The version that "sequence", "sequence:alias" or "sequence:v3" means."""
    sequence, _, alias = name.partition(":")
    alias = alias or "latest"
    for one in versions(state, entity, project, sequence):
        if alias in one.aliases or alias == f"v{one.version}" or alias == one.digest:
            return one
    return None


# ------------------------------------------------------------------------------------------------- as queries show it
def node(state: State, artifact: ServerArtifact) -> Json:
    sequence = sequence_node(state, artifact)
    aliases = [alias_node(artifact, alias) | {"artifactCollection": sequence} for alias in artifact.aliases]
    return {
        "__typename": "Artifact",
        "id": artifact.id,
        "artifactSequence": sequence,
        "versionIndex": artifact.version,
        "artifactType": {"name": artifact.type},
        "description": artifact.description,
        "metadata": dumps(artifact.metadata),
        "ttlDurationSeconds": -2,  # the client's number for "none of its own"
        "ttlIsInherited": True,
        "tags": [],
        "historyStep": None,
        "state": artifact.state,
        "size": artifact.size,
        "digest": artifact.digest,
        "digestAlgorithm": "MANIFEST_MD5",
        "commitHash": artifact.id,
        "fileCount": len(artifact.entries),
        "createdAt": artifact.created_at,
        "updatedAt": artifact.created_at,
        "aliases": aliases,
    }


def alias_node(artifact: ServerArtifact, alias: str) -> Json:
    return {"__typename": "ArtifactAlias", "id": node_id("ArtifactAlias", artifact.id, alias), "alias": alias}


def sequence_id(artifact: ServerArtifact) -> str:
    return node_id("ArtifactSequence", artifact.entity, artifact.project, artifact.sequence)


def sequence_node(state: State, artifact: ServerArtifact) -> Json:
    return {
        "__typename": "ArtifactSequence",
        "id": sequence_id(artifact),
        "name": artifact.sequence,
        "description": None,
        "createdAt": artifact.created_at,
        "updatedAt": artifact.created_at,
        "project": project_node(state, artifact.entity, artifact.project),
        "type": {"name": artifact.type},
        "tags": {"edges": []},
    }


def manifest_node(state: State, artifact: ServerArtifact) -> Json:
    url = state.storage_url(f"manifest/{quote(artifact.id, safe='')}")
    file = {"id": node_id("File", artifact.id), "uploadUrl": url, "uploadHeaders": [], "directUrl": url}
    return {"id": node_id("ArtifactManifest", artifact.id), "digest": artifact.digest, "file": file}


def hex_md5(md5: str) -> str:
    return base64.b64decode(md5).hex()
