"""conf/cluster/<name>.yaml -> values, each as its author typed it; and these, as people and SLURM write them, by type.

YAML 1.1 reads 8:00:00 as 28800, 0123 as 83, 12e3 as 12000 and `on` as true. So every value is read as text here, null
excepted, and gets its type from its key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from transfergrid.config.folders import find
from transfergrid.errors import ConfigError
from transfergrid.resources import MEMORY, UNLIMITED

TIMES = ("timeout_min",)
WHOLE = ("gpus", "cpus")
LISTED = ("partition", "finish_partition", "exclude", "constraint")  # several names, which SLURM takes as one text
_SIZE_IN_GB = {"K": 1 / 1024**2, "M": 1 / 1024, "G": 1.0, "T": 1024.0}
_JOINED_BY = {"constraint": "&"}
TIME_FORMS = "minutes as 480, or 8:00:00, 30:00 (minutes:seconds), 1-00, 1-12:30:00, UNLIMITED, null (the site's own)"
FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class _Texts(yaml.SafeLoader):
    """Every value as a text, null as None. A key given twice is an error."""

    yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in forms if tag.rpartition(":")[2] in ("null", "merge")]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1 and key.value != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def read_cluster_file(name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The file's values, those of the files that its `defaults` name first. Raises ConfigError that names the file."""
    path = find("cluster", name)
    assert path is not None, name  # a name of choices()
    try:
        content = yaml.load(path.read_bytes().decode(), Loader=_Texts)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise ConfigError(f"{path}{line}: {error.problem or error.context}; a line is written key: value") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}, not keys with values; a line is written key: value")
    for other in content.pop("defaults", None) or []:
        if other == "_self_":
            continue
        if not isinstance(other, str) or find("cluster", other) in (None, path):
            raise ConfigError(f"{path}: defaults: {other!r} is not another file in cluster/")
        yield from read_cluster_file(other)
    if isinstance(options := content.get("sbatch"), dict):
        content["sbatch"] = {key: FLAGS.get(str(value).lower(), value) for key, value in options.items()}
    yield path, {str(key): value for key, value in content.items()}


# ---------------------------------------------------------------- times, sizes and names as people and SLURM write them
def minutes(text: str) -> int | None:
    """SLURM's own notation: minutes, minutes:seconds, h:m:s, d-h, d-h:m, d-h:m:s; seconds are rounded up. UNLIMITED
    for no limit. None for any other text."""
    if text.strip().upper() in ("UNLIMITED", "INFINITE", "-1"):
        return UNLIMITED
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip(), re.ASCII)
    if match is None:
        return None
    days, *parts = match.groups()
    units_s = (3600, 60, 1) if days or parts[2] else (60, 1)
    seconds = int(days or 0) * 86_400 + sum(unit * int(part or 0) for unit, part in zip(units_s, parts, strict=False))
    return -(-seconds // 60)


def gigabytes(text: str) -> float | None:
    """`32`, `1.5`, `32G`, `32GB`, `32 GiB`, `16000M` in SLURM's units of 1024. None for any other text."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(?:([KMGT])(?:i?B)?)?", text.strip(), re.ASCII | re.IGNORECASE)
    return None if match is None else float(match[1]) * _SIZE_IN_GB[(match[2] or "G").upper()]


def as_setting(key: str, value: Any, *, where: str) -> Any:
    """A value of a cluster key (its last part) in the type of the settings; what is no other way of writing one stays.

    Raises ConfigError, naming `where`, for what can only be guessed at.
    """
    if isinstance(value, str) and "${" in value:
        return value
    if key in TIMES and isinstance(value, str):
        time_min = minutes(value)
        if time_min is None:
            raise ConfigError(f"{where}={value!r} is not a time; give {TIME_FORMS}")
        return time_min
    if key in MEMORY and isinstance(value, str):
        size = gigabytes(value)
        return value if size is None else size
    if key in WHOLE and isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value, re.ASCII):
        return int(value)
    if key == "gpus" and isinstance(value, str) and (typed := re.fullmatch(r"(?:gpu:)?([\w.-]+)[:=](\d+)", value)):
        raise ConfigError(f"{where}={value} is not a whole number; give gpus={typed[2]} and gpu_type={typed[1]}")
    if key in LISTED and isinstance(value, (list, tuple)):
        return _JOINED_BY.get(key, ",").join(map(str, value))
    if key == "setup" and isinstance(value, str):
        return [line for line in value.splitlines() if line.strip()]
    return value


def whole_or_real(key: str, value: Any, *, where: str) -> Any:
    """A number as by_phase gives it, of its key's type. Raises ConfigError where it is none."""
    value = as_setting(key, value, where=where)
    allowed = (int, float) if key in MEMORY else (int,)
    if value is None and key in (*MEMORY, *TIMES):
        return None
    if isinstance(value, bool) or not isinstance(value, allowed) or not math.isfinite(value):
        raise ConfigError(f"{where}={value!r} is not a {'' if key in MEMORY else 'whole '}number")
    return value


def as_name(value: Any, *, where: str) -> Any:
    """A name inside a dictionary, where numbers are read as numbers. Raises ConfigError where its spelling is lost."""
    if isinstance(value, float) or isinstance(value, bool):
        raise ConfigError(f"{where}={value!r} was read as a {type(value).__name__}; write that name in quotes")
    return str(value) if isinstance(value, int) else value
