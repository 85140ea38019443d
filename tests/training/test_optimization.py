"""Schedules as numbers, who is decayed, and what the averaged weights are."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import assert_same_result, carry_out, final_run, paths_of, record_of, request, stop_after
from torch import Tensor, nn

from transfergrid.planning import job
from transfergrid.specs import ScratchSettings
from transfergrid.store.metrics_log import read_metrics
from transfergrid.training.optimization import (
    ParameterGroup,
    averaged_weights,
    learning_rates,
    lookahead_weights,
    lr_factor,
    make_ema,
    make_optimizer,
    set_learning_rates,
    split_decay,
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ScratchSettings:
    """Without warm-up, EMA and Lookahead; ten epochs."""
    found = final_run(request(tmp_path_factory.mktemp("spec"), "model=tinynet", "phase=scratch")).settings
    assert isinstance(found, ScratchSettings)
    return replace(found, epochs=10, warmup_fraction=0.0, schedule="constant")


def factors(settings: ScratchSettings, **changes: Any) -> list[float]:
    """Of every step, with ten steps in each of ten epochs."""
    changed = replace(settings, **changes)
    return [lr_factor(changed, step=step, steps_per_epoch=10) for step in range(100)]


# ---------------------------------------------------------------------------------------------------------- schedules
def test_constant_stays_and_its_warm_up_is_linear_from_zero(settings: ScratchSettings) -> None:
    assert factors(settings) == [1.0] * 100
    warmed = factors(settings, warmup_fraction=0.04)
    assert warmed[:5] == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5, 1.0]) and warmed[5:] == [1.0] * 95


def test_step_multiplies_at_the_end_of_the_named_epochs(settings: ScratchSettings) -> None:
    found = factors(settings, schedule="step", step_epochs=(3, 7), step_gamma=0.1)
    assert found[:30] == [1.0] * 30
    assert found[30:70] == pytest.approx([0.1] * 40) and found[70:] == pytest.approx([0.01] * 30)


def test_linear_falls_straight_to_the_final_share(settings: ScratchSettings) -> None:
    found = factors(settings, schedule="linear", final_lr_fraction=0.1)
    assert found[:3] == pytest.approx([1.0, 0.991, 0.982]) and found[50] == pytest.approx(0.55)


def test_a_cosine_longer_than_the_run_moved_once_per_epoch_is_that_of_small_resnet18(settings: ScratchSettings) -> None:
    for t_max, end in ((390, 0.96), (195, 0.85), (97, 0.48)):
        study = replace(settings, epochs=51, schedule="cosine", lr_update="epoch", cosine_epochs=t_max)
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.Adam([parameter], lr=1.0)
        theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=t_max)
        for epoch in range(51):
            ours = [lr_factor(study, step=epoch * 10 + step, steps_per_epoch=10) for step in range(10)]
            assert ours == pytest.approx([optimizer.param_groups[0]["lr"]] * 10)
            optimizer.step()
            theirs.step()
        assert ours[-1] == pytest.approx(end, abs=0.005)


def test_cosine_falls_from_one_to_the_final_share(settings: ScratchSettings) -> None:
    found = factors(settings, schedule="cosine", final_lr_fraction=0.1)
    assert found[0] == 1.0 and found[50] == pytest.approx(0.55)
    assert found[25] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.sqrt(0.5)))
    assert found[99] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(0.99 * math.pi)))
    assert all(later < earlier for earlier, later in zip(found, found[1:], strict=False))
    assert factors(settings, schedule="cosine")[99] == pytest.approx(2.467e-4, rel=1e-3)


def test_onecycle_climbs_from_a_25th_to_the_peak_and_comes_down(settings: ScratchSettings) -> None:
    found = factors(settings, schedule="onecycle", warmup_fraction=0.2)
    assert found[0] == pytest.approx(1 / 25 + 24 / 25 / 21) and found[19] == pytest.approx(1 / 25 + 24 / 25 * 20 / 21)
    assert found[20] == 1.0 and found.index(max(found)) == 20
    assert found[60] == pytest.approx(0.5) and found[99] == pytest.approx(3.855e-4, rel=1e-3)


def test_every_group_has_its_own_peak_and_its_name_in_the_metrics(settings: ScratchSettings) -> None:
    groups = [ParameterGroup(n, lr, 0.0, [nn.Parameter(torch.ones(2))]) for n, lr in (("stem", 1e-3), ("head", 2e-2))]
    optimizer = make_optimizer(settings, groups)
    set_learning_rates(optimizer, 0.5)
    set_learning_rates(optimizer, 0.25)
    assert learning_rates(optimizer) == pytest.approx({"lr/stem": 2.5e-4, "lr/head": 5e-3})


# -------------------------------------------------------------------------------------------------------- weight decay
def test_weight_decay_spares_batchnorm_and_biases_unless_asked_not_to() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    network[0].weight.requires_grad_(False)
    decayed, spared = split_decay("n", network.parameters(), lr=0.1, weight_decay=0.5, decay_norm_and_bias=False)
    assert (decayed.weight_decay, spared.weight_decay) == (0.5, 0.0)
    assert [tuple(p.shape) for p in decayed.parameters] == [(2, 4)]
    assert [tuple(p.shape) for p in spared.parameters] == [(4,), (4,), (4,), (2,)]
    (everything,) = split_decay("n", network.parameters(), lr=0.1, weight_decay=0.5, decay_norm_and_bias=True)
    assert everything.weight_decay == 0.5 and len(everything.parameters) == 5


def test_decayed_weights_shrink_and_spared_ones_stay_where_there_is_no_gradient(settings: ScratchSettings) -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    groups = split_decay("n", network.parameters(), lr=0.1, weight_decay=0.5, decay_norm_and_bias=False)
    optimizer = make_optimizer(replace(settings, momentum=0.0), groups)
    for p in network.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    after = dict(network.named_parameters())
    torch.testing.assert_close(after["0.weight"], before["0.weight"] * (1 - 0.1 * 0.5))
    assert all(torch.equal(after[name], before[name]) for name in ("0.bias", "1.weight", "1.bias"))


# -------------------------------------------------------------------------------------------------------------- steps
def quadratic(optimizer: Any, settings: ScratchSettings, *, steps: int, **changes: Any) -> list[Tensor]:
    """The weights after each step down (w - 3)^2 / 2 from 0."""
    weight = nn.Parameter(torch.zeros(4))
    made = make_optimizer(
        replace(settings, optimizer=optimizer, **changes), [ParameterGroup("all", 0.05, 0.0, [weight])]
    )
    path = []
    for _ in range(steps):
        made.zero_grad()
        ((weight - 3).square() / 2).sum().backward()  # type: ignore[no-untyped-call]
        made.step()
        path.append(weight.detach().clone())
    return path


@pytest.mark.parametrize(
    ("optimizer", "changes", "first"),
    [
        ("sgd", {"momentum": 0.0}, 0.15),
        ("sgd", {"momentum": 0.9, "nesterov": False}, 0.15),
        ("sgd", {"momentum": 0.9, "nesterov": True}, 0.15 * 1.9),
        ("adam", {}, 0.05),
        ("adamw", {}, 0.05),
    ],
)
@pytest.mark.parametrize("lookahead", [False, True])
def test_optimizers_take_their_first_step_and_arrive(
    settings: ScratchSettings, optimizer: str, changes: dict[str, Any], first: float, lookahead: bool
) -> None:
    path = quadratic(optimizer, settings, steps=400, lookahead=lookahead, **changes)
    torch.testing.assert_close(path[0], torch.full((4,), first), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(path[-1], torch.full((4,), 3.0), rtol=0, atol=0.05)


def test_adam_decays_by_its_gradient_and_adamw_apart_from_it(settings: ScratchSettings) -> None:
    after = {}
    for name in ("adam", "adamw"):
        weight = nn.Parameter(torch.full((2,), 2.0))
        optimizer = make_optimizer(replace(settings, optimizer=name), [ParameterGroup("all", 0.1, 0.5, [weight])])
        weight.grad = torch.full((2,), 1e-3)
        optimizer.step()
        after[name] = float(weight.detach()[0])
    assert after == pytest.approx({"adam": 2 - 0.1, "adamw": 2 * (1 - 0.1 * 0.5) - 0.1})


def test_lookahead_pulls_the_fast_weights_half_way_back_every_kth_step(settings: ScratchSettings) -> None:
    plain = quadratic("sgd", settings, steps=10, momentum=0.0)
    ahead = quadratic("sgd", settings, steps=10, momentum=0.0, lookahead=True, lookahead_k=5, lookahead_alpha=0.5)
    for step in range(9):
        torch.testing.assert_close(ahead[step], plain[step])
    torch.testing.assert_close(ahead[9], (plain[4] + plain[9]) / 2)


# ----------------------------------------------------------------------------------------------------------- averages
def test_lookaheads_slow_weights_are_evaluated_and_training_goes_on_from_the_fast_ones(
    settings: ScratchSettings,
) -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    groups = [ParameterGroup("all", 0.1, 0.0, list(network.parameters()))]
    optimizer = make_optimizer(replace(settings, lookahead=True, lookahead_k=5), groups)
    at_sync: dict[str, Tensor] = {}
    for step in range(1, 8):
        network(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 5:
            at_sync = {name: p.detach().clone() for name, p in network.named_parameters()}
    fast = {name: p.detach().clone() for name, p in network.named_parameters()}
    with averaged_weights(network, None, optimizer) as averaged:
        assert averaged is network
        assert all(torch.equal(p, at_sync[name]) for name, p in network.named_parameters())
        assert not any(torch.equal(p, fast[name]) for name, p in network.named_parameters())
    assert all(torch.equal(p, fast[name]) for name, p in network.named_parameters())
    with pytest.raises(RuntimeError), lookahead_weights(optimizer):
        raise RuntimeError("evaluation failed")
    assert all(torch.equal(p, fast[name]) for name, p in network.named_parameters())


def test_an_ema_is_the_decayed_mean_of_weights_and_buffers_and_leaves_the_trained_ones_alone() -> None:
    linear, norm = nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1)
    network = nn.Sequential(linear, norm)
    assert norm.running_mean is not None
    ema = make_ema(network, 0.9)
    values = [1.0, 2.0, 4.0]
    for value in values:
        with torch.no_grad():
            linear.weight.fill_(value)
            norm.running_mean.fill_(10 * value)
        ema.update_parameters(network)
    expected = (1.0 * 0.9 + 2.0 * 0.1) * 0.9 + 4.0 * 0.1
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with averaged_weights(network, ema, optimizer) as averaged:
        state = averaged.state_dict()
        assert float(state["0.weight"]) == pytest.approx(expected)
        assert float(state["1.running_mean"]) == pytest.approx(10 * expected)
    assert float(linear.weight.detach()) == 4.0


def test_a_run_with_lookahead_publishes_the_slow_weights_and_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["model=tinynet", "phase=scratch", "phase.scratch.lookahead=true", "phase.scratch.lookahead_k=3"]
    whole = request(tmp_path / "whole", *arguments, "phase.scratch.epochs=3")
    assert carry_out(whole) == "completed"
    run = final_run(whole)
    for step in (2, 4, 6):  # before the first slow weights, between two, after the last
        asked = request(tmp_path / f"step_{step}", *arguments, "phase.scratch.epochs=3")
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            assert job.carry_out(run, asked.runtime) == "interrupted"
        assert job.carry_out(run, asked.runtime) == "completed"
        assert record_of(run, asked.runtime).details["first_step"] == step + 1
        assert_same_result(run, whole.runtime, asked.runtime)


def test_what_is_evaluated_is_what_is_published_with_averaged_weights(tmp_path: Path) -> None:
    for name, extra in (("ema", "ema_decay=0.5"), ("lookahead", "lookahead=true")):
        asked = request(tmp_path / name, "model=tinynet", "phase=scratch", f"phase.scratch.{extra}")
        assert carry_out(asked) == "completed"
        last = read_metrics(paths_of(final_run(asked), asked.runtime).metrics)[-1]
        record = record_of(final_run(asked), asked.runtime)
        assert record.metrics["val_loss"] == pytest.approx(last["val/loss"], rel=1e-6)


def test_label_smoothing_moves_a_tenth_of_the_target_to_all_classes(tmp_path: Path) -> None:
    from transfergrid.networks.heads import losses_and_correct

    logits_1BC = torch.tensor([[[2.0, 0.0, -1.0, 0.5]]])
    labels_B = torch.tensor([0])
    log_p_C = torch.log_softmax(logits_1BC[0, 0], 0)
    for smoothing in (0.0, 0.1):
        loss_H, correct_H = losses_and_correct(logits_1BC, labels_B, label_smoothing=smoothing)
        expected = -(1 - smoothing) * float(log_p_C[0]) - smoothing * float(log_p_C.mean())
        assert float(loss_H) == pytest.approx(expected) and int(correct_H) == 1
