from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from transfergrid.data.augment import CUTOUT_FILL, AugmentDraws, AugmentPlan, apply, draw

EVERYTHING = AugmentPlan(flip=True, shift_px=4, perspective=0.3, rotation_deg=15.0, cutout_px=8)
FIRST = torch.tensor([0])


def images(num_images: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_images, *shape), dtype=torch.uint8, generator=generator)


def drawn(plan: AugmentPlan, **values: object) -> AugmentDraws:
    """The draws of one image, some of them by hand."""
    tensors: dict[str, Any] = {name: torch.tensor([value]) for name, value in values.items()}
    return replace(draw(plan, num_images=1, seed=0, epoch=0), **tensors)


# ---------------------------------------------------------------------------------------------------- reproducibility
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_an_image_is_changed_alike_whatever_the_batch_and_the_order(batch_size: int) -> None:
    images_NHWC = images(64, 16, 16, 3)
    draws = draw(EVERYTHING, num_images=64, seed=3, epoch=2)
    at_once = apply(images_NHWC, draws, torch.arange(64))
    order = torch.from_numpy(np.random.default_rng(0).permutation(64))
    in_parts = torch.empty_like(images_NHWC)
    for start in range(0, 64, batch_size):
        indices = order[start : start + batch_size]
        in_parts[indices] = apply(images_NHWC[indices], draw(EVERYTHING, num_images=64, seed=3, epoch=2), indices)
    assert torch.equal(in_parts, at_once)


def test_another_epoch_and_another_seed_change_nearly_every_image() -> None:
    images_NHWC = images(64, 16, 16, 3)
    by_key = {
        (seed, epoch): apply(images_NHWC, draw(EVERYTHING, num_images=64, seed=seed, epoch=epoch), torch.arange(64))
        for seed, epoch in ((0, 1), (0, 2), (1, 1))
    }
    for other in ((0, 2), (1, 1)):
        differs = (by_key[0, 1] != by_key[other]).flatten(1).any(1)
        assert int(differs.sum()) >= 63


def test_switching_one_change_on_leaves_the_draws_of_the_others_as_they_were() -> None:
    alone = draw(AugmentPlan(shift_px=4), num_images=100, seed=0, epoch=0)
    beside = draw(EVERYTHING, num_images=100, seed=0, epoch=0)
    assert torch.equal(alone.shift_N2, beside.shift_N2)


def test_the_draws_are_these_because_resumed_runs_rest_on_them() -> None:
    draws = draw(EVERYTHING, num_images=6, seed=0, epoch=0)
    assert draws.flip_N.tolist() == GOLDEN_FLIPS
    assert draws.shift_N2.tolist() == GOLDEN_SHIFTS


def test_a_plan_with_nothing_in_it_is_the_identity_and_inputs_are_never_written_to() -> None:
    images_NHWC = images(8, 9, 9, 1)
    before = images_NHWC.clone()
    assert torch.equal(apply(images_NHWC, draw(AugmentPlan(), num_images=8, seed=0, epoch=0), torch.arange(8)), before)
    changed = apply(images_NHWC, draw(EVERYTHING, num_images=8, seed=0, epoch=0), torch.arange(8))
    assert torch.equal(images_NHWC, before)
    assert (changed.shape, changed.dtype) == (before.shape, torch.uint8)


# -------------------------------------------------------------------------------------------------------- each change
def test_a_flip_reverses_columns_of_about_half_the_images() -> None:
    image = torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3, 1)
    assert apply(image, drawn(AugmentPlan(flip=True), flip_N=True), FIRST)[0, :, :, 0].tolist() == [
        [2, 1, 0],
        [5, 4, 3],
    ]
    assert torch.equal(apply(image, drawn(AugmentPlan(flip=True), flip_N=False), FIRST), image)
    share = draw(AugmentPlan(flip=True), num_images=10_000, seed=0, epoch=0).flip_N.float().mean()
    assert 0.48 < share < 0.52


def test_a_shift_moves_down_and_right_and_mirrors_the_border() -> None:
    image = torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4, 1)
    plan = AugmentPlan(shift_px=2)
    assert apply(image, drawn(plan, shift_N2=[1, 0]), FIRST)[0, :, 0, 0].tolist() == [4, 0, 4, 8]
    assert apply(image, drawn(plan, shift_N2=[0, -2]), FIRST)[0, 0, :, 0].tolist() == [2, 3, 2, 1]
    assert torch.equal(apply(image, drawn(plan, shift_N2=[0, 0]), FIRST), image)


def test_shifts_are_uniform_over_every_offset_within_the_limit() -> None:
    shift_N2 = draw(AugmentPlan(shift_px=2), num_images=25_000, seed=0, epoch=0).shift_N2
    counts = torch.bincount(((shift_N2[:, 0] + 2) * 5 + shift_N2[:, 1] + 2), minlength=25)
    assert len(counts) == 25
    assert 850 < counts.min() <= counts.max() < 1150


def test_a_flip_comes_before_a_shift() -> None:
    image = torch.arange(5, dtype=torch.uint8).reshape(1, 1, 5, 1)
    draws = drawn(AugmentPlan(flip=True, shift_px=1), flip_N=True, shift_N2=[0, 1])
    assert apply(image, draws, FIRST)[0, 0, :, 0].tolist() == [3, 4, 3, 2, 1]


def test_a_shift_wider_than_the_image_still_finds_pixels() -> None:
    image = torch.tensor([7, 9], dtype=torch.uint8).reshape(1, 1, 2, 1)
    assert apply(image, drawn(AugmentPlan(shift_px=5), shift_N2=[5, 5]), FIRST)[0, 0, :, 0].tolist() == [9, 7]


