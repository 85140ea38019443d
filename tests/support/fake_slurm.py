"""SLURM's commands as executables of a folder of their own that print what a test wrote down: for faults a real
cluster does not have on demand. Nothing of it decides anything."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

CONFIG = {
    "AccountingStorageType": "accounting_storage/slurmdbd",
    "AccountingStorageEnforce": "associations,limits,qos",
    "ClusterName": "fake",
    "JobRequeue": "1",
    "KillWait": "30 sec",
    "MaxArraySize": "1001",
    "MaxJobCount": "10000",
    "MinJobAge": "300 sec",
    "PreemptType": "preempt/none",
}
PARTITIONS = """\
PartitionName=gpu AllowAccounts=ALL AllowQos=ALL Default=YES GraceTime=0 MaxTime=1-00:00:00 PreemptMode=OFF State=UP \
MaxCPUsPerNode=UNLIMITED MaxMemPerNode=UNLIMITED
PartitionName=cpu AllowAccounts=lab AllowQos=normal Default=NO GraceTime=0 MaxTime=UNLIMITED PreemptMode=OFF State=UP \
MaxCPUsPerNode=16 MaxMemPerNode=32768
PartitionName=old AllowAccounts=ALL AllowQos=ALL Default=NO GraceTime=0 MaxTime=UNLIMITED PreemptMode=OFF State=DRAIN \
MaxCPUsPerNode=UNLIMITED MaxMemPerNode=UNLIMITED
"""
SINFO = """\
gpu|mixed|3|32|256000|gpu:a100:4(S:0-1)
gpu|idle|2|64|512000|gpu:v100:2,gpu:h100.80gb:1
gpu|down*|1|32|256000|gpu:a100:4(S:0-1)
cpu|allocated|10|48|192000|(null)
old|drained|4|8|32000|gpu:2
"""
# DefaultAccount, Account, QOS, DefaultQOS, MaxSubmitJobs, GrpSubmitJobs, GrpTRES, MaxTRESPerJob
USER = "lab|lab|long,normal|normal|200|||\nlab|other|normal|normal|5|||\n"
# Name, MaxSubmitJobsPerUser, GrpSubmitJobs, MaxWall, MinTRESPerJob, GrpTRES, MaxTRESPer: Job, User, Account, Flags
QOS = "normal|150||||||||\nlong|||2-00:00:00||||||\nsecret|||||||||\n"


class FakeSlurm:
    """says: `command word` -> what the command prints where `word` is among its arguments; `!text`: it fails so.

    states: job -> state, as squeue tells it. outputs: of the jobs `node` (71) and `pair` (72), None = it leaves none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state.json"
        self.calls = folder / "calls"
        self.states: dict[str, str] = {"71": "COMPLETED", "72": "COMPLETED"}
        self.outputs: dict[str, str | None] = {"node": "", "pair": ""}
        self.say("scontrol partition", PARTITIONS)
        self.say("sinfo", SINFO)
        self.say("sacctmgr user", USER)
        self.say("sacctmgr qos", QOS)
        self.say("sacct", "")
        self.say("squeue -u", "")
        self.config()
        self.save()
        for name in ("scontrol", "sinfo", "sacctmgr", "sacct"):
            self._write(name, _PLAIN)
        for name, code in _JOBS.items():
            self._write(name, f"#!{sys.executable} -IS\n{_HEAD}{code}")

    def _write(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(script.replace("FOLDER", str(self.folder)))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def save(self) -> None:
        self.state.write_text(json.dumps({"states": self.states, "outputs": self.outputs}))

    def config(self, **changed: str) -> None:
        self.say("scontrol config", "".join(f"{k} = {v}\n" for k, v in (CONFIG | changed).items()))

    def say(self, command: str, text: str) -> None:
        name, _, word = command.partition(" ")
        path = self.folder / f"{name}.{word}"
        path.write_text(text.removeprefix("!"))
        failing = path.with_name(path.name + ".fails")
        if text.startswith("!"):
            failing.touch()
        else:
            failing.unlink(missing_ok=True)

    def called(self, name: str) -> list[list[str]]:
        """The arguments of each call of sbatch, scancel or squeue."""
        calls = [json.loads(line) for line in self.calls.read_text().splitlines()] if self.calls.exists() else []
        return [call[1:] for call in calls if call[0] == name]


def noisy(folder: Path, real: Path) -> Path:
    """Commands of a site that wraps SLURM's: each prints notes of its own, in Latin-1, before and after the answer."""
    folder.mkdir()
    for name in ("sinfo", "squeue", "scontrol", "sacct", "sacctmgr", "sbatch", "scancel", "srun"):
        note = b"printf 'Wartung im M\\344rz: job 7 of 13 | see = w|e|b\\n7 7_1 gpu\\n'\n"
        text = b'#!/bin/bash\n%s%s%s/%s "$@"; code=$?\n%sexit $code\n' % (
            *(note, note.replace(b"\n'\n", b"\n' >&2\n")),
            *(str(real).encode(), name.encode(), note),
        )
        (folder / name).write_bytes(text)
        (folder / name).chmod(0o755)
    return folder


_PLAIN = """\
#!/bin/sh
name=${0##*/}
echo "[\\"$name\\"]" >> FOLDER/calls
said=FOLDER/$name.
for word in "$@"; do [ -f "FOLDER/$name.$word" ] && said=FOLDER/$name.$word; done
[ -f "$said.fails" ] && cat "$said" >&2 && exit 1
exec cat "$said"
"""
_HEAD = """\
import json, pathlib, sys
folder, name, args = pathlib.Path('FOLDER'), pathlib.Path(sys.argv[0]).name, sys.argv[1:]
says = json.loads((folder / 'state.json').read_text())
with open(folder / 'calls', 'a') as file:
    file.write(json.dumps([name, *args]) + '\\n')
"""
_JOBS = {
    "scancel": "",
    "squeue": """\
if '-u' in args:
    sys.stdout.write((folder / 'squeue.-u').read_text())
    sys.exit(0)
known = folder / 'names.json'
names = json.loads(known.read_text()) if known.exists() else {}
fields = [f.partition(':') for f in args[args.index('-O') + 1].split(',')]
for job, state in says['states'].items():
    reason = 'Priority' if state == 'PENDING' else 'None'
    values = {'Name': names.get(job, 'theirs'), 'JobArrayID': job, 'State': state, 'Reason': reason}
    print(''.join(values.get(f, '').ljust(int(width)) for f, _, width in fields))
""",
    "sbatch": """\
if (folder / 'sbatch.').exists():
    sys.exit((folder / 'sbatch.').read_text())
kind = 'pair' if 'pair-job' in args[-1] else 'node'
out = next(a for a in args if a.startswith('--output=')).partition('=')[2]
if says['outputs'][kind] is not None:
    pathlib.Path(out).write_text(says['outputs'][kind])
number = {'node': 71, 'pair': 72}[kind]
known = folder / 'names.json'
names = json.loads(known.read_text()) if known.exists() else {}
names[str(number)] = next(a for a in args if a.startswith('--job-name=')).partition('=')[2]
known.write_text(json.dumps(names))
print('the next maintenance is job 9 of the series')
print('Submitted batch job', number)
""",
}


@pytest.fixture
def a_fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """On the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return FakeSlurm(folder)
