"""jobs/store.py: what takes the space, what is damaged and is made again, what can go and what never does."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from replayed_slurm import ReplayedSlurm, completed, make_grid, queue_line, submit, write
from small_runs import carry_out, final_run, record_of, request
from state_cases import a_slurm

from transfergrid.cli.before import plan_here
from transfergrid.cli.console import make_console
from transfergrid.cli.grid_file import write_grid_of
from transfergrid.cli.launch import run_and_show
from transfergrid.cli.store import keep_house
from transfergrid.config import Request
from transfergrid.errors import ConfigError, DataError, MachineError
from transfergrid.paths import CachePaths, StorePaths
from transfergrid.specs import RunSpec
from transfergrid.store import durable, inventory
from transfergrid.store.damage import find_damage, set_aside

slurm = a_slurm


@dataclass(frozen=True)
class House:
    """A store and a cache with a fine-tuning of two networks by hand: its grid, its probe, its features."""

    folder: Path
    asked: Request

    @property
    def store(self) -> StorePaths:
        return StorePaths(self.folder / "store")

    @property
    def run(self) -> RunSpec:
        return final_run(self.asked)

    def keep(self, *arguments: str) -> int:
        return keep_house([f"store.dir={self.folder / 'store'}", f"cache.dir={self.folder / 'cache'}", *arguments])

    def features(self) -> list[Path]:
        return sorted((self.folder / "cache" / "features").rglob("*.h5"))


def in_house(folder: Path) -> House:
    return House(folder, request(folder, "model=tinynet_mnist", "phase=finetune", "grid_name=mine"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> House:
    house = in_house(tmp_path_factory.mktemp("house"))
    assert carry_out(house.asked) == "completed"
    return house


@pytest.fixture
def house(built: House, tmp_path: Path) -> House:
    shutil.copytree(built.folder, tmp_path, dirs_exist_ok=True)
    house = in_house(tmp_path)
    write_grid_of(make_console(), house.asked)
    return house


def test_the_space_is_told_by_part_and_the_parts_make_the_whole(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    big = house.store.run(house.run.run_id).weights
    big.write_bytes(b"x" * 3_000_000)
    assert house.keep() == 0
    rows = [line.rsplit(None, 4) for line in capsys.readouterr().out.splitlines()]
    amounts = {name.strip(): (float(amount), int(files)) for name, amount, _, files, _ in rows}
    assert 3.0 <= amounts["weights of runs"][0] < 3.3  # of two runs, the other of some kilobytes
    assert amounts["cache: features"][1] == 2 and list(amounts)[0] == "weights of runs"
    whole = amounts.pop("all")
    assert whole[1] == sum(files for _, files in amounts.values())
    assert whole[0] == pytest.approx(sum(amount for amount, _ in amounts.values()), abs=0.5)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def test_each_damaged_file_is_named_with_what_makes_it_again_and_a_repair_lets_a_launch_do_so(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    paths, before = house.store.run(house.run.run_id), record_of(house.run, house.asked.runtime)
    assert house.keep("action=check") == 0
    assert capsys.readouterr().out == "nothing is damaged\n"
    [rows, _] = features = house.features()
    flip(rows)
    flip(paths.weights)
    network = house.folder / "cache" / "weights" / "resnet18-f37072fd.pth"
    durable.write_bytes(network, b"half a download")
    assert house.keep("action=check") == 1
    out = capsys.readouterr().out
    for path in (rows, paths.weights, network):
        assert f"\n{path}" in f"\n{out}"
    assert "3 damaged files." in out and "grid_name=mine" in out and "the next launch that reads these features" in out
    assert house.keep("action=repair") == 1  # a dry run: nothing was touched
    assert capsys.readouterr().out.count("dry_run=false") == 1 and paths.record.is_file() and rows.is_file()

    assert house.keep("action=repair", "dry_run=false") == 0
    assert not rows.exists() and not paths.record.exists() and not network.exists()
    assert features[1].is_file() and Path(f"{rows}.damaged").is_file()
    assert house.keep("action=check") == 0
    assert carry_out(house.asked) == "completed" and rows.is_file()
    assert record_of(house.run, house.asked.runtime).metrics == before.metrics


def test_a_repair_leaves_what_a_launch_has_made_again_meanwhile(house: House) -> None:
    [rows, _], began_s = house.features(), time.time()
    flip(rows)
    [damage] = find_damage(house.store, CachePaths(house.folder / "cache"), house.folder)
    os.utime(rows, (began_s + 5, began_s + 5))
    assert not set_aside(damage, since_s=began_s) and rows.is_file()
    os.utime(rows, (began_s - 5, began_s - 5))
    assert set_aside(damage, since_s=began_s) and not rows.exists()
    assert not set_aside(damage, since_s=began_s)  # another repair was first


def test_what_is_set_aside_and_checkpoints_of_completed_runs_go_and_the_rest_stays(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = house.store.run(house.run.run_id)
    checkpoint = paths.checkpoints / "step-000000001-line-000000001-0123456789abcdef.pt"
    aside = paths.root / "weights.pt.damaged"
    for path in (checkpoint, aside):
        durable.write_bytes(path, b"x" * 10_000)
    unfinished = house.store.run("unfinished").checkpoints / checkpoint.name
    durable.write_bytes(unfinished, b"x")
    before = {path for path in house.folder.rglob("*") if path.is_file()}
    assert house.keep("action=gc") == 0
    assert "would be freed; to do it: python jobs/store.py" in capsys.readouterr().out and checkpoint.is_file()
    assert house.keep("action=gc", "dry_run=false") == 0
    left = {path for path in house.folder.rglob("*") if path.is_file()}
    assert before - left == {checkpoint, aside}
    assert not paths.checkpoints.exists() and left - before <= {house.store.submitting}
    assert house.keep("action=gc") == 0
    assert capsys.readouterr().out.endswith("nothing can go\n")


def test_runs_and_features_go_by_name_only_and_never_what_a_grid_needs(house: House) -> None:
    other = request(house.folder, "model=tinynet_cifar", "phase=probe", "grid_name=other", cache=house.folder / "cache")
    assert carry_out(other) == "completed"  # its grid was never written, as after replace=true
    probe, extraction = final_run(other).run_id, final_run(other).extractions[0].run_id
    stays = {path.name for path in house.store.runs.iterdir()} - {probe, extraction}
    features = [path for path in house.features() if "tinynet_mnist" in path.name]
    assert len(features) == 2 and len(house.features()) == 4 and house.run.needs[0] in stays
    assert house.keep("action=gc", "dry_run=false") == 0
    assert {path.name for path in house.store.runs.iterdir()} == stays | {probe, extraction}
    assert house.keep("action=gc", "dry_run=false", "runs=true", "features=true") == 0
    assert {path.name for path in house.store.runs.iterdir()} == stays and house.features() == features
    assert house.keep("action=check") == 0


def test_of_a_data_set_with_a_run_that_has_not_begun_everything_stays(house: House) -> None:
    shutil.rmtree(house.store.run(house.run.run_id).root)  # the probe is needed by a run that tells so no more
    unused = inventory.unreferenced(house.store, CachePaths(house.folder / "cache"))
    assert unused.runs == () and unused.features == ()


def test_the_runs_of_a_damaged_grid_file_stay_until_the_grid_was_launched_again(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = house.store.grid("mine")
    listed.write_text("{")
    assert house.keep("action=repair", "dry_run=false") == 0 and not listed.exists()
    with pytest.raises(DataError, match="listed runs, and its grid was not launched again"):
        house.keep("action=gc", "runs=true", "dry_run=false")
    assert house.keep("action=gc", "dry_run=false") == 0 and Path(f"{listed}.damaged").is_file()
    assert house.keep() == 0 and "what no grid refers to is not known" in capsys.readouterr().out
    write_grid_of(make_console(), house.asked)
    assert house.keep("action=gc", "runs=true", "dry_run=false") == 0 and not Path(f"{listed}.damaged").exists()
    assert house.store.run(house.run.run_id).record.is_file()


def test_a_run_under_way_is_neither_damaged_nor_removed(house: House) -> None:
    stray = house.store.run("stray")
    shutil.copytree(house.store.run(house.run.run_id).root, stray.root)
    flip(stray.weights)
    with durable.lock(stray.lock, wait=False) as is_held:
        assert is_held and house.keep("action=check") == 0
        assert house.keep("action=gc", "runs=true", "dry_run=false") == 0 and stray.record.is_file()
    assert house.keep("action=check") == 1
    assert house.keep("action=gc", "runs=true", "dry_run=false") == 0 and not stray.root.exists()


def test_while_a_launch_sends_jobs_nothing_is_collected(house: House) -> None:
    with durable.lock(house.store.submitting, wait=False):
        with pytest.raises(MachineError, match="a launch is sending jobs .*; try again when it has ended"):
            house.keep("action=gc")


def test_what_a_launch_on_this_machine_counts_on_stays_and_what_went_before_is_missed(house: House) -> None:
    house.store.grid("mine").rename(house.store.grid("others"))
    house.store.grid("others").write_text(house.store.grid("others").read_text().replace(house.run.run_id, "another"))
    plan = plan_here(house.asked)
    assert {planned.state for planned in plan.runs} == {"reuse"}
    with durable.lock(house.store.launching("mine"), wait=False):
        with pytest.raises(MachineError, match="a launch is at work in .*, and may count on what no grid lists yet"):
            house.keep("action=gc", "runs=true", "dry_run=false")
        assert house.keep("action=gc", "dry_run=false") == 0
    assert house.store.run(house.run.run_id).record.is_file()
    shutil.rmtree(house.store.run(house.run.run_id).root)
    with pytest.raises(MachineError, match=f"{house.run.run_id} was removed while this was planned; launch again"):
        run_and_show(make_console(), plan, house.asked, lambda *_: [])
    assert not house.store.grid("mine").exists()


def test_a_store_without_a_grid_tells_not_what_may_go(house: House) -> None:
    house.store.grid("mine").unlink()  # as where store.dir= was forgotten, and the cache is right
    with pytest.raises(DataError, match="has no grid that tells what is needed; name its store with store.dir="):
        house.keep("action=gc", "features=true", "dry_run=false")
    assert len(house.features()) == 2 and house.store.run(house.run.run_id).record.is_file()


def test_folders_that_are_links_stay_with_all_that_they_lead_to(house: House) -> None:
    run, elsewhere = house.store.run("stray"), house.folder / "large disk"
    shutil.copytree(house.store.run(house.run.run_id).root, elsewhere)
    run.root.symlink_to(elsewhere)
    before = {path for path in elsewhere.rglob("*")}
    assert house.keep("action=gc", "runs=true", "dry_run=false") == 0
    assert run.root.is_symlink() and {path for path in elsewhere.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs=true"], "runs= belongs to action=gc, which is not given"),
        (["action=check", "dry_run=false"], "action=check changes nothing; leave dry_run= out"),
        (["action=clean"], "action='clean' is not one of size, check, repair, gc"),
        (["store.dir=nowhere", "cache.dir=nowhere"], "neither nowhere nor nowhere is there"),
    ],
)
def test_a_request_that_makes_no_sense(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        keep_house(arguments)


# ------------------------------------------------------------------------------------------------------ copies of code
def sent_with_code(store: StorePaths) -> Path:
    """The code of a launch of runs a and b, jobs 7_0 and 7_1."""
    make_grid(store, "a", "b")
    launch = submit(store, ("a",), ("b",)).launch
    durable.write_bytes(launch / "code" / "src" / "transfergrid" / "errors.py", b"x" * 5000)
    return launch / "code"


def test_a_launch_keeps_its_code_until_none_of_its_jobs_can_begin(
    tmp_path: Path, slurm: ReplayedSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    store = StorePaths(tmp_path / "results")
    code, collect = sent_with_code(store), [f"store.dir={store.root}", "action=gc", "dry_run=false"]
    completed(store, "a")
    slurm.answers("squeue", queue_line("7_1", "PENDING", "Priority"))
    assert keep_house(collect) == 0 and code.is_dir()
    assert "some of its runs may still come" in capsys.readouterr().out
    completed(store, "b")  # by another job; its own waits still
    assert keep_house(collect) == 0 and code.is_dir()
    assert "SLURM has jobs of it" in capsys.readouterr().out
    slurm.controller_is_down()
    assert keep_house(collect) == 0 and code.is_dir()
    assert "stays: the code of" in capsys.readouterr().out
    slurm.is_cluster("there")
    slurm.answers("squeue", "")
    assert keep_house(collect) == 0 and code.is_dir()
    assert "it was sent to cluster here" in capsys.readouterr().out
    slurm.is_cluster("here")
    assert keep_house(collect) == 0 and not code.exists() and (code.parent / "slurm").is_dir()


def test_a_launch_from_which_nothing_was_sent_keeps_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = StorePaths(tmp_path / "results")
    code = store.launches / "20261130T120000-0a1b2c3d" / "code"
    code.mkdir(parents=True)
    assert keep_house([f"store.dir={store.root}", "action=gc", "dry_run=false"]) == 0 and code.is_dir()
    assert "0a1b2c3d: nothing was sent from it yet" in capsys.readouterr().out


def test_the_code_of_several_waves_stays_while_one_of_them_is_alive(
    tmp_path: Path, slurm: ReplayedSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    store = StorePaths(tmp_path / "results")
    code, collect = sent_with_code(store), [f"store.dir={store.root}", "action=gc", "dry_run=false"]
    submit(store, ("c",), job_id="8", launch="20261120T130000-bbbbbbbb")  # its jobs run the first launch's code
    for run_id in ("a", "b"):
        completed(store, run_id)
    slurm.answers("squeue", queue_line("8", "PENDING", "Priority"))
    assert keep_house(collect) == 0 and code.is_dir()
    assert "launch 20261120T130000-bbbbbbbb of the same grid has no code of its own" in capsys.readouterr().out
    completed(store, "c")
    slurm.answers("squeue", "")
    assert keep_house(collect) == 0 and not code.exists()


def test_a_launch_keeps_its_code_while_a_job_is_still_to_be_sent_by_its_script(
    tmp_path: Path, slurm: ReplayedSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    store = StorePaths(tmp_path / "results")
    code, collect = sent_with_code(store), [f"store.dir={store.root}", "action=gc", "dry_run=false"]
    for run_id in ("a", "b"):
        completed(store, run_id)
    unsent = code.parent / "slurm" / "tg-g-finish" / "finish.json"
    write(unsent, {})
    assert keep_house(collect) == 0 and code.is_dir()
    assert "some of its jobs were not sent yet" in capsys.readouterr().out
    unsent.unlink()
    assert keep_house(collect) == 0 and not code.exists()


def test_a_launch_keeps_its_code_where_slurm_hides_the_jobs_of_who_sent_it(
    tmp_path: Path, slurm: ReplayedSlurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = StorePaths(tmp_path / "results")
    code, collect = sent_with_code(store), [f"store.dir={store.root}", "action=gc", "dry_run=false"]
    for run_id in ("a", "b"):
        completed(store, run_id)
    slurm.is_cluster("here", PrivateData="jobs,usage")
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert keep_house(collect) == 0 and code.is_dir()
    assert "another user sent it, and SLURM hides others' jobs here" in capsys.readouterr().out
    monkeypatch.setattr(os, "getuid", lambda: uid)
    assert keep_house(collect) == 0 and not code.exists()
