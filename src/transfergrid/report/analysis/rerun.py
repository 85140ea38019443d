"""The commands that carry out a row's runs again, each from its spec.json."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transfergrid.config.spelling import command, folder_value
from transfergrid.data.tables import KIND as TABLE
from transfergrid.paths import StorePaths
from transfergrid.specs import EvaluateSettings, RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """line: to be pasted into a shell. to_fill_in: what no record knows and the reader must put in: the place of a file
    or a folder."""

    line: str
    to_fill_in: tuple[str, ...]


def commands_of(specs: Sequence[RunSpec], store: StorePaths) -> tuple[Command, ...]:
    """One for each run."""
    is_default = store.root.absolute() == Path("results").absolute()
    commands = []
    for spec in specs:
        paths, places = store.run(spec.run_id), dict(_places(spec))
        arguments = [f"again={spec.run_id}", *([] if is_default else [f"store.dir={folder_value(str(store.root))}"])]
        if paths.pulled.exists():  # a copy of what W&B holds: read from there, carried out in the user's own store
            arguments = [f"again={folder_value(str(paths.root))}"]
        line = command("run_phase.py", *arguments, *places)
        commands.append(Command(line=line, to_fill_in=tuple(places.values())))
    return tuple(commands)


def _places(spec: RunSpec) -> Iterator[tuple[str, str]]:
    """(`key=PLACE`, what lies there) of each file and folder that the run reads."""
    if spec.dataset.kind == "image_folder":
        content = f"whose content has the hash {spec.dataset.fingerprint}"
        if spec.dataset.fingerprint.startswith(TABLE):
            yield "dataset.table=TABLE", f"TABLE: the table of {spec.dataset.name}, {content}"
            content = "from which the table's paths start"
        yield "dataset.folder=FOLDER", f"FOLDER: the folder of {spec.dataset.name}, {content}"
    if isinstance(spec.settings, EvaluateSettings) and spec.settings.source.startswith("file:"):
        sha256 = spec.settings.source.removeprefix("file:")
        yield "phase.evaluate.checkpoint=FILE", f"FILE: the checkpoint with sha256 {sha256}"
        return
    for part in spec.backbones:
        if part.weights.is_file:
            sha256 = part.weights.identity.removeprefix("file:")
            key = "weights" if len(spec.backbones) == 1 else f"weights_files.{part.name}"
            yield f"{key}=FILE", f"FILE of {part.name}: the file with sha256 {sha256}"
