"""Augmentation of uint8 batches on their device, at the size they come in.

What happens to an image depends on (seed, epoch, its index in the data set) alone: not on batch size, order, device or
the step a run was resumed at. Each kind of change has its own stream of random numbers, so switching one on or off
leaves the draws of the others as they were.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from transfergrid.data.preprocess import to_device

# N images of the data set, B images of a batch, H W pixels, C channels

CPU = torch.device("cpu")
CUTOUT_FILL = 128  # mid grey: near the mean of photographs, and seen by the network as about zero


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentPlan:
    """Applied in this order; a field at False or 0 changes nothing.

    flip: left to right, every second image; with alternate_flip every image in every second epoch, half of them first
    (Jordan 2024, arXiv 2404.00498). shift_px: moved by up to so many pixels along each axis, the border filled by
    reflection. perspective: of `perspective_share` of the images each corner is drawn inwards by up to this share of
    half a side, along each axis, filled with 0. rotation_deg: about the centre by up to so many degrees either way,
    bilinear, filled with rotation_fill; with rotation_expand the image is made smaller, so that its corners stay in it.
    cutout_px: a square of this side, its centre anywhere in the image, filled with CUTOUT_FILL.
    """

    flip: bool = False
    alternate_flip: bool = False
    shift_px: int = 0
    perspective: float = 0.0
    perspective_share: float = 0.5
    rotation_deg: float = 0.0
    rotation_expand: bool = False
    rotation_fill: int = 0
    cutout_px: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentDraws:
    """The random numbers of one epoch. shift_N2: pixels (down, right); angle_N: degrees; centre_N2: in [0, 1).

    corners_N42: how far each corner (clockwise from the upper left) has moved inwards, right or left and down or up, in
    units of a side; 0 where the image keeps its perspective.
    """

    plan: AugmentPlan
    flip_N: Tensor
    shift_N2: Tensor
    corners_N42: Tensor
    angle_N: Tensor
    centre_N2: Tensor


def draw(plan: AugmentPlan, *, num_images: int, seed: int, epoch: int, device: torch.device = CPU) -> AugmentDraws:
    """Draw for every image of the data set, always on the CPU; `device` is where the numbers are kept."""
    shift_px = plan.shift_px
    # Alternating, the first draw holds for the whole run and each epoch turns it round.
    flip_N = torch.rand(num_images, generator=_stream(seed, 0 if plan.alternate_flip else epoch, "flip")) < 0.5
    if plan.alternate_flip and epoch % 2:
        flip_N = ~flip_N
    shift_N2 = torch.randint(-shift_px, shift_px + 1, (num_images, 2), generator=_stream(seed, epoch, "shift"))
    perspective = _stream(seed, epoch, "perspective")
    tilted_N = torch.rand(num_images, generator=perspective) < plan.perspective_share
    corners_N42 = torch.rand(num_images, 4, 2, generator=perspective) * (plan.perspective / 2)
    turn_N = torch.rand(num_images, generator=_stream(seed, epoch, "rotation")) * 2 - 1
    # In doubles, because a float just below 1 times a height can round up to the height.
    centre_N2 = torch.rand(num_images, 2, dtype=torch.float64, generator=_stream(seed, epoch, "cutout"))
    return AugmentDraws(
        plan=plan,
        flip_N=to_device(flip_N, device),
        shift_N2=to_device(shift_N2, device),
        corners_N42=to_device(corners_N42 * tilted_N[:, None, None], device),
        angle_N=to_device(turn_N * plan.rotation_deg, device),
        centre_N2=to_device(centre_N2, device),
    )


def apply(images_BHWC: Tensor, draws: AugmentDraws, indices_B: Tensor) -> Tensor:
    """The batch, changed as drawn for the images with these indices; images and draws lie on one device."""
    plan = draws.plan
    indices_B = to_device(indices_B, draws.flip_N.device)
    if plan.flip or plan.shift_px:
        flip_B = draws.flip_N[indices_B] if plan.flip else None
        images_BHWC = _flipped_and_shifted(images_BHWC, flip_B, draws.shift_N2[indices_B])
    if plan.perspective:
        images_BHWC = _tilted(images_BHWC, draws.corners_N42[indices_B])
    if plan.rotation_deg:
        expand, fill = plan.rotation_expand, plan.rotation_fill
        images_BHWC = _rotated(images_BHWC, draws.angle_N[indices_B], expand=expand, fill=fill)
    if plan.cutout_px:
        images_BHWC = _cut_out(images_BHWC, draws.centre_N2[indices_B], plan.cutout_px)
    return images_BHWC


def _stream(seed: int, epoch: int, kind: str) -> torch.Generator:
    content = hashlib.sha256(f"augment:{kind}:{seed}:{epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(content[:8], "big") >> 1)


def _flipped_and_shifted(images_BHWC: Tensor, flip_B: Tensor | None, shift_B2: Tensor) -> Tensor:
    num_images, height_px, width_px, _ = images_BHWC.shape
    device = images_BHWC.device
    # Where each pixel of the result comes from: a shift down by 3 reads 3 rows further up.
    if height_px == width_px:
        both_B2W = _reflected(_counted(width_px, device) - shift_B2[:, :, None], width_px)
        rows_BH, columns_BW = both_B2W.unbind(1)
    else:
        rows_BH = _reflected(_counted(height_px, device) - shift_B2[:, :1], height_px)
        columns_BW = _reflected(_counted(width_px, device) - shift_B2[:, 1:], width_px)
    if flip_B is not None:
        columns_BW = torch.where(flip_B[:, None], width_px - 1 - columns_BW, columns_BW)
    batch_B = _counted(num_images, device)
    return images_BHWC[batch_B[:, None, None], rows_BH[:, :, None], columns_BW[:, None, :]]


def _reflected(position: Tensor, size_px: int) -> Tensor:
    """Positions outside [0, size_px) mirrored at the border pixels, as often as it takes: any shift fits any image."""
    period_px = max(2 * (size_px - 1), 1)
    position = position.remainder(period_px)
    return torch.minimum(position, period_px - position) if size_px > 1 else torch.zeros_like(position)


def _tilted(images_BHWC: Tensor, corners_B42: Tensor) -> Tensor:
    """Each image as a plane seen at an angle: its corners are where corners_B42 has moved them to.

    Eight equations per image give the projection from the result back to the image (Heckbert 1989); images whose
    corners stay are copied.
    """
    num_images, height_px, width_px, _ = images_BHWC.shape
    device = images_BHWC.device
    source_42 = _corners(device)
    target_B42 = source_42 - source_42.sign() * corners_B42 * 2
    x_B4, y_B4 = target_B42.unbind(-1)
    u_B4, v_B4 = source_42.expand(num_images, 4, 2).unbind(-1)
    one_B4, zero_B4 = torch.ones_like(x_B4), torch.zeros_like(x_B4)
    rows_u = torch.stack([x_B4, y_B4, one_B4, zero_B4, zero_B4, zero_B4, -u_B4 * x_B4, -u_B4 * y_B4], -1)
    rows_v = torch.stack([zero_B4, zero_B4, zero_B4, x_B4, y_B4, one_B4, -v_B4 * x_B4, -v_B4 * y_B4], -1)
    equations_B88 = torch.cat([rows_u, rows_v], 1).double()
    # Not solve(), which has the host look whether it could: four corners of a convex plane always can.
    solved_B8 = torch.linalg.solve_ex(equations_B88, torch.cat([u_B4, v_B4], 1).double()).result.float()
    matrix_B33 = torch.cat([solved_B8, torch.ones(num_images, 1, device=device)], 1).reshape(-1, 3, 3)
    x_W = (torch.arange(width_px, device=device) + 0.5) * (2 / width_px) - 1
    y_H = (torch.arange(height_px, device=device) + 0.5) * (2 / height_px) - 1
    points_HW3 = torch.stack(
        [*torch.meshgrid(x_W, y_H, indexing="xy"), torch.ones(height_px, width_px, device=device)], -1
    )
    moved_BHW3 = torch.einsum("bij,hwj->bhwi", matrix_B33, points_HW3)
    tilted_BHWC = _sampled(images_BHWC, moved_BHW3[..., :2] / moved_BHW3[..., 2:], fill=0)
    moves_B = (corners_B42 != 0).flatten(1).any(1)
    return torch.where(moves_B[:, None, None, None], tilted_BHWC, images_BHWC)


@lru_cache(maxsize=8)
def _corners(device: torch.device) -> Tensor:
    """Clockwise from the upper left. Coordinates as grid_sample's: -1 and 1 are the outer edges, a side is 2 long."""
    return to_device(torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]), device)


