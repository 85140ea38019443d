"""What runs of a kind took before, by their records. Imports no torch."""

from __future__ import annotations

import os
import re
import socket
from itertools import permutations

from transfergrid.errors import DataError
from transfergrid.paths import store_paths
from transfergrid.planning.machine import Machine
from transfergrid.specs import ProbeSettings, RunSpec, Runtime, safe_name
from transfergrid.store.records import RunRecord, read_record
from transfergrid.training.usage import cpu_threads

RECORDS_READ = 12  # of one kind of run, the newest
# On SLURM a probe on features imports torch's companions after its clock has started: the shortest took 5.1 s by their
# records. That is part of what starting a process costs.
PROBE_IMPORTS_S = 5.0
RUN_ID = re.compile(r"(?P<head>.+)-(?P<phase>extract|probe|finetune|scratch|evaluate)(-s\d+)?-[0-9a-f]{12}")

Kind = tuple[object, ...]


def _kind(run: RunSpec, *, on_gpu: bool) -> Kind:
    """What two runs must share for one's time to tell the other's."""
    sizes = frozenset((b.name, b.preprocess.crop_px) for b in run.backbones)
    model = sizes or (run.model, getattr(run.settings, "image_size_px", None))
    source = (run.settings.source, run.settings.solver) if isinstance(run.settings, ProbeSettings) else None
    return run.phase, model, run.dataset.kind, run.settings.precision, source, on_gpu


def measured_on(record: RunRecord) -> tuple[int, int]:
    """Images and epochs of a record, as work.images_and_epochs has them; no images where it does not say."""
    images = record.n_train or record.details.get("images") or record.details.get("n_test") or 0
    return images, record.epochs or 1


def seconds_by_record(record: RunRecord, images: int, epochs: int) -> float:
    """Training grows with images x epochs; the rest (data, last evaluation, L-BFGS) with the images."""
    images_then, epochs_then = measured_on(record)
    trained_s = min(images_then * epochs_then / record.images_per_s, record.phase_s) if record.images_per_s else 0.0
    is_alone = record.provenance.get("slurm_job_id") is not None  # a local pool has imported all before
    imports_s = PROBE_IMPORTS_S if record.spec.phase == "probe" and is_alone else 0.0
    rest_s = max(0.0, record.phase_s - trained_s - imports_s)
    return (trained_s * epochs / epochs_then + rest_s) * images / images_then


class History:
    """The completed runs of a store, found by their names: only records that may match are read.

    here: the machine that the runs are for; a record of another is no evidence. None: for the nodes of a cluster.
    """

    def __init__(self, runtime: Runtime, *, on_gpu: bool, here: Machine | None) -> None:
        self.on_gpu = on_gpu
        self._here = here
        self._threads = cpu_threads(runtime)
        self._store = store_paths(runtime)
        self._of_kind: dict[Kind, list[RunRecord]] = {}
        self._names: dict[tuple[str, str], list[str]] = {}  # (what stands before the phase, phase) -> run_ids
        if self._store.runs.is_dir():
            for name in os.listdir(self._store.runs):
                match = RUN_ID.fullmatch(name)
                if match is not None:
                    self._names.setdefault((match["head"], match["phase"]), []).append(name)

    def nearest(self, run: RunSpec, images: int, epochs: int) -> RunRecord | None:
        """A record of the same kind: of as many images and epochs if there is one, and the newest of those."""
        kind = _kind(run, on_gpu=self.on_gpu)
        if kind not in self._of_kind:
            own, others = self._candidates(run)
            self._of_kind[kind] = self._records(own, kind) or self._records(others, kind)
        return min(self._of_kind[kind], key=lambda r: measured_on(r) != (images, epochs), default=None)

    def _candidates(self, run: RunSpec) -> tuple[list[str], list[str]]:
        """run_ids of the same phase and model: on the data set of this name, and on others, maybe of its kind."""
        match = RUN_ID.fullmatch(run.run_id)
        assert match is not None, run.run_id
        parts = run.model.split("+")
        orders = permutations(parts) if len(parts) <= 4 else [tuple(parts)]
        endings = tuple(f"-{safe_name('+'.join(order))}" for order in orders)
        own_heads = {match["head"], *(safe_name(run.dataset.name)[:24] + ending for ending in endings)}
        own: list[str] = []
        others: list[str] = []
        for (head, phase), members in self._names.items():
            if phase == run.phase and (head in own_heads or head.endswith(endings)):
                (own if head in own_heads else others).extend(members)
        return own, others

    def _records(self, run_ids: list[str], kind: Kind) -> list[RunRecord]:
        """Completed runs of this kind, newest first."""
        records = []
        for ended, run_id in sorted(((self._ended(i), i) for i in run_ids), reverse=True)[:RECORDS_READ]:
            try:
                record = read_record(self._store.run(run_id)) if ended else None
            except DataError:
                continue  # damaged, or of another version
            if record is None or record.status != "completed" or measured_on(record)[0] == 0:
                continue
            if _kind(record.spec, on_gpu=record.on_gpu) == kind and self._was_here(record):
                records.append(record)
        return records

    def _was_here(self, record: RunRecord) -> bool:
        """On this machine's GPU, or with as many of its threads. Records of earlier releases tell its host name."""
        if self._here is None:
            return True
        facts = record.provenance
        if facts.get("machine", self._here.name) != self._here.name:
            return False
        if "machine" not in facts and facts.get("host") != socket.gethostname():
            return False
        if record.on_gpu:
            return not self._here.gpus or facts.get("device") in self._here.gpus
        return facts.get("threads") == self._threads

    def _ended(self, run_id: str) -> int:
        """When its record was written, in ns; 0 where it has none."""
        try:
            return os.stat(self._store.run(run_id).record).st_mtime_ns
        except OSError:
            return 0
