"""Two live clusters under one accounting, one store, and a colleague's jobs in between whose numbers are ours as well.

Whatever is launched, cancelled and looked at from whichever cluster, no foreign job is touched, no run is sent twice.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sandbox import Sandbox
from slurm_runs import QUICK, submissions

from transfergrid.cli.launch import launch
from transfergrid.cli.status import status

pytestmark = pytest.mark.slurm

Variant = Callable[..., Sandbox]
HELD = "cluster.sbatch={hold: true}"
SEEDS = range(4)
GRID = (
    *("grid=quickstart", "grid.variants={}", "grid.models=[baseline_cnn]", "grid.phases=[scratch]", *QUICK),
    *("cluster=slurm", HELD, "replace=true"),
)
ENDED = ("CANCELLED", "COMPLETED", "FAILED")
# What a user's shell may set for SLURM's commands; each would make one of ours blind, or harmless where it should act.
SHELLS: tuple[dict[str, str], ...] = (
    *({}, {}, {}, {"SQUEUE_PARTITION": "short"}, {"SQUEUE_USERS": "nobody"}, {"SCANCEL_STATE": "RUNNING"}),
    *({"SQUEUE_NAMES": "x"}, {"SACCT_FORMAT": "JobID"}, {"SBATCH_JOB_NAME": "x"}, {"SCANCEL_PARTITION": "short"}),
)


@pytest.fixture(scope="module")
def clusters(slurm_variant: Variant) -> tuple[Sandbox, Sandbox]:
    alpha = slurm_variant(cluster_name="alpha", nodes=1, gpus=1)
    return alpha, slurm_variant(cluster_name="beta", nodes=1, gpus=1, accounts_in=str(alpha.dir))


@pytest.fixture
def lab(clusters: tuple[Sandbox, Sandbox], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    made = Lab(dict(zip(("alpha", "beta"), clusters, strict=True)), tmp_path / "results", monkeypatch)
    yield made
    for cluster in clusters:
        for user in ("root", "nobody"):
            cluster.run("scancel", "-u", user)


@dataclass
class Lab:
    """foreign: (cluster, job) -> its name."""

    clusters: dict[str, Sandbox]
    store: Path
    shell: pytest.MonkeyPatch
    foreign: dict[tuple[str, str], str] = field(default_factory=dict)

    def on(
        self, name: str, command: Callable[[list[str]], int], *arguments: str, env: dict[str, str] | None = None
    ) -> int:
        """As typed on this cluster's login node."""
        with pytest.MonkeyPatch.context() as shell:
            shell.setenv("SLURM_CONF", str(self.clusters[name].conf))
            for key, value in (env or {}).items():
                shell.setenv(key, value)
            return command(list(arguments))

    def colleague(self, name: str, job_name: str, *, uid: str = "nobody") -> str:
        """A held job of somebody else's, or of ours that is none of the store's."""
        command = ("sbatch", "--parsable", "--hold", f"--uid={uid}", "-J", job_name, "-o", "/dev/null", "--mem=10M")
        job_id = self.clusters[name].run(*command, "--chdir=/tmp", "--wrap=sleep 600").strip()
        self.foreign[name, job_id] = job_name
        return job_id

    def alive(self) -> dict[tuple[str, str], str]:
        """(cluster, job or task) -> the job's name, of all that has not ended."""
        found: dict[tuple[str, str], str] = {}
        for name, cluster in self.clusters.items():
            lines = cluster.run("squeue", "-a", "-h", "-r", "-t", "all", "-o", "%i|%T|%j").splitlines()
            rows = (line.split("|", 2) for line in lines)
            found |= {(name, job): job_name for job, state, job_name in rows if state not in ENDED}
        return found

    def runs_alive(self) -> Counter[str]:
        """run_id -> how many live jobs it has. Every one of ours is in the ledger, by cluster, number and token."""
        counted: Counter[str] = Counter()
        sent = {(s["cluster"], s["job_id"], s["token"]): s for s in submissions(self.store)}
        for (name, task), job_name in self.alive().items():
            if (name, task) in self.foreign:
                continue
            number, _, index = task.partition("_")
            submission = sent[name, number, job_name.rpartition("-")[2]]
            if submission["kind"] == "runs":
                counted.update(submission["tasks"][int(index or 0)])
        return counted

    def check(self) -> None:
        alive = self.alive()
        assert {key: alive.get(key) for key in self.foreign} == self.foreign, "a foreign job was touched"
        assert [run_id for run_id, jobs in self.runs_alive().items() if jobs > 1] == [], "a run was sent twice"


def seeds(*numbers: int) -> str:
    return f"grid.seeds=[{','.join(map(str, numbers))}]"


