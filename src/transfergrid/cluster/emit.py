"""A launch as files, for sites that let no Python launcher run: job scripts, and one shell script that sends them."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from transfergrid.cluster.groups import Group
from transfergrid.cluster.ledger import Ledger, Submission, as_line
from transfergrid.cluster.slurm import NAMES_THE_CLUSTER, OF_CLIENTS
from transfergrid.cluster.submit import Launch, intended, parents_of, sbatch_parameters, script_text, write_orders
from transfergrid.store import durable

HEAD = """#!/usr/bin/env bash
# Sends the {jobs} jobs of grid {grid} in the order of their dependencies. Run again, it sends what it has not sent yet.
set -euo pipefail
cd "$(dirname "${{BASH_SOURCE[0]}}")"
ledger={ledger} cluster={cluster}

# What the shell sets for SLURM's commands would change what they do here; only what names the cluster stays.
if [[ -n ${{SBATCH_CLUSTERS:-}} ]]; then export SLURM_CLUSTERS=$SBATCH_CLUSTERS; fi
for name in {prefixes}; do
  case " {cluster_names} " in *" $name "*) ;; *) unset "$name" ;; esac
done
here=$(scontrol show config | LC_ALL=C sed -n 's/^ClusterName *= *//p' | sed -n 1p)
cluster=${{cluster:-$here}}
if [[ -z $here || $here != "$cluster" ]]; then
  echo "these jobs were written for cluster $cluster, and this is ${{here:-none}}; send them from there" >&2
  exit 1
fi

# find TOKEN: the id of the job of which SLURM shows that its name ends with it; nothing where there is none. A job that
# sbatch refused for what no node has is shown all the same, as failed and without ever a node.
find() {{
  local rows
  if ! rows=$(squeue -a -h -r -t all -u "$(id -u)" -o '%i|%j|%T|%N' 2>/dev/null); then
    echo "squeue does not answer; run this again once it does: what was sent is found, and not sent again" >&2
    return 1
  fi
  {{
    printf '%s\n' "$rows"
    sacct -M "$cluster" -n -P -X -u "$(id -u)" -S {since} -o JobID,JobName,State,NodeList 2>/dev/null || true
  }} | LC_ALL=C sed -E '/\\|FAILED\\|(None assigned)?$/d' |
    LC_ALL=C sed -nE "s/^([0-9]+)(_[^|]*)?\\|.*-$1(\\|[A-Z_]+[^|]*\\|[^|]*)?\\$/\\1/p" | sed -n 1p
}}

