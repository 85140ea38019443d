"""conf/cluster/<name>.yaml -> values, each as its author typed it.

YAML 1.1 reads 8:00:00 as 28800, 0123 as 83, 12e3 as 12000 and `on` as true. So every value is read as text here, null
excepted, and gets its type from its key.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from transfergrid.config.folders import find
from transfergrid.errors import ConfigError

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
