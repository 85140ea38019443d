"""What runs cost: SLURM's bill where there is one, and a total in which shared work is counted once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import report_cases as cases
from report_cases import write_report

from transfergrid.paths import StorePaths
from transfergrid.report.analysis.comparison import read_comparison
from transfergrid.report.analysis.costs import cost_of, in_words
from transfergrid.report.several import joined
from transfergrid.specs import RunSpec
from transfergrid.store import durable
from transfergrid.store.attempts import AttemptTime
from transfergrid.store.bills import Bill, BilledJob, read_bill, write_bill
from transfergrid.store.records import RunRecord, read_record

START = "2026-11-20T13:00:00+00:00"


@pytest.fixture
def store(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path)


def job(elapsed_s: float, gpus: int, *, share: float = 1.0, job_id: str = "7", start: str = START) -> BilledJob:
    return BilledJob(
        job=job_id, cluster="alpha", start=start, elapsed_s=elapsed_s, gpus=gpus, share=share, has_ended=True
    )


def record(**changes: Any) -> RunRecord:
    run = cases.spec("probe", "resnet18")
    return RunRecord(run_id=run.run_id, spec=run, status="completed", **changes)


def tuned(seed: int, probe: RunSpec) -> RunSpec:
    from dataclasses import replace

    return replace(cases.spec("finetune", probe.model, seed=seed), needs=(probe.run_id,))


# ------------------------------------------------------------------------------------------------------------- one run
def test_the_bill_counts_where_there_is_one_and_runs_that_share_a_job_by_their_part() -> None:
    told = record(phase_s=5.0, on_gpu=True, attempts=(AttemptTime(1, START, 9.0, gpus=1),))
    bill = Bill(jobs=(job(100.0, 2), job(40.0, 4, share=0.25)), attempt=2, is_closed=True)
    cost = cost_of(told, bill)
    assert (cost.wall_s, cost.gpu_s, cost.source) == (110.0, 240.0, "accounting")


def test_without_a_bill_it_is_the_attempts_on_the_gpus_they_had() -> None:
    times = (AttemptTime(1, START, 30.0, gpus=2), AttemptTime(2, START, None, gpus=2), AttemptTime(3, START, 10.0))
    cost = cost_of(record(phase_s=5.0, on_gpu=True, attempts=times), None)
    assert (cost.wall_s, cost.gpu_s, cost.source, cost.unended) == (40.0, 70.0, "attempts", 1)
    cost = cost_of(record(phase_s=5.0, attempts=times[2:]), None)
    assert (cost.wall_s, cost.gpu_s) == (10.0, 0.0)


def test_a_record_of_an_earlier_release_stands_with_its_phase_and_keeps_its_memory(store: StorePaths) -> None:
    run = cases.spec("probe", "resnet18")
    paths = store.run(run.run_id)
    cases.completed(store, run)
    content = durable.read_json(paths.record)
    for name in ("phase_s", "on_gpu", "gpu_allocated_mib", "attempts"):
        del content[name]
    usage = {"wall_s": 11.0, "max_rss_mb": 512.0, "memory_mb": 1024, "gpu_memory_mb": 300.0}
    former = {"wall_s": 12.5, "gpu_s": 12.5, "peak_memory_mb": 1048.576, "usage": usage}
    durable.write_json(paths.record, content | former)
    read = read_record(paths)
    assert read is not None
    assert (read.phase_s, read.on_gpu, read.gpu_allocated_mib) == (12.5, True, 1000.0)
    assert read.usage == {"wall_s": 11.0, "max_rss_mib": 512.0, "memory_mib": 1024, "gpu_memory_mib": 300.0}
    cost = cost_of(read, None)
    assert (cost.wall_s, cost.gpu_s, cost.source) == (12.5, 12.5, "phase")
    durable.write_json(paths.record, content | former | {"gpu_s": 0.0})
    read = read_record(paths)
    assert read is not None and (read.on_gpu, read.gpu_allocated_mib) == (False, None)


def test_a_bill_comes_back_as_it_was_written_and_a_damaged_one_is_none(store: StorePaths) -> None:
    paths = store.run("one")
    bill = Bill(jobs=(job(100.0, 2), job(40.0, 4, share=0.25, job_id="8_3")), attempt=2, is_closed=True)
    assert read_bill(paths) is None
    write_bill(paths, bill)
    assert read_bill(paths) == bill
    for damaged in (b"", b"[]", b"{}", paths.bill.read_bytes().replace(b'"format": 1', b'"format": 9')):
        paths.bill.write_bytes(damaged)
        assert read_bill(paths) is None


# -------------------------------------------------------------------------------------------------------------- a grid
def pair_grid(store: StorePaths) -> list[RunSpec]:
    """Two fine-tunings of a pair from one probe that is no row, over two extractions: 10, 20; 5; 3, 4 GPU seconds."""
    probe = cases.spec("probe", "resnet18+googlenet")
    runs = [tuned(0, probe), tuned(1, probe)]
    for run, gpu_s in zip(runs, (10.0, 20.0), strict=True):
        cases.completed(store, run, wall_s=30.0, gpu_s=gpu_s)
    cases.completed(store, probe, wall_s=6.0, gpu_s=5.0)
    for extraction, gpu_s in zip(probe.extractions, (3.0, 4.0), strict=True):
        cases.completed(store, extraction, wall_s=8.0, gpu_s=gpu_s)
    cases.write_grid(store, "mine", [(run, "") for run in runs])
    return runs


def test_upstream_is_all_that_a_row_needs_and_the_total_counts_it_once(store: StorePaths) -> None:
    pair_grid(store)
    comparison = read_comparison("mine", store)
    (row,) = comparison.rows
    assert (row.wall_s, row.phase_s, row.gpu_s, row.upstream_gpu_s) == (30.0, 30.0, 15.0, 12.0)
    assert comparison.spent.total() == (60.0 + 6.0 + 16.0, 30.0 + 5.0 + 7.0)
    text = write_report("mine", store, figures=False).read_text()
    assert "| 52.0 | 27.0 | 30.0 | 15.0 | 30.0 |" in text
    assert "in their full seconds alone: 2 runs, 16.0 s wall, 7.0 s GPU." in text
    assert "In all, what several rows share counted once: 5 runs, 82.0 s wall, 42.0 s GPU." in text
    assert "Seconds are those of 5 runs from the start and end of their attempts" in text
    assert text.count("In all, ") == 1
    assert "42.0 s GPU" in (store.report("mine") / "index.html").read_text()


def test_two_grids_side_by_side_count_what_they_share_once(store: StorePaths) -> None:
    runs = pair_grid(store)
    cases.write_grid(store, "other", [(runs[0], "")])
    both = joined([read_comparison(name, store) for name in ("mine", "other")])
    assert both.spent.total() == (82.0, 42.0) and len(both.spent.extractions) == 2
    text = write_report(["mine", "other"], store, figures=False).read_text()
    assert "once: 5 runs, 82.0 s wall, 42.0 s GPU." in text and "once: 4 runs, 52.0 s wall, 22.0 s GPU." in text


def test_what_failed_has_cost_something_too(store: StorePaths) -> None:
    run, other = cases.spec("scratch", "baseline_cnn"), cases.spec("scratch", "baseline_cnn", seed=1)
    cases.completed(store, run, wall_s=10.0, gpu_s=4.0)
    cases.failed(store, other, failure_class="timeout", error="no")
    write_bill(store.run(other.run_id), Bill(jobs=(job(50.0, 2),), attempt=1, is_closed=True))
    killed = cases.spec("scratch", "baseline_cnn", seed=2)  # no record at all
    write_bill(store.run(killed.run_id), Bill(jobs=(job(7.0, 1),), attempt=1, is_closed=True))
    cases.write_grid(store, "mine", [(run, ""), (other, ""), (killed, "")])
    comparison = read_comparison("mine", store)
    assert (comparison.rows[0].gpu_s, comparison.spent.total()) == (4.0, (67.0, 111.0))


def test_where_something_needed_has_no_record_upstream_is_empty_and_it_is_said(store: StorePaths) -> None:
    run = cases.spec("probe", "resnet18")
    cases.completed(store, run)
    cases.write_grid(store, "mine", [(run, "")])
    comparison = read_comparison("mine", store)
    assert comparison.rows[0].upstream_gpu_s is None
    assert in_words(comparison.spent)[-1].endswith(" Not in it: 1 run without a record.")
    (extraction,) = run.extractions  # paid for, but of what it needed itself nobody knows
    write_bill(store.run(extraction.run_id), Bill(jobs=(job(50.0, 2),), attempt=1, is_closed=True))
    comparison = read_comparison("mine", store)
    assert (comparison.rows[0].upstream_gpu_s, comparison.spent.total()) == (None, (60.0, 104.0))
    assert "Not in it" not in " ".join(in_words(comparison.spent))
