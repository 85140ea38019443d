"""Clients of the stand-in W&B server: bare HTTP, and real wandb in a process of its own (its state is global)."""

from __future__ import annotations

import base64
import http.client
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from wandb_server import KEY, StandIn

_PRELUDE = """
import json, sys
import wandb

def start(run_id, **arguments):
    # Whole seconds: the client cuts the rest off, and takes its own 2 s for 0.
    patience = {f"x_{part}_retry_wait_min_seconds": 1 for part in ("graphql", "file_stream", "file_transfer")}
    settings = wandb.Settings(
        console="off", silent=True, x_disable_stats=True, x_disable_meta=True, disable_git=True, disable_code=True,
        x_save_requirements=False, **patience,
    )
    return wandb.init(project="p", id=run_id, resume="allow", reinit="create_new", settings=settings, **arguments)

def tell(**facts):
    print(json.dumps(facts))
"""


def real_wandb(server: StandIn, folder: Path, code: str, *, init_s: int = 20, finish_s: int = 20) -> dict[str, Any]:
    """Run `code` with wandb and `start(run_id, ...)`; what it gave to `tell(...)` last. Raises if it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    patience = {"WANDB_INIT_TIMEOUT": str(init_s), "WANDB_FINISH_TIMEOUT": str(finish_s)}
    environment = os.environ | server.environment(folder) | patience
    done = subprocess.run(
        [sys.executable, "-c", _PRELUDE + code],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.strip().splitlines()
    told: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return told


class Http:
    """One connection to the server, kept alive, with or without the right key."""

    def __init__(self, port: int, *, key: str = KEY, timeout_s: float = 10) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
        self.headers = {"Authorization": "Basic " + base64.b64encode(f"api:{key}".encode()).decode()}

    def __enter__(self) -> Http:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def send(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        self.connection.request(method, path, body, self.headers)
        response = self.connection.getresponse()
        return response.status, response.read()

    def graphql(self, operation: str, **variables: Any) -> tuple[int, Any]:
        """Status, and the parsed answer as a whole ({"data": ...} or {"errors": ...})."""
        kind = "mutation" if operation in ("UpsertBucket", "DeleteRun", "upsertView") else "query"
        query = f"{kind} {operation} {{ summaryMetrics historyTail historyKeys }}"
        status, body = self.send("POST", "/graphql", json.dumps({"query": query, "variables": variables}).encode())
        return status, json.loads(body)

    def make_run(self, run_id: str, **fields: Any) -> dict[str, Any]:
        """Start a run in the project "p" of the entity "local"; its node. `config` is plain."""
        config = {key: {"value": value} for key, value in fields.pop("config", {}).items()}
        status, answer = self.graphql("UpsertBucket", name=run_id, project="p", config=json.dumps(config), **fields)
        assert status == 200, answer
        node: dict[str, Any] = answer["data"]["upsertBucket"]["bucket"]
        return node

    def stream(self, run_id: str, rows: list[dict[str, Any]], *, offset: int = 0, **more: Any) -> int:
        """Send rows of the history (and `complete=True, exitcode=0`); the status."""
        history = {"offset": offset, "content": [json.dumps(row) for row in rows]}
        body = json.dumps({"files": {"wandb-history.jsonl": history}} | more).encode()
        return self.send("POST", f"/files/local/p/{run_id}/file_stream", body)[0]
