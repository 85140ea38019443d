"""Feature files that are damaged or gone: set aside, extracted again within the launch that meets them."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from small_runs import carry_out, final_run, paths_of, record_of, request

from transfergrid.cluster import local
from transfergrid.config import Request
from transfergrid.errors import LostFeatures
from transfergrid.paths import cache_paths
from transfergrid.phases.probe import load_features
from transfergrid.planning import job
from transfergrid.planning.plan import PlannedRun, make_plan
from transfergrid.specs import FeatureKey, RunSpec, Runtime, Split
from transfergrid.store import durable, feature_store
from transfergrid.store.records import read_record
from transfergrid.training.stopping import StopFlag

SPLIT: Split = "train"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Request:
    """A finished probe of two backbones, and the features it was made from."""
    asked = request(tmp_path_factory.mktemp("whole"), "model=tinynet_mnist+tinynet_cifar", "phase=probe")
    assert carry_out(asked) == "completed"
    return asked


@pytest.fixture
def copied(whole: Request, tmp_path: Path) -> tuple[RunSpec, Runtime]:
    """The same features in a cache of the test's own, with the extractions' records; the probe is to be run."""
    run = final_run(whole)
    runtime = replace(whole.runtime, store_dir=str(tmp_path / "store"), cache_dir=str(tmp_path / "cache"))
    shutil.copytree(whole.runtime.cache_dir, runtime.cache_dir)
    for extraction in run.extractions:
        shutil.copytree(paths_of(extraction, whole.runtime).root, paths_of(extraction, runtime).root)
    return run, runtime


def key_of(run: RunSpec, place: int = 0) -> FeatureKey:
    return run.feature_key(run.backbones[place], SPLIT)


# ------------------------------------------------------------------------------------------------- kinds of damage
def rewritten(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    """A file of other content whose checksums are right."""

    def damage(path: Path) -> None:
        with h5py.File(path, "r+", locking=False) as file:
            change(file)
            parts = (file[name][...] for name in ("features", "labels", "index"))
            file["block_crc32"][...] = feature_store._checksums(*parts)

    return damage


def flipped(path: Path) -> None:
    with h5py.File(path, "r", locking=False) as file:
        place = file["features"].id.get_offset() + 5
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


def not_finite(file: h5py.File) -> None:
    file["features"][3, 1] = np.nan


def of_other_rows(file: h5py.File) -> None:
    file["index"][...] = file["index"][...] + 1


def of_other_labels(file: h5py.File) -> None:
    file["labels"][...] = np.roll(file["labels"][...], 1)


def resized(axis: int) -> Callable[[Path], None]:
    """With rows or columns left out, checksums and all."""

    def damage(path: Path) -> None:
        with h5py.File(path, "r", locking=False) as file:
            arrays = {name: file[name][...] for name in ("features", "labels", "index")}
            attributes = dict(file.attrs)
        arrays["features"] = np.ascontiguousarray(np.delete(arrays["features"], 0, axis=axis))
        if axis == 0:
            arrays |= {name: arrays[name][1:] for name in ("labels", "index")}
        path.unlink()
        with h5py.File(path, "x") as file:
            for name, values in arrays.items():
                file.create_dataset(name, data=values)
            file["block_crc32"] = feature_store._checksums(*arrays.values())
            for name, value in attributes.items():
                file.attrs[name] = value

    return damage


def of_another_key(path: Path) -> None:
    with h5py.File(path, "r+", locking=False) as file:
        file.attrs["key"] = np.bytes_(b"{}")


def replaced_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replaced_by_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/x.h5")


AT_THE_PLAN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (lambda path: os.truncate(path, os.path.getsize(path) - 2000), "truncated"),
    "zero bytes": (lambda path: os.truncate(path, 0), "OSError"),
    "not HDF5": (lambda path: path.write_bytes(b"<html>" * 1000), "OSError"),
    "of another key": (of_another_key, "holds the features of another key"),
    "a folder": (replaced_by_a_folder, "Is a directory"),
    "a link to nowhere": (replaced_by_a_link, "No such file"),
}
ON_THE_NODE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a flipped bit": (flipped, "block 0 does not match its checksum"),
    "not finite": (rewritten(not_finite), "rows are not finite, the first is image"),
    "other rows": (rewritten(of_other_rows), "rows are not those of the data set"),
    "other labels": (rewritten(of_other_labels), "labels are not those of the data set"),
    "a row less": (resized(0), "rows are not those of the data set"),
    "a column less": (resized(1), "features a row, not"),
}


@pytest.mark.parametrize("kind", AT_THE_PLAN)
def test_what_the_plan_can_see_is_extracted_again_and_said(kind: str, copied: tuple[RunSpec, Runtime]) -> None:
    (damage, telling), (run, runtime) = AT_THE_PLAN[kind], copied
    cache, extraction = cache_paths(runtime), run.extractions[0]
    path = cache.features(key_of(run))
    content = path.read_bytes()
    damage(path)
    plan = make_plan([run.run_id], {run.run_id: run}, runtime)
    planned = {p.run.run_id: p for p in plan.runs}
    assert [planned[e.run_id].state for e in run.extractions if e.run_id in planned] == ["run", "reuse"]
    why = planned[extraction.run_id].why
    assert why.startswith("features of tinynet_mnist on train are damaged (") and why.endswith("): extracted again")
    assert telling in why and planned[run.run_id].needs == (extraction.run_id,)
    assert os.path.lexists(path) and not path.with_name(path.name + ".damaged").exists()  # a plan writes nothing
    assert job.carry_out(extraction, runtime) == "completed"
    assert os.path.lexists(path.with_name(path.name + ".damaged"))
    assert same_features(path, content)
    assert feature_store.damage(cache, key_of(run)) is None
    log = paths_of(extraction, runtime).log.read_text()
    assert f"kept as {path}.damaged, extracted again" in log
    assert re.search(
        r" INFO train: \d+ images, \d+ images/s, \d+\.\d s\n.* INFO test: features are there already\n", log
    )


@pytest.mark.parametrize("kind", ON_THE_NODE)
def test_what_only_a_reader_sees_is_set_aside_extracted_again_and_the_run_completes(
    kind: str, copied: tuple[RunSpec, Runtime], whole: Request
) -> None:
    (damage, telling), (run, runtime) = ON_THE_NODE[kind], copied
    cache = cache_paths(runtime)
    paths = [cache.features(key_of(run, place)) for place in (0, 1)]
    content = [path.read_bytes() for path in paths]
    for path in paths:  # both backbones', met in one go
        damage(path)
    assert make_plan([run.run_id], {run.run_id: run}, runtime).counts()["run"] == 1  # the plan reads headers alone
    assert job.carry_out(run, runtime) == "completed"
    log = paths_of(run, runtime).log.read_text()
    for path, was in zip(paths, content, strict=True):
        assert path.with_name(path.name + ".damaged").exists() and same_features(path, was)
        assert f"kept as {path}.damaged" in log
    assert log.count(telling) == 3 and "Traceback" not in log
    assert record_of(run, runtime).metrics == record_of(run, whole.runtime).metrics


def same_features(path: Path, content: bytes) -> bool:
    former = path.with_name("former.h5")
    former.write_bytes(content)
    with h5py.File(path, "r", locking=False) as one, h5py.File(former, "r", locking=False) as other:
        return all(np.array_equal(one[name][...], other[name][...]) for name in ("features", "labels", "index"))


def test_features_that_are_gone_are_extracted_again(copied: tuple[RunSpec, Runtime]) -> None:
    run, runtime = copied
    cache_paths(runtime).features(key_of(run)).unlink()
    assert job.carry_out(run, runtime) == "completed"
    assert record_of(run.extractions[0], runtime).attempt == 2


def test_a_run_of_a_cache_whose_extraction_stands_in_another_store_heals_too(copied: tuple[RunSpec, Runtime]) -> None:
    run, runtime = copied
    shutil.rmtree(runtime.store_dir)
    flipped(cache_paths(runtime).features(key_of(run)))
    assert job.carry_out(run, runtime) == "completed"
    assert read_record(paths_of(run.extractions[1], runtime)) is None  # whose features were whole


def test_an_extraction_that_failed_is_not_tried_again_by_what_needs_it(copied: tuple[RunSpec, Runtime]) -> None:
    run, runtime = copied
    extraction = run.extractions[0]
    cache_paths(runtime).features(key_of(run)).unlink()
    job.write_failure(paths_of(extraction, runtime), extraction, LostFeatures("torn"), attempt=1)
    assert job.carry_out(run, runtime) == "failed"
    record = record_of(run, runtime)
    assert record.failure_class == "blocked" and record.remedy == f"run {extraction.run_id} first"


def test_a_disk_that_damages_every_file_ends_in_a_failure_not_in_a_loop(
    copied: tuple[RunSpec, Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, runtime = copied
    path = cache_paths(runtime).features(key_of(run))
    flipped(path)
    publish = durable.publish

    def damaging(temporary: Path, final: Path) -> None:
        publish(temporary, final)
        if final.suffix == ".h5":
            flipped(final)

    monkeypatch.setattr(durable, "publish", damaging)
    assert job.carry_out(run, runtime) == "failed"
    record = record_of(run, runtime)
    assert record.failure_class == "blocked" and "does not match its checksum; extract again" in str(record.error)
    assert record_of(run.extractions[0], runtime).attempt == 2


def test_a_damaged_file_of_anothers_cache_stays_there_and_is_no_longer_read(
    copied: tuple[RunSpec, Runtime], tmp_path: Path
) -> None:
    run, theirs = copied
    path = cache_paths(theirs).features(key_of(run))
    flipped(path)
    content = path.read_bytes()
    guest = replace(
        theirs, cache_dir=str(tmp_path / "mine"), store_dir=str(tmp_path / "s"), cache_also_read=(theirs.cache_dir,)
    )
    assert job.carry_out(run, guest) == "completed"
    assert path.read_bytes() == content and not path.with_name(path.name + ".damaged").exists()
    own = [p.name for p in Path(guest.cache_dir).rglob("*.h5")]
    assert own == [path.name]  # and of the files that are whole, none is made again


def test_a_file_that_was_made_again_meanwhile_is_left_alone(copied: tuple[RunSpec, Runtime], whole: Request) -> None:
    run, runtime = copied
    cache, key = cache_paths(runtime), key_of(run)
    path = cache.features(key)
    seen = os.lstat(path)
    shutil.copy(path, path.with_name("new"))
    os.replace(path.with_name("new"), path)
    assert feature_store.set_aside(cache, key, path, "torn", seen=seen) == path
    assert path.exists() and feature_store.damage(cache, key) is None


def test_a_stop_while_features_are_extracted_again_interrupts_the_run(
    copied: tuple[RunSpec, Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, runtime = copied
    flipped(cache_paths(runtime).features(key_of(run)))

    stop = StopFlag()
    real = feature_store.set_aside

    def signalled(*arguments: Any, **more: Any) -> Path:
        stop.signal = 15
        return real(*arguments, **more)

    monkeypatch.setattr(feature_store, "set_aside", signalled)
    assert job.carry_out(run, runtime, stop=stop) == "interrupted"
    assert read_record(paths_of(run, runtime)) is None
    assert job.carry_out(run, runtime) == "completed"


# ---------------------------------------------------------------------------------------------------------- the pool
class Noted(local.Watcher):
    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def started(self, planned: PlannedRun) -> None:
        self.told.append(("started", planned.run.run_id))

    def again(self, planned: PlannedRun) -> None:
        self.told.append(("again", planned.why))

    def running(self, planned: Iterable[PlannedRun]) -> None: ...


@pytest.mark.slow
def test_the_local_pool_puts_the_extraction_before_every_run_that_needs_it(copied: tuple[RunSpec, Runtime]) -> None:
    """The first probe meets the damage; extraction and both probes end well, the second without having begun twice."""
    run, runtime = copied
    other = replace(run, seed=5)
    flipped(cache_paths(runtime).features(key_of(run)))
    plan = make_plan([run.run_id, other.run_id], {r.run_id: r for r in (run, other)}, runtime)
    watcher = Noted()
    endings = {e.run.run_id: e.ending for e in local.run_plan(plan, runtime, watcher)}
    extraction = run.extractions[0].run_id
    assert endings == dict.fromkeys((run.run_id, other.run_id, extraction), "completed")
    [why] = [words for event, words in watcher.told if event == "again"]
    assert why.startswith("features of tinynet_mnist on train are damaged (") and "does not match its checksum" in why
    started = [words for event, words in watcher.told if event == "started"]
    assert started == [run.run_id, extraction, run.run_id, other.run_id]
    assert json.loads(paths_of(run, runtime).record.read_text())["attempt"] == 2


def test_features_lost_in_every_split_are_named_at_once(copied: tuple[RunSpec, Runtime]) -> None:
    run, runtime = copied
    cache = cache_paths(runtime)
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        flipped(cache.features(run.feature_key(run.backbones[0], split)))
    with pytest.raises(LostFeatures, match=r"does not match its checksum \(and 1 more\); extract again"):
        load_features(run, runtime)
    assert len(list(Path(runtime.cache_dir).rglob("*.damaged"))) == 2