def _rotated(images_BHWC: Tensor, angle_B: Tensor, *, expand: bool, fill: int) -> Tensor:
    """Counter-clockwise for positive degrees."""
    num_images, height_px, width_px, num_channels = images_BHWC.shape
    radians_B = angle_B * (math.pi / 180)
    cos_B, sin_B, zero_B = radians_B.cos(), radians_B.sin(), torch.zeros_like(radians_B)
    # Grid coordinates run from -1 to 1 along either axis, whatever its length in pixels.
    aspect = height_px / width_px
    if expand:  # the canvas that holds the turned image is this much larger, and is brought back to the image's size
        grown_B = cos_B.abs() + sin_B.abs()
        cos_B, sin_B = cos_B * grown_B, sin_B * grown_B
    theta_B23 = torch.stack(
        [torch.stack([cos_B, -sin_B * aspect, zero_B], 1), torch.stack([sin_B / aspect, cos_B, zero_B], 1)], 1
    )
    grid_BHW2 = functional.affine_grid(theta_B23, [num_images, num_channels, height_px, width_px], align_corners=False)
    return _sampled(images_BHWC, grid_BHW2, fill=fill)


def _sampled(images_BHWC: Tensor, grid_BHW2: Tensor, *, fill: int) -> Tensor:
    """Read bilinearly at these points (x, y), in [-1, 1] from edge to edge; `fill` is what lies outside."""
    images_BCHW = images_BHWC.permute(0, 3, 1, 2).float() - fill
    read_BCHW = functional.grid_sample(images_BCHW, grid_BHW2, mode="bilinear", align_corners=False) + fill
    return read_BCHW.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _cut_out(images_BHWC: Tensor, centre_B2: Tensor, cutout_px: int) -> Tensor:
    height_px, width_px = images_BHWC.shape[1:3]
    device = images_BHWC.device
    if height_px == width_px:
        inside_BH, inside_BW = _within(centre_B2[:, :, None], width_px, cutout_px, device).unbind(1)
    else:
        inside_BH = _within(centre_B2[:, :1], height_px, cutout_px, device)
        inside_BW = _within(centre_B2[:, 1:], width_px, cutout_px, device)
    return images_BHWC.masked_fill((inside_BH[:, :, None] & inside_BW[:, None, :])[..., None], CUTOUT_FILL)


def _within(centre: Tensor, size_px: int, cutout_px: int, device: torch.device) -> Tensor:
    """Whether each pixel of a side, as the last axis, is one of the cutout_px around a centre in [0, 1)."""
    pixels = _counted(size_px, device)
    first = (centre * size_px).long() - cutout_px // 2
    return (pixels >= first) & (pixels < first + cutout_px)


@lru_cache(maxsize=64)
def _counted(count: int, device: torch.device) -> Tensor:
    """0, 1, 2, ...; a GPU would count anew in every step."""
    with torch.inference_mode(False):
        return torch.arange(count, device=device)
