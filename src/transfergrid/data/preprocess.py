"""uint8 images of any size -> network input, in two stages.

Host: images of mixed sizes, and large ones, are brought to one size by Pillow. Device: images of one size are resized,
cropped and normalised; by Pillow where the device is the CPU, in Pillow's own fixed-point arithmetic on a GPU, so the
pixels are the same to the last bit. (torchvision's kernel for uint8 tensors is off by one level bilinear and two
bicubic on a CPU, and takes another way, through floats, on a GPU.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transfergrid.data import LabeledImages
from transfergrid.data._threads import in_threads
from transfergrid.errors import ConfigError
from transfergrid.specs import PreprocessSpec

# N images, H W pixels, C channels (1 grey, 3 RGB)

_WEIGHT_BITS = 22  # of Pillow's fixed-point weights for 8-bit channels
_READ_AHEAD = 2
_HOST_CHUNK = 512
_CHUNK_BYTES = 2**28
_GIANT_PX = 2**24  # of a resized picture: 67 MB in Pillow, which keeps four bytes a pixel
# Added to a picture's standard deviation, in levels of 0..255: no division by zero where it has one colour.
FLAT_LEVELS = 255 * 1e-4


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """There. From pinned memory, so that the host does not wait until a GPU has done what it was told before."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def normalise(images_NHWC: Tensor, spec: PreprocessSpec, *, prepared: bool = False) -> Tensor:
    """uint8 (N, H, W, 1 or 3) -> float32 (N, 3, crop_px, crop_px) channels_last, on the images' device.

    prepared: the images already are what resize() or prepare_images() made of them, and are not resized again.
    """
    if not prepared:
        images_NHWC = resize(images_NHWC, spec)
    assert images_NHWC.shape[1:3] == (spec.crop_px, spec.crop_px), (tuple(images_NHWC.shape), spec.crop_px)
    if spec.normalise == "image":
        # Grey is repeated to three channels. Of whole levels, in float64: the same figures on every device, in every
        # layout, and in an export.
        images_N3HW = images_NHWC.permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
        inputs_N3HW = images_N3HW.to(torch.float32, memory_format=torch.channels_last)
        std_N311, mean_N311 = torch.std_mean(inputs_N3HW.double(), dim=(2, 3), keepdim=True, correction=0)
        return inputs_N3HW.sub_(mean_N311.float()).div_((std_N311 + FLAT_LEVELS).float())
    mean_3, std_3 = (_per_channel(values, images_NHWC.device) for values in (spec.mean, spec.std))
    inputs_NHW3 = (images_NHWC / 255).sub(mean_3).div_(std_3)  # grey becomes three channels
    return inputs_NHW3.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def resize(images_NHWC: Tensor, spec: PreprocessSpec) -> Tensor:
    """uint8 images of one size -> uint8 (N, crop_px, crop_px, C), Pillow's pixels to the last bit."""
    assert images_NHWC.dtype == torch.uint8 and spec.antialias, (images_NHWC.dtype, spec.antialias)
    num_images, height_px, width_px, num_channels = images_NHWC.shape
    full_HW = _full_px(height_px, width_px, spec)
    if full_HW == (height_px, width_px):
        top_px, left_px = (_crop_start_px(full_px, spec.crop_px) for full_px in full_HW)
        return images_NHWC[:, top_px : top_px + spec.crop_px, left_px : left_px + spec.crop_px]
    if images_NHWC.is_cuda:
        return resize_by_taps(images_NHWC, spec)
    resized_NHWC = np.empty((num_images, spec.crop_px, spec.crop_px, num_channels), dtype=np.uint8)
    pillow_input_NHWC = images_NHWC.numpy()

    def fill(row: int) -> None:
        resized_NHWC[row] = prepare_one(pillow_input_NHWC[row], spec)

    in_threads(fill, range(num_images))
    return torch.from_numpy(resized_NHWC)


