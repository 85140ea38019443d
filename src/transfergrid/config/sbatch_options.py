"""What `cluster.sbatch` may hold: any option of sbatch but those by which this launcher asks, orders and finds jobs."""

from __future__ import annotations

import re
from typing import Any

from transfergrid.errors import ConfigError

_OURS = "is set by the launcher itself; leave it out"
_ONE_TASK = "does not fit: a run is one task on one node, as the launcher asks; leave it out"
_NOT_SENT = "makes sbatch answer and send nothing; leave it out"
_GPUS = "has a key of its own, cluster.gpus= (with cluster.gpu_type=; the option is chosen by cluster.gpu_request=)"
_CPUS = "has a key of its own, cluster.cpus="
# Option of sbatch that collides -> what is to be said of it.
COLLIDES: dict[str, str] = {
    **dict.fromkeys(("array", "dependency", "error", "job-name", "kill-on-invalid-dep", "open-mode", "output"), _OURS),
    **dict.fromkeys(("parsable", "signal", "test-only", "wait", "wrap"), _OURS),
    **dict.fromkeys(("ntasks", "ntasks-per-core", "ntasks-per-socket", "ntasks-per-gpu"), _ONE_TASK),
    **dict.fromkeys(("nodes", "ntasks-per-node"), _ONE_TASK),
    **dict.fromkeys(("help", "usage", "version"), _NOT_SENT),
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket", "tres-per-node"), _GPUS),
    **dict.fromkeys(("cpus-per-task", "cpus-per-gpu", "tres-per-task"), _CPUS),
    "mem": "has a key of its own, cluster.mem_gb=",
    "mem-per-cpu": "has a key of its own, cluster.mem_per_cpu_gb=",
    "mem-per-gpu": "has a key of its own, cluster.mem_per_gpu_gb=",
    "time": "has a key of its own, cluster.timeout_min=",
    **{o: f"has a key of its own, cluster.{o}=" for o in ("partition", "account", "qos", "constraint", "exclude")},
    "wckey": "has a key of its own, cluster.wckey=",
}
SHORT = {
    **{"a": "array", "A": "account", "B": "extra-node-info", "b": "begin", "c": "cpus-per-task", "C": "constraint"},
    **{"d": "dependency", "D": "chdir", "e": "error", "F": "nodefile", "G": "gpus", "h": "help", "H": "hold"},
    **{"i": "input", "I": "immediate", "J": "job-name", "k": "no-kill", "L": "licenses", "m": "distribution"},
    **{"M": "clusters", "n": "ntasks", "N": "nodes", "o": "output", "O": "overcommit", "p": "partition", "q": "qos"},
    **{"Q": "quiet", "s": "oversubscribe", "S": "core-spec", "t": "time", "V": "version", "v": "verbose"},
    **{"w": "nodelist", "W": "wait", "x": "exclude"},
}


def checked_option(key: Any, value: Any, *, gpus: bool) -> tuple[str, str | bool]:
    """One entry as sbatch is given it. gpus: whether some job asks for GPUs, which a gres of the user's may not.

    Raises ConfigError where it collides with a request of ours, or is no option.
    """
    name = str(key).replace("_", "-")
    long = SHORT.get(name, name)
    spelled = f"cluster.sbatch: {str(key)!r}" + (f" ({long})" if long != name else "")
    if "clusters".startswith(long) and long.startswith("cl"):  # sbatch takes the beginning of a name for the name
        raise ConfigError(
            f"{spelled} would be followed by sbatch alone; export SLURM_CLUSTERS={value} instead, which every command"
            " follows"
        )
    collides = long if long in COLLIDES else next((o for o in COLLIDES if o.startswith(long)), None)
    if re.fullmatch(r"[a-z][a-z-]*", long) is None:
        raise ConfigError(f"{spelled} is not an option of sbatch; write it as {{mail-type: END}}")
    if collides is not None:
        raise ConfigError(f"{spelled} {COLLIDES[collides]}")
    if long != "gres" and "gres".startswith(long):
        raise ConfigError(f"{spelled} is short for gres; write it in full")
    if value is None or value is False:
        raise ConfigError(
            f"cluster.sbatch.{key}={value} is no value of an option; leave it out, or give true to set it"
        )
    if isinstance(value, float):
        raise ConfigError(f"cluster.sbatch.{key}={value!r} was read as a number; write it in quotes")
    if long == "gres" and gpus and re.search(r"(?:^|,)(?:gres[/:])?gpu(?:[:=,]|$)", str(value)):
        raise ConfigError(f"cluster.sbatch.gres={value!r} holds GPUs; cluster.gpus= and cluster.gpu_type= ask for them")
    return long, value if value is True else str(value)
