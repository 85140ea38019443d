"""What using a network costs, beside its accuracy: where it was measured, and nowhere else."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import report_cases as cases
from html_tree import parse
from prediction_cases import finished
from rich.console import Console

from transfergrid.cli.tables import terminal_table
from transfergrid.paths import StorePaths
from transfergrid.report.analysis.comparison import comparison_rows
from transfergrid.report.analysis.rows import COLUMNS, ComparisonRow
from transfergrid.specs import EvaluateSettings, Precision, RunSpec
from transfergrid.store.profiles import Passes, Profile, add_profiles

DATE = "2026-01-0{}T00:00:00+00:00"


def profile(
    ms: float,
    *,
    gpu: bool = False,
    device: str = "EPYC",
    day: int = 1,
    precision: Precision = "bf16",
    load: float = 0.5,
) -> Profile:
    """One image takes `ms`, 16 take four times as long, and 256 take 1,000 times as long."""
    passes = tuple(
        Passes(
            batch_size=size,
            median_s=factor * ms / 1e3,
            q1_s=0.9 * factor * ms / 1e3,
            q3_s=1.1 * factor * ms / 1e3,
            passes=20,
            first_s=1.0,
            warm_up=3,
            memory_mib=50.0 * size,
        )
        for size, factor in ((1, 1), (16, 4), (256, 1000))
    )
    return Profile(
        kind="gpu" if gpu else "cpu",
        device=device,
        threads=2,
        precision=precision,
        sizes_px=(224,),
        passes=passes,
        sought_gpu=gpu,
        host="node1",
        cores=2,
        load=load,
        torch="2.13.0",
        job=None,
        measured=DATE.format(day),
    )


def grid(store: StorePaths) -> tuple[RunSpec, RunSpec, RunSpec]:
    """(two fine-tunings in bf16, an evaluation of the first in fp32), none of them measured"""
    first, second = cases.spec("finetune", "resnet18"), cases.spec("finetune", "vgg16")
    settings = EvaluateSettings(source=f"run:{first.run_id}", split="test", precision="fp32", preprocess=None)
    third = replace(first, phase="evaluate", settings=settings, seed=None, needs=(first.run_id,))
    for correct, run in zip((190, 180, 190), (first, second, third), strict=True):
        finished(store, run, np.arange(200) < correct, val=0.95 if run == first else 0.9)
    cases.write_grid(store, "g", [(run, "") for run in (first, second, third)])
    return first, second, third


def rows_of(store: StorePaths) -> list[ComparisonRow]:
    return comparison_rows("g", store)


def test_a_row_has_the_profile_in_the_arithmetic_of_its_own_accuracy(tmp_path: Path) -> None:
    """That of an evaluation lies with the run it evaluates; the newest of a kind of device counts."""
    store = StorePaths(tmp_path)
    first, _, _ = grid(store)
    paths = store.run(first.run_id)
    add_profiles(paths, [profile(9.0), profile(5.0, precision="fp32"), profile(8.0, device="Xeon", day=2)])
    add_profiles(paths, [profile(1.0, gpu=True, device="H200", day=3)])
    trained, other, evaluation = rows_of(store)
    assert (trained.cpu_latency_ms, trained.cpu_measured_on) == (8.0, "Xeon, 2 threads, bf16")
    assert (trained.gpu_latency_ms, trained.gpu_measured_on) == (1.0, "H200, bf16")
    assert (evaluation.cpu_latency_ms, evaluation.cpu_measured_on) == (5.0, "EPYC, 2 threads, fp32")
    assert evaluation.gpu_latency_ms is None and other.use == () and other.cpu_latency_ms is None
    assert trained.cpu_images_per_s == pytest.approx(16 / 0.032) and trained.cpu_memory_mib == 50.0
    (of_cpu, of_gpu) = trained.use
    assert (of_cpu.batch_size, of_cpu.batch_memory_mib) == (16, 800.0) and of_cpu.latency_q1_ms == pytest.approx(7.2)
    assert (of_gpu.kind, of_gpu.size_mb, of_gpu.measured) == ("gpu", 44.7, DATE.format(3))
    assert trained.wall_s == 10.0 and trained.gpu_s == 4.0  # what training cost stays


def report_of(store: StorePaths) -> dict[str, str]:
    folder = cases.write_report("g", store, figures=False).parent
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def header_of(content: str) -> list[str]:
    return next(csv.reader(io.StringIO(content)))


def test_every_output_shows_it_beside_the_accuracy_and_none_does_where_nothing_was_measured(tmp_path: Path) -> None:
    store = StorePaths(tmp_path)
    first, second, _ = grid(store)
    files = report_of(store)
    assert header_of(files["comparison.csv"]) == list(COLUMNS)
    assert not any(w in files[n] for n in files for w in ("CPU ms", "latency", "What using", '"profile"'))
    assert "CPU" not in shown(rows_of(store), width=120)

    add_profiles(store.run(first.run_id), [profile(8.0)])
    add_profiles(store.run(second.run_id), [profile(0.25)])
    files = report_of(store)
    of_cpu = ["cpu_latency_ms", "cpu_images_per_s", "cpu_memory_mib", "cpu_measured_on"]
    assert header_of(files["comparison.csv"]) == [*COLUMNS, *of_cpu]  # no column of a GPU
    lines = list(csv.DictReader(io.StringIO(files["comparison.csv"])))
    assert [line["cpu_latency_ms"] for line in lines] == ["8.0", "0.25", ""]
    assert lines[0]["cpu_measured_on"] == "EPYC, 2 threads, bf16"
    text, tex = files["comparison.md"], files["comparison.tex"]
    assert "| test [95 %] | CPU ms | CPU images/s | std |" in text
    assert " | 8.00 | 500 | " in text and " | 0.250 | 16,000 | " in text
    assert "- CPU: EPYC, 2 threads, bf16; ms is the median for one image" in text
    assert "## What using it costs" in text and "| 8 [7.2, 8.8] | 500 | 16 | 50.0 | 800.0 | 44.7 |" in text
    assert "& CPU ms & CPU images/s &" in tex and "CPU: EPYC, 2 threads, bf16" in tex
    (answer,) = json.loads(files["answer.json"])["datasets"]
    (own,) = answer["winner"]["profile"]
    assert (own["kind"], own["latency_ms"], own["batch_size"], own["threads"]) == ("cpu", 8.0, 16, 2)
    page = parse(files["index.html"])
    assert "CPU: EPYC, 2 threads, bf16; ms is the median" in page.text
    shown_at_first = [th.attributes.get("data-column") for th in page.all("th") if "extra" not in th.classes]
    assert "cpu_latency_ms" in shown_at_first and "cpu_images_per_s" not in shown_at_first


def test_numbers_of_several_devices_name_theirs_and_a_busy_machine_is_told(tmp_path: Path) -> None:
    store = StorePaths(tmp_path)
    first, second, _ = grid(store)
    add_profiles(store.run(first.run_id), [profile(8.0, load=9.0)])
    add_profiles(store.run(second.run_id), [profile(1234.5, device="Xeon", load=2.9)])
    found = report_of(store)["comparison.md"]
    assert " | 8.00 (1) | 500 | " in found and " | 1,234 (2) | 3 | " in found
    assert "- CPU (1): EPYC, 2 threads, bf16; other work ran beside it (load up to 9);" in found
    assert "- CPU (2): Xeon, 2 threads, bf16; ms is" in found


# ----------------------------------------------------------------------------------------------------------- terminal
def shown(rows: list[ComparisonRow], *, width: int) -> str:
    output = io.StringIO()
    Console(file=output, width=width).print(terminal_table(rows, width=width))
    return output.getvalue()


def test_the_terminal_shows_what_fits_and_the_rest_in_lines_below(tmp_path: Path) -> None:
    store = StorePaths(tmp_path)
    first, _, _ = grid(store)
    before = shown(rows_of(store), width=64)
    add_profiles(store.run(first.run_id), [profile(8.0)])
    rows = rows_of(store)
    assert "CPU ms  CPU images/s" in shown(rows, width=120).splitlines()[1]
    latency_alone = shown(rows, width=76)
    head = "".join(latency_alone.splitlines()[:2])
    assert "CPU" in head and "ms" in head and "images/s" not in head and "8.00" in latency_alone
    narrow = shown(rows, width=64)
    assert narrow.startswith(before.rstrip()) and "CPU ms" not in narrow
    assert "CPU: mnist resnet18 finetune: 8.00 ms, 500 images/s" in narrow
    many = [replace(row, use=rows[0].use) for row in rows[:1] * 13]
    assert "and 3 more: comparison.csv has them" in shown(many, width=64)
