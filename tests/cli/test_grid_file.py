"""What a second launch of a grid's name may do to the first one's table: nothing, unless it was told to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import small_runs
import tiny_data
from cluster_cases import console, said
from report_cases import completed, failed, write_report

from transfergrid.cli import status_actions
from transfergrid.cli.grid_file import assert_keeps_rows, write_grid_of
from transfergrid.cli.launch import launch
from transfergrid.cluster import ledger
from transfergrid.cluster.ledger import Submission
from transfergrid.config import Request, load_grid
from transfergrid.config.spelling import named_by_datasets
from transfergrid.errors import ConfigError
from transfergrid.paths import StorePaths
from transfergrid.planning import job
from transfergrid.report.analysis.comparison import comparison_rows
from transfergrid.store.records import read_grid, write_grid

PROBES = ("grid=quickstart", "grid.phases=[probe]", "grid.variants={}", "phase.probe.solver=sgd")
TWO = "grid.models=[tinynet_mnist,tinynet_cifar]"


def asked_for(folder: Path, *arguments: str) -> Request:
    places = [f"store.dir={folder / 'store'}", f"cache.dir={folder / 'cache'}"]
    return load_grid([*arguments, *small_runs.MACHINE, *places])


def launched(folder: Path, *arguments: str) -> Request:
    """A launch whose runs have all completed, and its report."""
    asked = asked_for(folder, *arguments)
    write_grid_of(console(), asked)
    for number, run in enumerate(asked.runs.values()):
        completed(asked.store, run, test_accuracy=0.9 + number / 1000)
    write_report(asked.grid, asked.store, figures=False)
    return asked


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refusal(asked: Request) -> str:
    with pytest.raises(ConfigError) as refused:
        assert_keeps_rows(console(), asked)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def formers(store: StorePaths, grid: str) -> Sequence[str]:
    return sorted(p.stem for p in store.grid("x").parent.glob("*.json") if p.stem != grid)


@pytest.mark.slow
def test_two_folders_are_two_grids_and_both_reports_stand_byte_for_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["grid.models=[baseline_cnn]", "grid.phases=[scratch]", "grid.seeds=[0]", "dataset.image_size_px=32"]
    small += ["phase.scratch.epochs=1", "grid=compare", "dataset=image_folder", "cluster=local", *small_runs.MACHINE]
    for name in ("cats", "dogs"):
        for split in ("train", "test"):
            for label in range(2):
                for number in range(12):
                    picture = tiny_data.random_images(36, 40, 3, seed=100 * label + number)
                    tiny_data.save_image(tmp_path / name / split / f"c{label}" / f"{number}.png", picture)
    assert launch([*small, "dataset.folder=cats"]) == 0
    first = files(tmp_path / "results" / "reports" / "compare-cats")
    assert {"index.html", "comparison.csv", "comparison.md", "comparison.tex"} <= set(first)
    assert launch([*small, "dataset.folder=dogs"]) == 0
    store = StorePaths(tmp_path / "results")
    assert formers(store, "") == ["compare-cats", "compare-dogs"]
    assert files(store.report("compare-cats")) == first
    assert [row.dataset for row in comparison_rows("compare-dogs", store)] == ["dogs"]
    assert launch([*small, "dataset.folder=cats"]) == 0  # the same grid again is no question


def test_a_subset_is_refused_with_the_count_and_nothing_is_written(tmp_path: Path) -> None:
    launched(tmp_path, *PROBES)
    before = files(tmp_path)
    told = refusal(asked_for(tmp_path, *PROBES, "grid.models=[tinynet_mnist]"))
    assert told == (
        "grid 'quickstart' exists: it has 3 rows, of which this launch would leave out 2; give grid_name=NAME for a"
        " grid of its own, or replace=true (the former grid and its report are kept under another name)"
    )
    with pytest.raises(ConfigError, match="leave out 2"):
        places = [f"store.dir={tmp_path / 'store'}", f"cache.dir={tmp_path / 'cache'}", "cluster=local"]
        launch([*PROBES, *small_runs.MACHINE, *places, "grid.models=[tinynet_mnist]"])
    assert files(tmp_path) == before


def test_a_dry_run_says_it_in_a_line(tmp_path: Path) -> None:
    launched(tmp_path, *PROBES)
    printed = console()
    assert_keeps_rows(printed, asked_for(tmp_path, *PROBES, "grid.models=[tinynet_mnist]", "dry_run=true"))
    (line,) = said(printed)
    assert line.startswith("it would not be launched: grid 'quickstart' exists: it has 3 rows, of which this launch")


def test_what_changes_a_rows_runs_is_asked_about_too(tmp_path: Path) -> None:
    """Fewer seeds, other settings; as pictures that were changed, or a release with other identities."""
    launched(tmp_path, *PROBES)
    changed = "it has 3 rows, of which this launch would change the runs of 3 (other settings, seeds or data, or"
    assert changed in refusal(asked_for(tmp_path, *PROBES, "grid.seeds=[0]"))
    assert changed in refusal(asked_for(tmp_path, *PROBES, "phase.probe.batch_size=32"))
    both = asked_for(tmp_path, *PROBES, "grid.models=[tinynet_mnist]", "grid.seeds=[0,1]")
    assert "would leave out 2 and change the runs of 1 (" in refusal(both)


def test_more_rows_and_the_same_rows_are_no_question(tmp_path: Path) -> None:
    first = launched(tmp_path, *PROBES, TWO)
    for more in ((TWO,), ("grid.seeds=[0,1,2,3]", TWO), ()):
        asked, printed = asked_for(tmp_path, *PROBES, *more), console()
        assert_keeps_rows(printed, asked)
        write_grid_of(printed, asked)
        assert said(printed) == []
        assert {e.run_id for e in first.entries()} <= {e.run_id for e in read_grid(asked.store.grid("quickstart"))}
        write_grid_of(console(), first)  # as before, for the next one
        for name in formers(first.store, "quickstart"):
            first.store.grid(name).unlink()


def test_another_name_leaves_the_first_grid_alone(tmp_path: Path) -> None:
    first = launched(tmp_path, *PROBES)
    before = files(first.store.root / "grids") | files(first.store.report("quickstart"))
    other = asked_for(tmp_path, *PROBES, "grid.models=[tinynet_mnist]", "grid_name=mine")
    assert_keeps_rows(console(), other)
    write_grid_of(console(), other)
    after = files(first.store.root / "grids") | files(first.store.report("quickstart"))
    assert {name: content for name, content in after.items() if "mine" not in name} == before


def test_replace_keeps_the_former_grid_and_its_report_under_a_dated_name(tmp_path: Path) -> None:
    first = launched(tmp_path, *PROBES)
    report, rows = files(first.store.report("quickstart")), comparison_rows("quickstart", first.store)
    asked, printed = asked_for(tmp_path, *PROBES, "grid.models=[tinynet_mnist]", "replace=true"), console()
    assert_keeps_rows(printed, asked)
    write_grid_of(printed, asked)
    (former,) = formers(first.store, "quickstart")
    assert said(printed) == [f"the former grid 'quickstart' and its report are kept as grid={former}"]
    assert former.startswith("quickstart-20") and len(former) == len("quickstart-20261130t010203")
    assert files(first.store.report(former)) == report
    assert read_grid(first.store.grid(former)) == first.entries()
    assert [r.model for r in comparison_rows("quickstart", first.store)] == ["tinynet_mnist"]
    assert [r.test_accuracy for r in comparison_rows(former, first.store)] == [r.test_accuracy for r in rows]
    write_report("quickstart", first.store, figures=False)
    assert files(first.store.report(former)) == report


def test_two_replacements_within_a_second_are_both_kept(tmp_path: Path) -> None:
    store = launched(tmp_path, *PROBES).store
    for model in ("tinynet_mnist", "tinynet_cifar", "tinynet_mnist"):
        launched(tmp_path, *PROBES, f"grid.models=[{model}]", "replace=true")
    assert [len(read_grid(store.grid(name))) for name in formers(store, "quickstart")] == [9, 3, 3]
    assert all((store.report(name) / "index.html").exists() for name in formers(store, "quickstart"))


def test_runs_without_a_result_are_no_reason_to_ask_but_their_list_is_kept(tmp_path: Path) -> None:
    """The first try had a mistake in it: the second one is not held up."""
    first = asked_for(tmp_path, *PROBES, TWO, "phase.probe.batch_size=7")
    write_grid_of(console(), first)
    for run in first.runs.values():
        failed(first.store, run, failure_class="code", error="no")
    asked, printed = asked_for(tmp_path, *PROBES, TWO), console()
    assert_keeps_rows(printed, asked)
    write_grid_of(printed, asked)
    assert read_grid(first.store.grid(*formers(first.store, "quickstart"))) == first.entries()
    first.store.run(first.entries()[0].run_id).record.unlink()
    again = asked_for(tmp_path, *PROBES, TWO, "phase.probe.batch_size=7")
    completed(first.store, asked.runs[asked.entries()[0].run_id])
    assert "it has 2 rows, of which this launch would change the runs of 2" in refusal(again)


def test_a_run_that_is_under_way_is_not_left_out_in_silence(tmp_path: Path) -> None:
    first = asked_for(tmp_path, *PROBES)
    write_grid_of(console(), first)
    begun = first.store.run(first.entries()[-1].run_id)
    begun.attempts.mkdir(parents=True)
    begun.attempt(1).write_text("{}")
    assert "leave out 2" in refusal(asked_for(tmp_path, *PROBES, "grid.models=[tinynet_mnist]"))


def test_a_run_by_hand_that_takes_the_place_of_another_says_so_and_keeps_the_list(tmp_path: Path) -> None:
    asked = small_runs.request(tmp_path, "model=tinynet_mnist", "phase=probe", "dataset=digits")
    write_grid_of(console(), asked)
    completed(asked.store, small_runs.final_run(asked))
    other = [replace(asked.entries()[0], run_id="of-an-older-release")]
    write_grid(asked.store.grid("adhoc"), grid="adhoc", entries=other)
    printed = console()
    assert_keeps_rows(printed, asked)
    write_grid_of(printed, asked)
    (former,) = formers(asked.store, "adhoc")
    assert said(printed) == [f"the former grid 'adhoc' and its report are kept as grid={former}"]
    assert (read_grid(asked.store.grid(former)), read_grid(asked.store.grid("adhoc"))) == (other, asked.entries())


def test_what_is_sent_again_is_what_the_grid_holds_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extraction failed that both the former rows and those in their place need."""
    one = ("grid.models=[tinynet_mnist]", "grid.seeds=[0]")
    grids = [asked_for(tmp_path, *PROBES, *one, f"phase.probe.batch_size={n}", "replace=true") for n in (7, 9)]
    for number, asked in enumerate(grids):
        write_grid_of(console(), asked)
        (run,) = asked.runs.values()
        runs = [*run.extractions, run]
        payload = job.write_payload(runs, asked.runtime, {run.run_id: ""}, cluster=asked.cluster_config)
        sent = Submission(
            name=f"s{number}",
            grid="quickstart",
            launch=payload.parent,
            tasks=tuple((r.run_id,) for r in runs),
            job_id=str(number),
            submitted=datetime.now(UTC),
        )
        ledger.record(sent)
    taken: list[Request] = []

    def carry_out(_: object, request: Request) -> int:
        taken.append(request)
        return 0

    monkeypatch.setattr("transfergrid.cli.on_slurm.carry_out", carry_out)
    (extraction,) = next(iter(grids[1].runs.values())).extractions
    assert status_actions.relaunch("quickstart", grids[1].store, [extraction.run_id], []) == 0
    assert [c.run.run_id for c in taken[0].configurations] == list(grids[1].runs)


# ------------------------------------------------------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["grid=compare", "dataset=mnist"], "compare-mnist"),
        (["grid=compare"], "compare-digits"),
        (["grid=compare", "grid.datasets=[mnist,cifar10]"], "compare-mnist+cifar10"),
        (["grid=compare", "dataset=mnist", "dataset.name=mine"], "compare-mine"),
        (["grid=compare", "dataset=mnist", "grid_name=other"], "other"),
        (["grid=quickstart"], "quickstart"),
    ],
)
def test_a_template_takes_its_name_from_the_data(tmp_path: Path, arguments: list[str], name: str) -> None:
    asked = asked_for(tmp_path, *arguments)
    assert (asked.grid, asked.runtime.grid) == (name, name)
    assert {c.grid for c in asked.configurations} == {name}


def test_a_long_name_is_cut_and_is_no_others(tmp_path: Path) -> None:
    one, other = (named_by_datasets("compare-{dataset}", ["x" * 70 + end]) for end in "ab")
    assert len(one) == len(other) == 64 and one != other and one[:51] == other[:51] == "compare-" + "x" * 43