def test_a_store_used_from_two_clusters_leaves_each_its_own(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab.on("alpha", launch, *GRID, seeds(0)) == 0
    mine = {int(task) for cluster, task in lab.alive() if cluster == "alpha"}
    theirs = 0
    while theirs < max(mine):  # beta gives the same numbers to a colleague, and to jobs of ours beside the store
        theirs = int(lab.colleague("beta", "train-a-net", uid="root" if theirs % 2 else "nobody"))
    lab.check()
    assert mine <= {int(task) for _, task in lab.foreign}
    capsys.readouterr()

    assert lab.on("beta", status, "grid=quickstart") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "1 unknown" in text and "cluster alpha has the jobs of 1 of these runs; this is cluster beta" in text
    assert lab.on("beta", launch, *GRID, seeds(0)) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "nothing to submit" in text and "is on cluster alpha" in text
    assert lab.on("beta", status, "grid=quickstart", "cancel=true") == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "left alone" in text and "with SLURM_CLUSTERS=alpha before this command" in text
    lab.check()
    assert sum(lab.runs_alive().values()) == 1

    assert lab.on("beta", status, "grid=quickstart", "cancel=true", env={"SLURM_CLUSTERS": "alpha"}) == 0
    assert "cancelled 1 job of 1 run" in capsys.readouterr().out
    lab.check()
    assert lab.runs_alive() == {}
    assert lab.on("beta", launch, *GRID, seeds(0), env={"SBATCH_CLUSTERS": "alpha"}) == 0  # honoured by every command
    assert {s["cluster"] for s in submissions(lab.store)} == {"alpha"}
    assert sum(lab.runs_alive().values()) == 1
    lab.check()


def test_the_users_word_sends_a_run_that_another_cluster_has(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab.on("alpha", launch, *GRID, seeds(0, 1)) == 0
    assert lab.on("alpha", status, "grid=quickstart", "run=-s1-", "cancel=true") == 0
    capsys.readouterr()
    assert lab.on("beta", status, "grid=quickstart", "retry=failed") == 0
    assert sorted(lab.runs_alive().values()) == [1, 1], "the one that was cancelled there, as the accounts tell"
    capsys.readouterr()
    assert lab.on("beta", status, "grid=quickstart", "retry=unknown") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "is on cluster alpha" in text and "submitted 1 job" in text
    assert sorted(lab.runs_alive().values()) == [1, 2]
    assert lab.on("beta", launch, *GRID, seeds(0, 1)) == 0
    assert sorted(lab.runs_alive().values()) == [1, 2], "and nothing but a word sends it again"


FOREIGN = (
    ("theirs", "nobody"),
    ("tg-quickstart-scratch-0a1b2c3d4e-0123456789ab", "nobody"),
    ("my-other-work", "root"),
)


def walk(lab: Lab, seed: int, steps: int) -> Counter[str]:
    """So many commands by chance, each from one of the two clusters; how often each was given."""
    chance, done = random.Random(seed), Counter[str]()
    for step in range(steps):
        name, env = chance.choice(("alpha", "beta")), chance.choice(SHELLS)
        some = sorted(chance.sample(SEEDS, chance.randint(1, len(SEEDS))))
        action = chance.choices(("launch", "cancel", "cancel one", "status", "colleague"), (4, 2, 2, 2, 1))[0]
        before = lab.runs_alive() if step else Counter()
        if action == "colleague" or not step:
            # Until this cluster has given away the numbers that ours have on the other one.
            ours = [int(s["job_id"]) for s in submissions(lab.store) if s["cluster"] != name]
            for job_name, uid in chance.choices(FOREIGN, k=12):
                if int(lab.colleague(name, job_name, uid=uid)) >= max(ours, default=2):
                    break
        elif action == "launch":
            assert lab.on(name, launch, *GRID, seeds(*some), env=env) == 0
        elif not submissions(lab.store):
            continue
        elif action == "status":
            assert lab.on(name, status, "grid=quickstart", env=env) in (0, 1)
            assert lab.runs_alive() == before
        elif action == "cancel":
            assert lab.on(name, status, "grid=quickstart", "cancel=true", env=env) in (0, 1)
        else:
            runs = sorted({run_id for s in submissions(lab.store) for task in s["tasks"] for run_id in task})
            one = chance.choice(runs)
            assert lab.on(name, status, f"run={one}", "cancel=true", env=env) in (0, 1)
            assert {r: n for r, n in lab.runs_alive().items() if r != one} == {
                r: n for r, n in before.items() if r != one
            }
        lab.check()
        done[action] += 1
    return done


def test_a_random_walk_touches_no_foreign_job_and_sends_no_run_twice(lab: Lab) -> None:
    done = walk(lab, seed=1, steps=25)
    assert done["launch"] > 4 and done["cancel"] + done["cancel one"] > 4 and len(lab.foreign) > 2


@pytest.mark.full
def test_a_hundred_random_steps_touch_no_foreign_job_and_send_no_run_twice(lab: Lab) -> None:
    done = walk(lab, seed=20261129, steps=100)
    ours = {(s["cluster"], s["job_id"]) for s in submissions(lab.store)}
    met = {(c, j) for c, j in ours if ({"alpha": "beta", "beta": "alpha"}[c], j) in lab.foreign}
    assert done["launch"] > 20 and done["cancel"] > 5 and len(lab.foreign) > 10
    assert len(met) > 5, "numbers that are ours on one cluster and foreign on the other"
