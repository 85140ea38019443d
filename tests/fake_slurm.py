"""SLURM's commands as executables of a folder of their own that print what a test wrote down: for faults a real
cluster does not have on demand. Nothing of it decides anything."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

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
# DefaultAccount, Account, QOS, DefaultQOS, MaxSubmitJobs, GrpSubmitJobs
USER = "lab|lab|long,normal|normal|200|\nlab|other|normal|normal|5|\n"
# Name, MaxSubmitJobsPerUser, GrpSubmitJobs, MaxWall
QOS = "normal|150||\nlong|||2-00:00:00\nsecret|||\n"


class FakeSlurm:
    """says: `command word word` -> what the command prints where its arguments hold these words; `!text`: it fails."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "says.json"
        self.calls = folder / "calls"
        self.says: dict[str, str] = {
            "scontrol config": "".join(f"{key} = {value}\n" for key, value in CONFIG.items()),
            "scontrol partition": PARTITIONS,
            "sinfo": SINFO,
            "sacctmgr user": USER,
            "sacctmgr qos": QOS,
            "sacct": "",
            "squeue -u": "",
            "scancel": "",
        }
        self.states: dict[str, str] = {"71": "COMPLETED", "72": "COMPLETED"}
        self.outputs: dict[str, str | None] = {"node": "", "pair": ""}
        for name in ("scontrol", "sinfo", "sacctmgr", "sacct", "scancel", "squeue", "sbatch"):
            path = folder / name
            path.write_text(_script(name, self.state, self.calls))
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        self.save()

    def save(self) -> None:
        says: dict[str, Any] = self.says | {"states": self.states, "outputs": self.outputs}
        self.state.write_text(json.dumps(says))

    def config(self, **changed: str) -> None:
        self.says["scontrol config"] = "".join(f"{k} = {v}\n" for k, v in (CONFIG | changed).items())
        self.save()

    def say(self, command: str, text: str) -> None:
        self.says[command] = text
        self.save()

    def called(self, name: str) -> list[list[str]]:
        calls = [json.loads(line) for line in self.calls.read_text().splitlines()] if self.calls.exists() else []
        return [call[1:] for call in calls if call[0] == name]


def _script(name: str, state: Path, calls: Path) -> str:
    head = (
        f"#!{sys.executable} -IS\n"
        "import json, os, pathlib, sys\n"
        f"says, name, args = json.loads(pathlib.Path({str(state)!r}).read_text()), {name!r}, sys.argv[1:]\n"
        f"with open({str(calls)!r}, 'a') as file: file.write(json.dumps([name, *args]) + '\\n')\n"
    )
    return head + (_SPECIAL.get(name, "") + _PLAIN)


_PLAIN = """\
key = next((k for k in says if k.split()[0] == name and all(w in args for w in k.split()[1:])), None)
text = says[key]
if text.startswith('!'):
    sys.exit(text[1:])
sys.stdout.write(text)
"""
_SPECIAL = {
    "squeue": """\
if '-u' not in args:
    fields = [f.partition(':') for f in args[args.index('-O') + 1].split(',')]
    for job, state in says['states'].items():
        values = {'JobArrayID': job, 'State': state, 'Reason': 'Priority' if state == 'PENDING' else 'None'}
        print(''.join(values.get(f, '').ljust(int(width)) for f, _, width in fields))
    sys.exit(0)
""",
    "sbatch": """\
if 'sbatch' in says:
    sys.exit(says['sbatch'][1:])
kind = 'pair' if 'pair-job' in args[-1] else 'node'
out = next(a for a in args if a.startswith('--output=')).partition('=')[2]
if says['outputs'][kind] is not None:
    pathlib.Path(out).write_text(says['outputs'][kind])
print({'node': 71, 'pair': 72}[kind])
sys.exit(0)
""",
}
