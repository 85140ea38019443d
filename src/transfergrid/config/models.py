"""Models and phases by name: the only code that interprets `+`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from transfergrid.errors import ConfigError, hints
from transfergrid.names import closest
from transfergrid.networks import architectures, backbones
from transfergrid.networks.backbones import timm_names
from transfergrid.specs import PHASES, Phase


@lru_cache(maxsize=4096)
def split_model(model: str) -> tuple[str, ...]:
    """`resnet18+googlenet` -> ("resnet18", "googlenet"). Raises ConfigError for parts that are unknown or twice."""
    parts = tuple(model.split("+"))
    for part in parts:
        _check_part(part, "" if len(parts) == 1 else f" in model {model!r}")
    if len(parts) > 1:
        for part in parts:
            if is_architecture(part):
                raise ConfigError(
                    f"model {model!r}: {part} is trained from scratch and cannot be joined; join backbones"
                )
        if len(set(parts)) != len(parts):
            raise ConfigError(f"model {model!r} holds {max(parts, key=parts.count)} twice; a backbone is joined once")
    return parts


def _check_part(part: str, where: str) -> None:
    """One part of a model, known by name alone: nothing is imported or built."""
    known = (*backbones.names(), *architectures.names())
    if part in known:
        return
    if part.startswith("timm/"):
        architecture = part.removeprefix("timm/").partition(".")[0]
        if architecture not in timm_names():
            close = closest(architecture, timm_names(), cutoff=0.5)
            hint = f"; did you mean {f'timm/{close}'!r}?" if close else "; timm.list_models() lists them"
            raise ConfigError(f"unknown timm network {part!r}{where}{hint}")
        return
    if not part:
        raise ConfigError(f"a part of the model is empty{where}; write backbones joined by +")
    reason = backbones.refusal(part)
    if reason is not None:
        raise ConfigError(f"{part!r}{where} cannot be a backbone: it {reason}; choose another, as resnet18")
    what = "model" if not where else "backbone"
    close = closest(part, known)
    hint = "known: torchvision's names (resnet18), timm/<name>, and the names in docs/adding.md (baseline_cnn)"
    raise ConfigError(f"unknown {what} {part!r}{where}", remedy=hint if close is None else f"did you mean {close!r}?")


@lru_cache(maxsize=4096)
def is_architecture(model: str) -> bool:
    return model in architectures.names()


def check_models(models: list[str]) -> None:
    """Raises ConfigError for an empty list, a model twice, or two orders of one join."""
    if not models:
        raise ConfigError("grid.models is empty; give at least one model, as grid.models=[resnet18,resnet18+googlenet]")
    seen: dict[frozenset[str], str] = {}
    for model in models:
        parts = frozenset(split_model(model))
        if parts in seen:
            again = "is given twice" if seen[parts] == model else f"and {seen[parts]!r} are the same join"
            raise ConfigError(f"grid.models: {model!r} {again}; keep one")
        seen[parts] = model


def missing_parts(models: Sequence[str]) -> dict[str, str]:
    """Part -> a join that has it, of the parts of joins that do not stand alone, in order."""
    alone, joins = set(models), dict[str, str]()
    for model in models:
        for part in split_model(model):
            if part not in alone:
                joins.setdefault(part, model)
    return joins


def takes(model: str, phase: Phase) -> bool:
    """Whether a kind of model takes a phase: architectures scratch and evaluate, backbones and joins the others."""
    if is_architecture(model):
        return phase in ("scratch", "evaluate")
    if phase == "evaluate":
        return "+" not in model  # a join is evaluated by run=ID only
    return phase in ("probe", "finetune")


def check_phases(phases: list[str]) -> list[Phase]:
    """In the order of PHASES. Raises ConfigError for unknown, repeated or no phases."""
    if not phases:
        raise ConfigError(f"grid.phases is empty; choose from {', '.join(PHASES[1:])}")
    for phase in phases:
        if phase not in PHASES:
            raise ConfigError(f"unknown phase {phase!r} in grid.phases", **hints(phase, PHASES))
    if "extract" in phases:
        raise ConfigError("grid.phases: the plan adds extract by itself; leave it out")
    if len(set(phases)) != len(phases):
        raise ConfigError(f"grid.phases={phases} holds a phase twice")
    return [phase for phase in PHASES if phase in phases]