def test_a_quarter_turn_is_counter_clockwise_about_the_centre() -> None:
    image = images(1, 5, 5, 3)
    turned = apply(image, drawn(AugmentPlan(rotation_deg=90.0), angle_N=90.0), FIRST)
    assert torch.equal(turned, torch.rot90(image, 1, (1, 2)))


def test_an_eighth_turn_fills_the_corners_with_zero_and_keeps_the_centre() -> None:
    image = torch.full((1, 9, 9, 1), 200, dtype=torch.uint8)
    turned = apply(image, drawn(AugmentPlan(rotation_deg=45.0), angle_N=45.0), FIRST)[0, :, :, 0]
    assert [int(turned[y, x]) for y, x in ((0, 0), (0, 8), (8, 0), (8, 8))] == [0, 0, 0, 0]
    assert torch.equal(turned[2:7, 2:7], image[0, 2:7, 2:7, 0])


def test_an_expanded_turn_keeps_the_whole_image_and_fills_the_rest_with_the_grey_asked_for() -> None:
    image = torch.full((1, 32, 32, 3), 100, dtype=torch.uint8)
    plan = AugmentPlan(rotation_deg=45.0, rotation_expand=True, rotation_fill=255)
    turned = apply(image, drawn(plan, angle_N=45.0), FIRST)[0, :, :, 0].int()
    assert [int(turned[y, x]) for y, x in ((0, 0), (0, 31), (31, 0), (31, 31), (16, 16))] == [255] * 4 + [100]
    # The square now stands on its corner, its diagonal as long as the side: half of the area.
    assert int((turned == 100).sum()) == pytest.approx(512, abs=40)


def test_perspective_is_torchvisions_of_the_same_corners() -> None:
    from torchvision.transforms.functional import perspective

    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    image = torch.stack([rows * 6 + 30, columns * 6 + 30, rows + columns + 100], -1)[None].to(torch.uint8)
    inwards_42 = torch.tensor([[0.06, 0.03], [0.1, 0.12], [0.02, 0.09], [0.13, 0.05]])
    moved = apply(image, drawn(AugmentPlan(perspective=0.3), corners_N42=inwards_42.tolist()), FIRST)
    start = [[0, 0], [32, 0], [32, 32], [0, 32]]  # in pixels, from edge to edge
    signs = [(1, 1), (-1, 1), (-1, -1), (1, -1)]
    end = [
        [x + 32 * sx * float(dx), y + 32 * sy * float(dy)]
        for (x, y), (sx, sy), (dx, dy) in zip(start, signs, inwards_42, strict=True)
    ]
    theirs = perspective(image.permute(0, 3, 1, 2), start, end, fill=[0]).permute(0, 2, 3, 1)
    # The two blend with the fill in other ways at the border; away from it they agree.
    white = torch.full((1, 1, 32, 32), 255, dtype=torch.uint8)
    inside = perspective(white, start, end, fill=[0])[0, 0] == 255
    assert int((moved.int() - theirs.int()).abs()[0][inside].max()) <= 1
    assert 0.6 < float(inside.float().mean()) < 0.9 and int(moved[0, 0, 0].sum()) == 0


def test_the_share_of_tilted_images_and_how_far_their_corners_move() -> None:
    plan = AugmentPlan(perspective=0.3, perspective_share=0.2)
    corners_N42 = draw(plan, num_images=10_000, seed=0, epoch=0).corners_N42
    tilted_N = (corners_N42 != 0).flatten(1).any(1)
    assert 0.19 < float(tilted_N.float().mean()) < 0.21
    assert 0.149 < float(corners_N42.max()) <= 0.15
    image = images(1, 16, 16, 3)
    assert torch.equal(apply(image, drawn(plan, corners_N42=torch.zeros(4, 2).tolist()), FIRST), image)


def test_an_alternating_flip_turns_every_image_round_in_every_second_epoch() -> None:
    plan = AugmentPlan(flip=True, alternate_flip=True)
    flips = [draw(plan, num_images=1000, seed=0, epoch=epoch).flip_N for epoch in (1, 2, 3)]
    assert torch.equal(flips[0], ~flips[1]) and torch.equal(flips[0], flips[2])
    assert 0.45 < float(flips[0].float().mean()) < 0.55


def test_angles_are_uniform_within_the_limit() -> None:
    angle_N = draw(AugmentPlan(rotation_deg=10.0), num_images=10_000, seed=0, epoch=0).angle_N
    assert -10 <= angle_N.min() < -9.9
    assert 9.9 < angle_N.max() <= 10
    assert abs(float(angle_N.mean())) < 0.2


@pytest.mark.parametrize(
    ("centre", "rows", "columns"),
    [((0.5, 0.5), (2, 6), (2, 6)), ((0.0, 0.0), (0, 2), (0, 2)), ((0.999, 0.25), (5, 8), (0, 4))],
)
def test_cutout_fills_a_square_about_its_centre_clipped_at_the_border(
    centre: tuple[float, float], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    image = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    cut = apply(image, drawn(AugmentPlan(cutout_px=4), centre_N2=centre), FIRST)
    expected = image.clone()
    expected[0, rows[0] : rows[1], columns[0] : columns[1]] = CUTOUT_FILL
    assert torch.equal(cut, expected)


GOLDEN_FLIPS = [True, False, True, False, True, True]
GOLDEN_SHIFTS = [[-2, 0], [0, -2], [0, -2], [-1, -4], [2, 4], [0, -1]]
