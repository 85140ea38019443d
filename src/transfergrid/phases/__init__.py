"""The phases, one file each, found by their names.

A phase module has
    is_done(spec, runtime) -> bool      whether its result is there and looks whole; cheap, without torch
    run(context) -> RunRecord           carries it out; torch is imported inside
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, cast

from transfergrid.networks import backbones
from transfergrid.paths import RunPaths, cache_paths, store_paths
from transfergrid.specs import Phase, RunSpec, Runtime
from transfergrid.store.attempts import Attempt
from transfergrid.store.records import RunRecord, record_head
from transfergrid.training.stopping import StopFlag
from transfergrid.training.usage import UsageMeter


@dataclass(frozen=True, slots=True)
class RunContext:
    """All that a phase gets: what to do, where, by which right, whether to stop, and who measures."""

    spec: RunSpec
    runtime: Runtime
    attempt: Attempt
    stop: StopFlag
    usage: UsageMeter

    @property
    def paths(self) -> RunPaths:
        return self.attempt.paths


class PhaseModule(Protocol):
    @staticmethod
    def is_done(spec: RunSpec, runtime: Runtime) -> bool: ...
    @staticmethod
    def run(context: RunContext) -> RunRecord: ...


def phase_module(phase: Phase) -> PhaseModule:
    return cast(PhaseModule, import_module(f"transfergrid.phases.{phase}"))


def feature_dims(spec: RunSpec, runtime: Runtime) -> list[int]:
    """D of each backbone, in the model's order."""
    catalog = cache_paths(runtime).catalog
    return [backbones.entry(b.name, catalog_dir=catalog).feature_dim for b in spec.backbones]


def has_completed(spec: RunSpec, runtime: Runtime) -> bool:
    """Whether the run's record says so: the rule of every phase but `extract`, whose result lies in the cache."""
    head = record_head(store_paths(runtime).run(spec.run_id))
    return head is not None and head.status == "completed"
