"""Which code, on which machines, made the rows; and which rows mix, or differ from, the others' code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from transfergrid.report.analysis.comparison import Comparison
from transfergrid.report.blocks import Table, plain
from transfergrid.store.records import RunRecord

HEADER = ("git commit", "changed since", "code hash", "torch", "CUDA", "device", "hosts", "runs")


@dataclass(frozen=True, slots=True)
class Flag:
    """A doubt about a row in a few words, and what it rests on."""

    kind: str
    detail: str = ""

    @property
    def text(self) -> str:
        return f"{self.kind} ({self.detail})" if self.detail else self.kind


def provenance_lines(comparison: Comparison) -> list[tuple[str, ...]]:
    """Under HEADER: one line per code, library and device, most runs first."""
    groups: dict[tuple[str, ...], list[RunRecord]] = {}
    for record in comparison.records:
        provenance = record.provenance
        dirty = {"True": "yes", "False": "no"}.get(str(provenance.get("git_dirty")), "unknown")
        known = (str(provenance.get(name) or "") for name in ("code_hash", "torch", "cuda", "device"))
        groups.setdefault((str(provenance.get("git_commit") or "unknown")[:12], dirty, *known), []).append(record)
    return [
        (*key, ", ".join(sorted({str(r.provenance.get("host") or "unknown") for r in records})), f"{len(records):,}")
        for key, records in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]


def table(comparison: Comparison) -> Table[Sequence[str]]:
    return plain(HEADER, provenance_lines(comparison), left=len(HEADER) - 1)


def times(comparison: Comparison) -> tuple[str, str] | None:
    """When the first of the runs began and the last ended, ISO 8601 UTC; None where no record says it."""
    began = [str(r.provenance["started"]) for r in comparison.records if r.provenance.get("started")]
    ended = [str(r.provenance["ended"]) for r in comparison.records if r.provenance.get("ended")]
    return (min(began), max(ended)) if began and ended else None


def code_flags(comparison: Comparison) -> list[tuple[Flag, ...]]:
    """Beside each row: made by several versions of the code, or by another one than most runs here."""
    counted = Counter(h for record in comparison.records if (h := _hash(record)))
    usual = counted.most_common(1)[0][0] if counted else ""
    return [_flag(runs, usual) for runs in comparison.runs]


def _flag(runs: Sequence[RunRecord], usual: str) -> tuple[Flag, ...]:
    hashes = sorted({h for r in runs if (h := _hash(r))})
    if len(hashes) > 1:
        return (Flag("seeds of different code", ", ".join(hashes)),)
    if hashes and hashes[0] != usual:
        return (Flag("other code than most rows", f"{hashes[0]}, not {usual}"),)
    return ()


def _hash(record: RunRecord) -> str:
    return str(record.provenance.get("code_hash") or "")