def resize_by_taps(images_NHWC: Tensor, spec: PreprocessSpec) -> Tensor:
    """resize() in Pillow's fixed-point arithmetic, for a GPU; on a CPU it gives the same, slower than Pillow.

    Only what the crop shows is read and computed, so it also serves pictures that would be giants once resized.
    """
    height_px, width_px = images_NHWC.shape[1:3]
    down, across = (
        _taps(side_px, full_px, spec.crop_px, spec.interpolation, images_NHWC.device)
        for side_px, full_px in zip((height_px, width_px), _full_px(height_px, width_px, spec), strict=True)
    )
    seen_NCHW = images_NHWC[:, down.seen, across.seen].permute(0, 3, 1, 2)
    # Two sums in int32 and every tap's pixel, at the height that is read and the width of the crop.
    bytes_per_pixel = 8 + max(len(down.places_ko), len(across.places_ko))
    pixels = seen_NCHW.shape[1] * max(seen_NCHW.shape[2], spec.crop_px) * spec.crop_px
    chunks = torch.split(seen_NCHW, max(1, _CHUNK_BYTES // (pixels * bytes_per_pixel)))
    overshoots = spec.interpolation == "bicubic"
    resized = [
        _weighted(_weighted(chunk_NCHW, across, axis=3, overshoots=overshoots), down, axis=2, overshoots=overshoots)
        for chunk_NCHW in chunks
    ]
    return (resized[0] if len(resized) == 1 else torch.cat(resized)).permute(0, 2, 3, 1)


def prepare_images(
    images: LabeledImages, indices: Sequence[int] | NDArray[np.integer], spec: PreprocessSpec | None
) -> Tensor:
    """uint8 (N, H, W, C) on the host: brought to crop_px by Pillow, or of native size where spec is None.

    Raises ConfigError where sizes are mixed and spec is None.
    """
    if spec is None:
        if images.image_size_px is None:
            raise ConfigError("the images have mixed sizes; give dataset.image_size_px=N to bring them to N x N")
        return torch.from_numpy(np.ascontiguousarray(images.read(indices)))
    prepared_NHWC = np.empty((len(indices), spec.crop_px, spec.crop_px, 3), dtype=np.uint8)
    for row, prepared_HWC in enumerate(images.each(indices, lambda image_HWC: prepare_one(image_HWC, spec))):
        prepared_NHWC[row] = prepared_HWC  # grey is repeated to three channels
    return torch.from_numpy(prepared_NHWC)


def prepare_one(image_HWC: NDArray[np.uint8], spec: PreprocessSpec) -> NDArray[np.uint8]:
    """One image of any size, by Pillow: resized as _full_px says, then the centre of crop_px x crop_px."""
    from PIL import Image

    full_height_px, full_width_px = _full_px(image_HWC.shape[0], image_HWC.shape[1], spec)
    # A line of a picture: 65,000 x 1 px would take 12.8 GB.
    if full_height_px * full_width_px > max(_GIANT_PX, 4 * spec.crop_px**2):
        return resize_by_taps(torch.from_numpy(image_HWC)[None], spec)[0].numpy()
    image = Image.fromarray(image_HWC[..., 0] if image_HWC.shape[2] == 1 else image_HWC)
    resample = Image.Resampling.BILINEAR if spec.interpolation == "bilinear" else Image.Resampling.BICUBIC
    resized = image.resize((full_width_px, full_height_px), resample)
    left_px, top_px = _crop_start_px(full_width_px, spec.crop_px), _crop_start_px(full_height_px, spec.crop_px)
    cropped = resized.crop((left_px, top_px, left_px + spec.crop_px, top_px + spec.crop_px))
    return np.array(cropped).reshape(spec.crop_px, spec.crop_px, -1)


def _full_px(height_px: int, width_px: int, spec: PreprocessSpec) -> tuple[int, int]:
    """Height and width that an image is resized to before the centre is cut out of it.

    Straight to the crop size; or the shorter edge to resize_px, with small=whole an edge below crop_px to that. The
    longer edge is rounded down, and the crop's corner to even, as torchvision does.
    """
    if spec.mode == "direct":
        return spec.crop_px, spec.crop_px
    shorter_px = min(height_px, width_px)
    edge_px = spec.crop_px if spec.small == "whole" and shorter_px < spec.crop_px else spec.resize_px
    return edge_px * height_px // shorter_px, edge_px * width_px // shorter_px


class ImageSource:
    """Images of one split for one preprocessing: resident on the device where they fit, else read when asked for.

    spec: images are brought to its crop_px as they are read; None = kept at the one size that they all have.
    budget_bytes: how much the resident copy may take. rows: the only indices that will be asked for (None: all).
    Indices are always the data set's own. `prepared` goes to normalise(): the images are of their final size already.
    """

    def __init__(
        self,
        images: LabeledImages,
        spec: PreprocessSpec | None,
        *,
        device: torch.device,
        budget_bytes: int,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        self._images = images
        self._spec = spec
        self._device = device
        self.prepared = spec is not None
        rows = np.arange(len(images)) if rows is None else rows
        self._resident_NHWC: Tensor | None = None
        first_NHWC = self._host(rows[:1])
        if len(rows) * first_NHWC.nbytes <= budget_bytes:
            resident_NHWC = torch.empty((len(rows), *first_NHWC.shape[1:]), dtype=torch.uint8, device=device)
            for start in range(0, len(rows), _HOST_CHUNK):
                resident_NHWC[start : start + _HOST_CHUNK] = self._host(rows[start : start + _HOST_CHUNK]).to(device)
            self._resident_NHWC = resident_NHWC
            position_N = np.full(len(images), -1, dtype=np.int64)
            position_N[rows] = np.arange(len(rows))
            self._position_N = torch.from_numpy(position_N).to(device)

    @property
    def resident(self) -> bool:
        return self._resident_NHWC is not None

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, indices: Tensor) -> Tensor:
        """uint8 (N, H, W, C) on the device, in the order of `indices` (on any device)."""
        if self._resident_NHWC is not None:
            return self._resident_NHWC[self._position_N[to_device(indices, self._device)]]
        return to_device(self._host(indices.cpu().numpy()), self._device)

    def batches(self, index_batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """batch() of each, in order; what is not resident is read two batches ahead of its use."""
        if self.resident:
            yield from map(self.batch, index_batches)
            return
        with ThreadPoolExecutor(1) as reader:
            ahead: list[Future[Tensor]] = []
            for indices in index_batches:
                ahead.append(reader.submit(self.batch, indices))
                if len(ahead) > _READ_AHEAD:
                    yield ahead.pop(0).result()
            for future in ahead:
                yield future.result()

    def _host(self, indices: NDArray[np.int64]) -> Tensor:
        return prepare_images(self._images, indices, self._spec)


def _crop_start_px(full_px: int, crop_px: int) -> int:
    assert crop_px <= full_px, f"a crop of {crop_px} pixels does not fit into {full_px}"
    return round((full_px - crop_px) / 2)


@dataclass(frozen=True, slots=True, eq=False)
class _Taps:
    """What the o pixels of a resized and cropped axis are made of. seen: the pixels that any of them is made of.
    places_ko: int64, k pixels of each, counted in `seen`. weights_ko: int32, Pillow's weight of each, in units of
    2**-22; 0 where a pixel is made of fewer. half: int32, of such a unit's whole."""

    seen: slice
    places_ko: Tensor
    weights_ko: Tensor
    half: Tensor


def _weighted(images_NCHW: Tensor, taps: _Taps, *, axis: int, overshoots: bool) -> Tensor:
    """uint8 images, one axis resized and rounded to whole levels: Pillow's sums of integers.

    Exact in int32: weights of both signs add up to less than 2**23, so no sum reaches 255 * 2**23 < 2**31.
    overshoots: whether weights are negative, so that levels outside 0..255 come out.
    """
    shape = [1, 1, 1, 1]
    shape[axis] = -1
    pixels = images_NCHW.index_select(axis, taps.places_ko.flatten())
    sums = taps.half
    for pixels_NCHo, weights_o in zip(pixels.chunk(len(taps.weights_ko), axis), taps.weights_ko, strict=True):
        sums = torch.addcmul(sums, pixels_NCHo, weights_o.reshape(shape))
    if overshoots:
        sums = sums.bitwise_right_shift_(_WEIGHT_BITS).clamp_(0, 255)
        return sums.to(torch.uint8, memory_format=torch.channels_last)
    levels = torch.empty(sums.shape, dtype=torch.uint8, device=sums.device, memory_format=torch.channels_last)
    return torch.bitwise_right_shift(sums, _WEIGHT_BITS, out=levels)


@lru_cache(maxsize=64)
def _per_channel(values: tuple[float, float, float], device: torch.device) -> Tensor:
    return to_device(torch.tensor(values), device)


@lru_cache(maxsize=64)
def _taps(in_px: int, out_px: int, crop_px: int, interpolation: str, device: torch.device) -> _Taps:
    """Of the centre, crop_px wide, of an axis that is resized from in_px to out_px."""
    kernel, radius_px = (_triangle, 1.0) if interpolation == "bilinear" else (_cubic, 2.0)
    start_px = _crop_start_px(out_px, crop_px)
    pixels = [_weights_of_pixel(out, in_px, out_px, kernel, radius_px) for out in range(start_px, start_px + crop_px)]
    first_px, last_px = min(first for first, _ in pixels), max(first + len(weights) for first, weights in pixels)
    weights_ok = torch.zeros(crop_px, max(len(weights) for _, weights in pixels), dtype=torch.int32)
    for weights_k, (_, weights) in zip(weights_ok, pixels, strict=True):
        weights_k[: len(weights)] = torch.tensor(weights, dtype=torch.int32)
    first_o = torch.tensor([first - first_px for first, _ in pixels])
    places_ko = (first_o + torch.arange(weights_ok.shape[1])[:, None]).clamp(max=last_px - first_px - 1)
    half = torch.full((1, 1, 1, 1), 1 << _WEIGHT_BITS - 1, dtype=torch.int32)
    tensors = (places_ko, weights_ok.T.contiguous(), half)
    return _Taps(slice(first_px, last_px), *(to_device(tensor, device) for tensor in tensors))


def _weights_of_pixel(
    out: int, in_px: int, out_px: int, kernel: Callable[[float], float], radius_px: float
) -> tuple[int, list[int]]:
    """The first pixel that this one is made of, and the weight of each from there on."""
    scale = in_px / out_px
    stretch = max(scale, 1.0)  # antialias: the kernel grows with the shrinking
    centre = (out + 0.5) * scale
    first = max(math.floor(centre - radius_px * stretch + 0.5), 0)
    last = min(math.floor(centre + radius_px * stretch + 0.5), in_px)
    taps = [kernel((i + first - centre + 0.5) * (1.0 / stretch)) for i in range(last - first)]
    total = 0.0
    for tap in taps:  # not math.fsum or sum(): the order of rounding is Pillow's
        total += tap
    return first, [int(tap / total * 2**_WEIGHT_BITS + math.copysign(0.5, tap)) for tap in taps]


def _triangle(x: float) -> float:
    return max(1.0 - abs(x), 0.0)


def _cubic(x: float) -> float:
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5 if x < 2.0 else 0.0