# alive IDS...: those that SLURM still has, with colons between; it refuses to wait for a job that it has forgotten.
alive() {{
  local rows id ids=
  if [[ $# == 0 ]]; then return; fi
  if ! rows=$(squeue -a -h -r -t all -j "$(IFS=,; echo "$*")" -o '%i|%j' 2>&1); then
    if [[ $rows == *"Invalid job id"* ]]; then return; fi
    echo "squeue does not answer: $rows" >&2
    return 1
  fi
  for id; do
    if LC_ALL=C grep -qE "^($id(_[^|]*)?|${{id%%_*}})\\|" <<< "$rows"; then ids+=:$id; fi
  done
  echo "${{ids#:}}"
}}

# line NAME: its line of the ledger, with who sends it, where, and when.
line() {{
  local sent
  sent=$(date -u +%Y-%m-%dT%H:%M:%S+00:00)
  sed -E -e 's/"submitted": "[^"]*"/"submitted": "'"$sent"'"/' -e 's/"uid": [0-9]+/"uid": '"$(id -u)"'/' \
    -e 's/"cluster": null/"cluster": "'"$cluster"'"/' "$1.json"
}}

# send NAME TOKEN EDGE IDS...: one sbatch, of what SLURM does not have yet, after those jobs. Its id, found by the token
# whatever sbatch says, goes into NAME.id and, so that a status finds it, into the ledger.
send() {{
  local name=$1 token=$2 edge=$3 id parents failed= try; shift 3
  if [[ ! -s $name.id ]]; then
    id=$(find "$token")
    if [[ -z $id ]]; then
      parents=$(alive "$@")
      set --
      if [[ -n $parents ]]; then set -- "--dependency=$edge:$parents"; fi
      if [[ -n $parents && $edge == afterok ]]; then set -- "$@" --kill-on-invalid-dep=yes; fi
      line "$name" | sed 's/"@JOB_ID@"/null/' >> "$ledger"
      sbatch "$@" "$name.sbatch" >/dev/null || failed=$?
      for try in 1 2 3; do
        id=$(find "$token")
        if [[ -n $id ]]; then break; fi
        sleep 2
      done
    fi
    if [[ -z $id && -n $failed ]]; then
      echo "sbatch did not take $name, and SLURM shows no such job; run this again once that is mended" >&2
      exit 1
    elif [[ -z $id ]]; then
      echo "sbatch took $name, and SLURM shows no job whose name ends with $token" >&2
      exit 1
    fi
    echo "$id" > "$name.id"
    line "$name" | sed "s/@JOB_ID@/$id/" >> "$ledger"
  fi
  printf '%s  %s\\n' "$(cat "$name.id")" "$name"
}}
"""


def emit(
    folder: Path,
    launch: Launch,
    groups: Sequence[Group],
    ledger: Ledger,
    indices: Mapping[str, int],
    live: Sequence[str],
) -> Path:
    """Write <folder>/{NN-<name>.sbatch, NN-<name>.json, submit.sh}; returns submit.sh. indices: run_id -> place in the
    payload. live: ids of this grid's jobs that SLURM has already; the finish job comes after those, too."""
    durable.make_folder(folder)
    lines = [
        HEAD.format(
            jobs=sum(len(g.tasks) for g in groups) + 1,
            grid=launch.grid,
            ledger=shlex.quote(str(launch.folder / "slurm" / "submissions.jsonl")),
            cluster=shlex.quote(launch.cluster or ""),
            prefixes=" ".join(f'"${{!{prefix}@}}"' for prefix in OF_CLIENTS),
            cluster_names=" ".join(NAMES_THE_CLUSTER),
            since=(datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%d"),
        )
    ]
    task_of: dict[str, str] = {}
    job_ids = list(live)
    for number, group in enumerate(groups, start=1):
        sent, name = _write_job(folder, number, launch, group, indices)
        lines.append(_send_line(name, sent, group.edge, parents_of(group, task_of, ledger)))
        job_ids.append(f"$(cat {shlex.quote(name)}.id)")
        for i, run_ids in enumerate(group.run_ids):
            task = job_ids[-1] + (f"_{i}" if len(group.tasks) > 1 else "")
            task_of |= {run_id: task for run_id in run_ids}
    sent, name = _write_job(folder, len(groups) + 1, launch, None, indices)
    lines.append(_send_line(name, sent, "afterany", job_ids))
    script = folder / "submit.sh"
    durable.write_bytes(script, os.fsencode("\n".join(lines) + "\n"))
    script.chmod(0o775)
    return script


def _send_line(name: str, sent: Submission, edge: str, parents: Sequence[str]) -> str:
    return " ".join(["send", shlex.quote(name), str(sent.token), edge, *dict.fromkeys(f'"{p}"' for p in parents)])


def _write_job(
    folder: Path, number: int, launch: Launch, group: Group | None, indices: Mapping[str, int]
) -> tuple[Submission, str]:
    """A group's, or else the finish job's: NN-<name>.sbatch, and NN-<name>.json, its line in the ledger with @JOB_ID@
    for the id. Returns it, and NN-<name>."""
    sent = intended(launch, group)
    name = f"{number:02d}-{sent.name}"
    module = "transfergrid.cli.finish" if group is None else "transfergrid.cluster.task"
    durable.make_folder(sent.folder)
    write_orders(launch, group, indices)
    parameters = sbatch_parameters(launch, group, sent, dependency=None)
    text = script_text(sent, launch.settings, parameters, module=module)
    durable.write_bytes(folder / f"{name}.sbatch", os.fsencode(text))
    line = json.dumps(as_line(replace(sent, job_id="@JOB_ID@", sender="submit.sh")))
    durable.write_bytes(folder / f"{name}.json", os.fsencode(line) + b"\n")
    return sent, name
