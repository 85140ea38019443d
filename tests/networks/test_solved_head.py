"""The solved head: its optimum, the path of penalties that val chooses from, and the heads beside it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression as Theirs
from sklearn.neighbors import KNeighborsClassifier
from small_runs import MACHINE, StopAfter, carry_out, final_run, paths_of, record_of, request
from torch import Tensor

from transfergrid.config import Request, load_grid, load_run
from transfergrid.data import load
from transfergrid.data.splits import rows_per_class
from transfergrid.errors import ConfigError
from transfergrid.networks.head_path import HeadPath, OnVal, Trial, best_of, next_strength, search_of
from transfergrid.networks.heads import fit_standardiser
from transfergrid.networks.reference_heads import linear_discriminant, nearest_neighbours, quadratic_discriminant
from transfergrid.networks.solved_head import GRADIENT_NORM, SoftmaxProblem, fit_lbfgs, minimise
from transfergrid.phases.probe import load_features
from transfergrid.planning import job
from transfergrid.store.metrics_log import read_metrics

SOLVED = ["phase=probe", "phase.probe.solver=lbfgs", "phase.probe.lbfgs=true", "dataset.max_images=null"]
DEFAULTS = ["phase.probe.epochs=5", "phase.probe.batch_size=256", "phase.probe.precision=fp32"]


def solved(folder: Path, *arguments: str, cache: Path | None = None) -> Request:
    return request(folder, *SOLVED, *DEFAULTS, *arguments, cache=cache)


def real_pixels(name: str, data_dir: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """60 images of each class to learn from and 200 others, as standardised random ReLU features of their pixels."""
    folder = data_dir / name if name == "cifar10-jpeg" else None
    kind = name if folder is None else "image_folder"
    images = load(kind, split="train", data_dir=data_dir, folder=folder)
    learn_N = rows_per_class(images.labels_N, count=60, seed=1)
    others_N = np.setdiff1d(np.arange(len(images.labels_N)), learn_N)
    others_N = others_N[rows_per_class(images.labels_N[others_N], count=20, seed=2)]
    generator = torch.Generator().manual_seed(0)
    found = []
    for rows_N in (learn_N, others_N):
        pixels = np.stack([np.asarray(image, dtype=np.float32).reshape(-1) for image in images.read(rows_N)]) / 255
        found.append(torch.from_numpy(pixels))
    mixing = torch.randn(found[0].shape[1], 128, generator=generator)
    raw = [torch.relu((part - found[0].mean(0)) @ mixing) for part in found]
    standardiser = fit_standardiser(raw[0])
    labels = [torch.from_numpy(images.labels_N[rows_N]) for rows_N in (learn_N, others_N)]
    return standardiser.apply(raw[0]), labels[0], standardiser.apply(raw[1]), labels[1]


# ------------------------------------------------------------------------------------------------------------- optimum
@pytest.mark.parametrize("balanced", [False, True])
def test_digits_are_told_apart_as_by_scikit_learn_at_every_strength(balanced: bool) -> None:
    _agrees_with_scikit_learn("digits", Path("."), balanced=balanced)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["mnist", "cifar10-jpeg"])
def test_real_images_are_told_apart_as_by_scikit_learn_at_every_strength(name: str, real_data_dir: Path) -> None:
    _agrees_with_scikit_learn(name, real_data_dir, balanced=False)


def _agrees_with_scikit_learn(name: str, data_dir: Path, *, balanced: bool) -> None:
    train_ND, labels_N, rows_BD, _ = real_pixels(name, data_dir)
    if balanced:  # classes 0 to 4 keep every third image
        kept = (labels_N > 4) | (torch.arange(len(labels_N)) % 3 == 0)
        train_ND, labels_N = train_ND[kept], labels_N[kept]
    for c in (1e-4, 1e-2, 1.0):
        ours = fit_lbfgs(train_ND, labels_N, num_classes=10, c=c, balanced=balanced)
        theirs = Theirs(C=c, tol=1e-8, max_iter=5000, class_weight="balanced" if balanced else None)
        theirs.fit(train_ND.double().numpy(), labels_N.numpy())
        assert ours.gradient_norm < GRADIENT_NORM
        differ = ours.logits(rows_BD).argmax(1).numpy() != theirs.predict(rows_BD.double().numpy())
        assert differ.sum() <= 1, (name, c, balanced)


def test_fewer_images_than_dimensions_give_the_same_optimum_in_the_span_of_the_images() -> None:
    generator = torch.Generator().manual_seed(0)
    train_ND, labels_N = torch.randn(30, 200, generator=generator), torch.arange(30) % 3
    ours = fit_lbfgs(train_ND, labels_N, num_classes=3, c=0.1)
    theirs = Theirs(C=0.1, tol=1e-10, max_iter=5000).fit(train_ND.double().numpy(), labels_N.numpy())
    np.testing.assert_allclose(ours.weight_CD.numpy(), theirs.coef_, atol=1e-4)


def test_one_image_per_class_constant_features_and_absent_classes_have_an_optimum_too() -> None:
    two = fit_lbfgs(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 1]), num_classes=2)
    assert two.gradient_norm < GRADIENT_NORM and two.logits(torch.tensor([[0.5, 9.0], [-0.5, 9.0]])).argmax(
        1
    ).tolist() == [0, 1]
    # Nothing but how often a class comes: the bias says it, and the weights say nothing.
    constant = fit_lbfgs(torch.zeros(8, 3), torch.tensor([0] * 6 + [1] * 2), num_classes=3)
    shares = torch.softmax(constant.bias_C, 0)
    torch.testing.assert_close(shares[:2], torch.tensor([0.75, 0.25]).double(), atol=1e-4, rtol=0)
    assert shares[2] < 1e-12 and float(constant.weight_CD.abs().max()) < 1e-6
    one = fit_lbfgs(torch.randn(5, 4), torch.full((5,), 2), num_classes=4)
    assert one.gradient_norm < GRADIENT_NORM and one.logits(torch.randn(7, 4)).argmax(1).tolist() == [2] * 7


def test_a_float64_tail_ends_below_the_gradient_that_float32_alone_claims() -> None:
    generator = torch.Generator().manual_seed(0)
    train_ND = torch.randn(500, 20, generator=generator) + 3 * torch.randn(500, 1, generator=generator)
    labels_N = torch.randint(4, (500,), generator=generator)
    problem = SoftmaxProblem(train_ND, labels_N, num_classes=4)
    found = minimise(problem, 1.0, problem.start(), gradient_norm=1e-9)
    _, _, gradient = problem.evaluate(found.parameters, 1 / 500, torch.float64)
    assert float(gradient.norm()) == found.gradient_norm < 1e-9
    _, _, rounded = problem.evaluate(found.parameters, 1 / 500, torch.float32)
    assert float(rounded.norm()) > 1e-9  # which float32 alone could not have told


# ---------------------------------------------------------------------------------------------------------------- path
def tried(c: float, right: str, loss: float) -> Trial:
    """right: `1` for each val image that is."""
    shares_V = torch.tensor([float(sign) for sign in right], dtype=torch.float64) / len(right)
    return Trial(c, OnVal(float(shares_V.sum()), loss, float(shares_V.sum()), shares_V), 0.0, 1, 0.0)


def test_val_chooses_by_score_then_cross_entropy_then_the_stronger_penalty() -> None:
    clear = [tried(0.1, "1" * 20 + "0" * 80, 0.5), tried(1.0, "1" * 80 + "0" * 20, 0.9)]
    assert best_of(clear).c == 1.0
    # One image of 100 is no difference: then the cross entropy tells.
    close = [tried(0.1, "1" * 80 + "0" * 20, 0.5), tried(1.0, "1" * 81 + "0" * 19, 0.9)]
    assert best_of(close).c == 0.1
    assert best_of([tried(1.0, "11", 0.5), tried(0.1, "11", 0.5)]).c == 0.1


def test_the_path_goes_from_strong_to_weak_ends_where_val_leaves_it_and_is_extended_at_an_end() -> None:
    cs = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
    so_far: list[Trial] = []

    def walk(losses: dict[float, float]) -> list[float]:
        so_far.clear()
        while (c := next_strength(so_far, cs)) is not None:
            so_far.append(tried(c, "1110", losses.get(c, 1e9)))
        return [t.c for t in so_far]

    assert walk({c: abs(c - 0.1) for c in cs}) == [0.01, 0.1, 1.0, 10.0, 100.0]  # three worse in a row
    weaker = walk({c: 1 / c for c in (*cs, 3e3, 1e4, 3e4, 1e5)})
    assert weaker == [*cs, 3e3, 1e4, 3e4, 1e5] and best_of(so_far).c == 1e5
    stronger = walk({c: c for c in (*cs, 3e-3, 1e-3, 3e-4, 1e-4)})
    assert stronger == [*cs, 3e-3, 1e-3, 3e-4, 1e-4]
    assert next_strength([tried(1.0, "1", 0.0)], (1.0,)) is None  # one that is asked for is all there is


def test_an_earlier_strength_may_become_the_best_when_a_later_one_widens_what_counts_as_equal() -> None:
    generator = torch.Generator().manual_seed(0)
    problem = SoftmaxProblem(torch.randn(40, 3, generator=generator), torch.arange(40) % 2, num_classes=2)
    path, scores = HeadPath((0.1, 1.0, 10.0)), iter([("0011", 1.0), ("0111", 2.0), ("1110", 3.0)])

    def score(_: object) -> OnVal:
        right, loss = next(scores)
        return tried(1.0, right, loss).on_val

    chosen = []
    for _ in range(3):
        path.advance(problem, score, check=lambda: None)
        chosen.append(best_of(path.trials).c)
    assert chosen == [0.1, 0.1, 0.1]
    assert path.finish(problem, check=lambda: None).gradient_norm < GRADIENT_NORM


def test_a_search_says_whether_its_choice_lies_at_an_end() -> None:
    assert search_of("C", [0.1, 1.0, 10.0], 1.0)["edge"] is None
    at_end = search_of("C", [0.1, 1.0], 1.0, lowest="strongest", highest="weakest")
    assert (at_end["at_edge"], at_end["edge"]) == (True, "weakest")
    assert search_of("lr", [0.1, 1.0], 0.1)["edge"] == "lowest"
    assert not search_of("weight_decay", [0.0, 1e-4], 0.0)["at_edge"]  # there is nothing below 0
    assert not search_of("C", [1.0], 1.0)["at_edge"]


# ------------------------------------------------------------------------------------------------------ whole probes
@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Request:
    asked = solved(tmp_path_factory.mktemp("solved"), "model=tinynet_mnist", cache=cache)
    assert carry_out(asked) == "completed"
    return asked


def test_a_solved_probe_records_its_search_its_time_and_what_stands_beside_it(probe: Request) -> None:
    record = record_of(final_run(probe), probe.runtime)
    [search] = record.details["search"]
    assert search["name"] == "C" and search["values"] == sorted(search["values"]) and len(search["values"]) >= 9
    assert search["chosen"] == record.details["chosen"]["C"] and not search["at_edge"] and search["not_converged"] == []
    assert record.details["gradient_norm"] < 1e-5 and record.details["solve_s"] > 0 and record.epochs is None
    assert record.metrics["lbfgs_test_accuracy"] == record.metrics["test_accuracy"] > 0.95
    assert set(record.details["references"]) == {"knn", "lda", "qda"}
    lines = read_metrics(paths_of(final_run(probe), probe.runtime).metrics)
    assert sorted(line["C"] for line in lines) == search["values"]
    assert max(line["val/accuracy"] for line in lines) >= record.metrics["val_accuracy"]


def test_what_is_published_is_scikit_learns_head_at_the_chosen_strength(probe: Request) -> None:
    run = final_run(probe)
    features, folds = load_features(run, probe.runtime)
    record = record_of(run, probe.runtime)
    kept_N = np.isin(features["train"].index_N, folds.train.index_N)
    standardiser = fit_standardiser(torch.from_numpy(features["train"].features_ND[kept_N]))
    train_ND = standardiser.apply(torch.from_numpy(features["train"].features_ND[kept_N])).double().numpy()
    test_ND = standardiser.apply(torch.from_numpy(features["test"].features_ND)).double().numpy()
    theirs = Theirs(C=record.details["chosen"]["C"], tol=1e-8, max_iter=5000).fit(train_ND, folds.train.labels_N)
    accuracy = (theirs.predict(test_ND) == features["test"].labels_N).mean()
    assert abs(accuracy - record.metrics["test_accuracy"]) <= 1.001 / len(test_ND)


def test_a_signal_stops_a_path_between_strengths_and_the_next_launch_ends_as_one_that_was_not_stopped(
    probe: Request, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = solved(tmp_path, "model=tinynet_mnist", cache=cache)
    run = final_run(asked)
    monkeypatch.setattr(job, "StopFlag", lambda: StopAfter(60))
    assert job.carry_out(run, asked.runtime) == "interrupted"
    stopped = len(read_metrics(paths_of(run, asked.runtime).metrics))
    assert 0 < stopped < 11
    monkeypatch.undo()
    assert job.carry_out(run, asked.runtime) == "completed"
    log = paths_of(run, asked.runtime).log.read_text()
    strengths = re.findall(r" INFO C (\S+): train loss \d\.\d{4}, val accuracy \d+\.\d\d%, \d+ iterations, ", log)
    lines = read_metrics(paths_of(run, asked.runtime).metrics)
    assert list(map(float, strengths)) == [line["C"] for line in lines]
    assert f" INFO continues after {stopped} strengths of the penalty\n" in log
    ours, whole = record_of(run, asked.runtime), record_of(final_run(probe), probe.runtime)
    assert ours.details["search"] == whole.details["search"] and ours.metrics == whole.metrics


def test_a_solved_probe_on_all_images_has_no_seed_and_every_seed_of_finetuning_shares_it() -> None:
    grid = load_grid(
        ["grid=quickstart", "grid.models=[tinynet_mnist]", "grid.phases=[probe,finetune]", "grid.variants={}"]
    )
    runs = [c.run for c in grid.configurations]
    probes = [run for run in runs if run.phase == "probe"]
    assert [run.seed for run in probes] == [None] and "-probe-" in probes[0].run_id
    assert [run.needs for run in runs if run.phase == "finetune"] == [(probes[0].run_id,)] * 3
    # Where the seed draws the images, it stays.
    few = load_grid(
        ["grid=quickstart", "grid.models=[tinynet_mnist]", "grid.phases=[probe]", "dataset.shots=5", "grid.variants={}"]
    )
    assert [c.run.seed for c in few.configurations] == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["phase.probe.epochs=20"], "phase.probe.epochs=20 has no effect on a solved head; set phase.probe.solver=sgd"),
        (["phase.probe.source=images"], "has no features to solve on; set phase.probe.solver=sgd"),
        (["phase.probe.cs=[]"], "phase.probe.cs is empty"),
        (["phase.probe.cs=[0]"], "phase.probe.cs=0.0 is out of range"),
    ],
)
def test_what_a_solved_head_cannot_be_asked_is_refused_in_one_line(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_run(["model=tinynet_mnist", "phase=probe", *MACHINE, *arguments])
    assert words in str(raised.value)


# --------------------------------------------------------------------------------------------------------- beside it
def test_neighbours_are_scikit_learns_and_the_nearer_ones_break_a_tie() -> None:
    train_ND, labels_N, rows_BD, _ = real_pixels("digits", Path("."))
    found = nearest_neighbours(train_ND, labels_N, rows_BD, num_classes=10)
    for k in (1, 5):
        theirs = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(train_ND.numpy(), labels_N.numpy())
        assert (found[k].numpy() != theirs.predict(rows_BD.numpy())).sum() <= (0 if k == 1 else 4)  # ties
    tie = nearest_neighbours(
        torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 0]), torch.tensor([[2.0, 1.0]]), num_classes=2
    )
    assert tie[2].tolist() == [1]


@pytest.mark.parametrize("every", [1, 10])  # every tenth image: 60, of 128 dimensions
def test_the_linear_discriminant_has_scikit_learns_shrunk_covariance(every: int) -> None:
    train_ND, labels_N, rows_BD, _ = real_pixels("digits", Path("."))
    train_ND, labels_N = train_ND[::every], labels_N[::every]
    rows, labels = train_ND.double().numpy(), labels_N.numpy()
    means = np.stack([rows[labels == c].mean(0) for c in range(10)])
    covariance, _ = ledoit_wolf(rows - means[labels], assume_centered=True)
    weights = np.linalg.solve(covariance, means.T)
    offsets = np.log(np.bincount(labels) / len(labels)) - 0.5 * (means.T * weights).sum(0)
    scores = rows_BD.double().numpy() @ weights + offsets
    ours_N = linear_discriminant(train_ND, labels_N, num_classes=10)(rows_BD).numpy()
    assert (ours_N != scores.argmax(1)).sum() <= 1


def test_quadratic_discriminants_need_more_images_of_every_class_than_dimensions_and_tell_spreads_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    near, far = torch.randn(300, 3, generator=generator), 5 * torch.randn(300, 3, generator=generator)
    train_ND, labels_N = torch.cat([near, far]), torch.arange(2).repeat_interleave(300)
    predict = quadratic_discriminant(train_ND, labels_N, num_classes=2)
    assert predict is not None
    assert float((predict(train_ND) == labels_N).float().mean()) > 0.9  # no line parts what has one centre
    assert quadratic_discriminant(train_ND, labels_N, num_classes=3) is None
    few = torch.cat([torch.arange(300), torch.arange(300, 303)])
    assert quadratic_discriminant(train_ND[few], labels_N[few], num_classes=2) is None


def test_a_path_that_was_frozen_goes_on_where_it_stood() -> None:
    generator = torch.Generator().manual_seed(0)
    train_ND, labels_N = torch.randn(60, 5, generator=generator), torch.randint(3, (60,), generator=generator)
    problem = SoftmaxProblem(train_ND, labels_N, num_classes=3)
    path = HeadPath((0.1, 1.0))

    def score(head: object) -> OnVal:
        return OnVal(0.5, 1.0, 0.5, torch.tensor([0.5, 0.0]))

    path.advance(problem, score, check=lambda: None)
    again = HeadPath((0.1, 1.0))
    assert again.thaw(path.freeze(7.0), torch.device("cpu")) == 7.0
    assert [t.c for t in again.trials] == [0.1] and torch.equal(again.solutions[0.1], path.solutions[0.1])
    assert next_strength(again.trials, again.cs) == 1.0


def test_a_path_that_was_computed_on_another_device_goes_on() -> None:
    path = HeadPath(
        (0.1, 1.0, 10.0), [tried(0.1, "10", 0.7), tried(1.0, "10", 0.6)], {0.1: torch.zeros(2), 1.0: torch.zeros(2)}
    )
    again = HeadPath(path.cs)
    again.thaw(path.freeze(1.0), torch.device("meta"))
    assert again.solutions[0.1].device.type == "meta"
    assert best_of([*again.trials, tried(10.0, "10", 0.65)]).c == 1.0


def test_a_path_does_not_end_where_it_began() -> None:
    """Val's loss may rise at first, where few images are held out: weaker strengths are tried all the same."""
    rising = [tried(c, "10", loss) for c, loss in ((1e-4, 0.41), (3e-4, 0.42), (1e-3, 0.43), (3e-3, 0.44))]
    assert next_strength(rising, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1.0)) == 1e-2
