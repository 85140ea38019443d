"""metrics.jsonl: truncated to what a checkpoint covers, and followed while it grows."""

from __future__ import annotations

from pathlib import Path

import pytest

from transfergrid.errors import DataError
from transfergrid.store.metrics_log import MetricsLog, MetricsTail, read_metrics


def test_a_metrics_file_is_truncated_to_what_the_checkpoint_covers(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, lines_kept=0) as log:
        for step in range(1, 6):
            log.write("step", step=step)
    with open(path, "ab") as file:
        file.write(b'{"line": 6, "kind": "st')  # torn by a kill
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4, 5]
    with MetricsLog(path, lines_kept=3) as log:
        log.write("step", step=40)
        assert log.lines == 4
    assert [(line["line"], line["step"]) for line in read_metrics(path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_fewer_metrics_lines_than_the_checkpoint_covers_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"line": 1}\n{"line": 2')
    with pytest.raises(DataError, match="has 1 whole lines, but its checkpoint covers 3"):
        MetricsLog(path, lines_kept=3)


def test_a_metrics_line_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl", lines_kept=0) as log, pytest.raises(ValueError, match="JSON"):
        log.write("step", loss=float("nan"))


# --------------------------------------------------------------------------------------------------------- followed
def steps(lines: list[dict[str, int]]) -> list[int]:
    return [line["step"] for line in lines]


def written(path: Path, *, kept: int, steps: range) -> None:
    with MetricsLog(path, lines_kept=kept) as log:
        for step in steps:
            log.write("step", step=step)


def test_each_line_is_read_once_and_no_further_than_asked(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path, after=0)  # before the run has written any
    assert tail.read() == [] and tail.is_intact
    written(path, kept=0, steps=range(1, 6))
    assert steps(tail.read(3)) == [1, 2, 3]
    assert tail.read(3) == tail.read(2) == []
    written(path, kept=5, steps=range(6, 9))
    assert steps(tail.read()) == [4, 5, 6, 7, 8]
    assert tail.read() == [] and tail.is_intact
    assert steps(MetricsTail(path, after=6).read()) == [7, 8]


def test_a_line_that_is_not_whole_yet_is_read_when_it_is(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"kind": "step", "step": 1}\n{"kind": "st')
    tail = MetricsTail(path, after=0)
    assert steps(tail.read()) == [1]
    with open(path, "ab") as file:
        file.write(b'ep", "step": 2}\n')
    assert steps(tail.read()) == [2]


@pytest.mark.parametrize("steps_again", [0, 1, 3, 9], ids=lambda n: f"{n} written again")
def test_a_file_that_went_back_behind_what_was_read_is_not_intact(tmp_path: Path, steps_again: int) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, kept=0, steps=range(1, 6))
    tail = MetricsTail(path, after=2)
    tail.read()
    written(path, kept=2, steps=range(11, 11 + steps_again))
    assert not tail.is_intact
    assert MetricsTail(path, after=2).is_intact


def test_a_run_that_went_back_to_what_was_read_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, kept=0, steps=range(1, 6))
    tail = MetricsTail(path, after=0)
    tail.read(3)
    written(path, kept=3, steps=range(11, 13))
    assert tail.is_intact and steps(tail.read()) == [11, 12]


def test_a_file_that_is_gone_or_too_short_is_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, kept=0, steps=range(1, 4))
    tail = MetricsTail(path, after=3)
    with pytest.raises(DataError, match="has 3 whole lines, but 4 lines should be skipped"):
        MetricsTail(path, after=4)
    path.unlink()
    assert not tail.is_intact
    assert tail.read() == []


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"kind": "step"}\n{"kind": "step"}\nxyz\n')
    tail = MetricsTail(path, after=0)
    assert len(tail.read(2)) == 2
    with pytest.raises(DataError, match="line 3 is damaged"):
        tail.read()
    with pytest.raises(DataError, match="line 3 is damaged"):
        read_metrics(path)
