"""BackboneSpec -> network. Imports torch.

N images, D feature dim, C classes, H W pixels. Every backbone takes normalised float images (N, 3, H, W) and returns
features (N, D); its published head, if asked for, returns logits (N, C).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.googlenet import GoogLeNet, InceptionAux

from transfergrid.errors import ConfigError, DataError, MissingWeights, one_line
from transfergrid.networks import backbones
from transfergrid.networks.backbones.construct import AUXILIARY, behead, construct, without_memory
from transfergrid.networks.backbones.match_names import Match, State, find_state
from transfergrid.networks.backbones.state_dicts import assign_weights, hub_fails_fast, read_content, weights_file
from transfergrid.networks.backbones.weight_files import Taken
from transfergrid.specs import RANDOM_RULE_VERSION, BackboneSpec

logger = logging.getLogger(__name__)
Note = Callable[[Taken], None]

NOISE_IMAGES = 32
NOISE_LARGEST_PX = 64
USUAL_CLASSES = 1000  # of the head that a random network is constructed with where its own is not known


def log_taken(taken: Taken) -> None:
    if not taken.is_plain:
        logger.info("%s", taken.line)


def build(
    spec: BackboneSpec,
    *,
    weights_dir: Path,
    weights_files: Mapping[str, str],
    download: bool = True,
    auxiliary: bool = False,
    note: Note = log_taken,
) -> nn.Module:
    """The trunk, in eval mode, on the CPU, with gradients on.

    weights_dir: where downloaded weights lie or are put. weights_files: weights identity -> file.
    auxiliary: GoogLeNet only: keep what the file has of the two auxiliary heads, for attach_auxiliary_heads.
    note: is given what was taken of a file.
    Raises DataError if the weights are missing, damaged or of another network.
    """
    if auxiliary and spec.name != "googlenet":
        raise ConfigError(f"{spec.name} has no auxiliary heads, only googlenet has them; set aux_loss_weight=0")
    if spec.weights.identity.startswith("random:"):
        network = _random(spec)
        if spec.name.startswith("timm/"):
            network.reset_classifier(0)  # type: ignore[operator]  # a method of timm's networks alone
            return network.eval()
        return behead(network, spec.name, backbones.entry(spec.name).head).eval()
    path = _file_of(spec, weights_dir, weights_files, download=download)
    if path is None:
        return _downloaded_by_timm(spec, weights_dir, download=download, num_classes=0).eval()
    trunk, state = _from_file(spec, path, own_head=False, note=note)
    if auxiliary:
        _keep_auxiliary(trunk, state, path)
    return trunk.eval()


def build_classifier(
    spec: BackboneSpec,
    *,
    weights_dir: Path,
    weights_files: Mapping[str, str],
    download: bool = True,
    note: Note = log_taken,
) -> nn.Module:
    """The network with its own published head, in eval mode: images (N, 3, H, W) -> logits (N, C), C as in the file.

    Raises ConfigError for a backbone without a head, DataError for a file without one.
    """
    if spec.weights.identity.startswith("random:"):
        return _random(spec).eval()
    if not spec.name.startswith("timm/") and not backbones.entry(spec.name).head:
        raise ConfigError(f"{spec.name} has no head of its own to evaluate; evaluate a run of it, run=ID")
    path = _file_of(spec, weights_dir, weights_files, download=download)
    if path is None:
        return _downloaded_by_timm(spec, weights_dir, download=download).eval()
    return _from_file(spec, path, own_head=True, note=note)[0].eval()


def state_for(network: nn.Module, path: Path, *, ignored: tuple[str, ...] = (), note: Note = log_taken) -> Match:
    """What a weights file holds of a network, which may be without memory; note is given what was taken.

    ignored: beginnings of names of heads, which the file may have or lack. Raises DataError.
    """
    match = find_state(read_content(path), network.state_dict(), path=path, ignored=ignored)
    note(match.taken)
    return match


class Frozen(nn.Module):
    """A backbone that stays as it is: eval mode for good, no gradients, features (N, D) in float32.

    train() does nothing, so a loop that switches the whole model to training cannot move BatchNorm or wake dropout.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.training = False

    def train(self, mode: bool = True) -> Frozen:
        return self

    @torch.no_grad()
    def forward(self, images_NCHW: Tensor) -> Tensor:
        features_ND: Tensor = self.network(images_NCHW)
        return features_ND.float()


def bn_statistics(module: nn.Module, batches: Iterable[Tensor]) -> None:
    """Re-estimate the running statistics of all BatchNorm layers in one pass over network inputs (N, 3, H, W).

    Each layer's mean and variance become the averages over the batches, weighted by their images; while it lasts,
    each layer normalises by its batch, and everything else (dropout) is in eval mode. Modes are restored.
    """
    layers = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not layers:
        return
    modes = [(m, m.training) for m in module.modules()]
    momenta = [layer.momentum for layer in layers]
    for m, _ in modes:
        m.training = False  # not module.eval(): a Frozen part keeps its mode whatever is asked
    for layer in layers:
        layer.training = True
        layer.reset_running_stats()
    images_seen = 0
    with torch.no_grad():
        for images_NCHW in _none_alone(batches):
            images_seen += len(images_NCHW)
            for layer in layers:
                layer.momentum = len(images_NCHW) / images_seen
            module(images_NCHW)
    assert images_seen > 0, "bn_statistics needs at least one batch"
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    for m, mode in modes:
        m.training = mode


def attach_auxiliary_heads(backbone: nn.Module, num_classes: int, generator: torch.Generator) -> None:
    """Give a GoogLeNet trunk its two auxiliary classifiers: in training it returns (features, logits1, logits2).

    Their convolution and first linear layer are the file's if build(auxiliary=True) found them; all else is drawn
    from the generator. In eval mode the trunk returns features alone. Raises ConfigError for another backbone.
    """
    if not isinstance(backbone, GoogLeNet):
        raise ConfigError(
            f"{type(backbone).__name__} has no auxiliary heads, only googlenet has them; set aux_loss_weight=0"
        )
    seed = int(torch.randint(2**31, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = {"aux1": InceptionAux(512, num_classes), "aux2": InceptionAux(528, num_classes)}
    device = next(backbone.parameters()).device
    for name, head in fresh.items():
        published = getattr(backbone, name)
        if published is not None:
            head.conv, head.fc1 = published.conv, published.fc1
        setattr(backbone, name, head.to(device).train(backbone.training))
    backbone.aux_logits = True


# ----------------------------------------------------------------------------------------------------------- details
def _file_of(spec: BackboneSpec, weights_dir: Path, weights_files: Mapping[str, str], *, download: bool) -> Path | None:
    """The verified file of the weights; None where timm's published ones have to be downloaded by timm."""
    if not spec.name.startswith("timm/"):
        return weights_file(spec, weights_dir=weights_dir, weights_files=weights_files, download=download)
    if not spec.weights.identity.startswith("tag:"):
        return weights_file(spec, weights_dir=weights_dir, weights_files=weights_files, download=False)
    name = spec.weights.identity.removeprefix("tag:timm/")
    return next((p for s in (".safetensors", ".pth", ".bin") if (p := weights_dir / f"{name}{s}").is_file()), None)


def _from_file(spec: BackboneSpec, path: Path, *, own_head: bool, note: Note) -> tuple[nn.Module, State]:
    """The trunk, or with own_head the whole network, and what the file has of it and of its heads."""
    is_timm = spec.name.startswith("timm/")
    memory: Callable[[], AbstractContextManager[None]] = nullcontext if is_timm else without_memory
    if is_timm:
        import timm

        architecture = spec.name.partition(".")[0]
        head = str(timm.get_pretrained_cfg_value(architecture.removeprefix("timm/"), "classifier") or "head")
        ignored: tuple[str, ...] = (f"{head}.",)
    else:
        known = backbones.entry(spec.name)
        architecture, head = known.architecture, known.head
        ignored = (*AUXILIARY, f"{head}." if head else "classifier.")
    with memory():
        network = construct(architecture, num_classes=0 if is_timm else 1)
        network = network if is_timm else behead(network, spec.name, head)
    match = state_for(network, path, ignored=ignored, note=note)
    if own_head:
        _add_joined_head(match, head)
        if f"{head}.weight" not in match.state:
            what = f"{path} holds no head ({head}.weight); it gives features only, so evaluate a run of it, run=ID"
            raise DataError(what)
        with memory():
            network = construct(architecture, num_classes=len(match.state[f"{head}.weight"]))
    assign_weights(network, match.state, path=path)
    return network, match.state


def _add_joined_head(match: Match, head: str) -> None:
    """A fine-tuning of one backbone keeps a JoinedNetwork, whose head stands beside the backbone."""
    joined_head = {name: value for name, value in match.beside.items() if name in ("head.weight", "head.bias")}
    alone = match.prefix == "backbones.0." and not any(name.startswith("backbones.1.") for name in match.beside)
    if f"{head}.weight" not in match.state and alone:
        match.state.update((f"{head}{name[4:]}", value.float()) for name, value in joined_head.items())


def _random(spec: BackboneSpec) -> nn.Module:
    """weights=random, rule 1: the constructor under the seed, then BatchNorm statistics from one batch of noise.

    Without the second step BatchNorm scales nothing, and the features of GoogLeNet or MobileNetV3 vanish in float16.
    The noise: 32 images of uniform uint8 values, of the input's size but at most 64 px where the network takes that
    (timm: of the input's size).
    """
    rule, _, seed = spec.weights.identity.removeprefix("random:v").partition(":")
    assert int(rule) == RANDOM_RULE_VERSION, spec.weights.identity
    is_timm = spec.name.startswith("timm/")
    known = None if is_timm else backbones.entry(spec.name)
    architecture = known.architecture if known else spec.name.partition(".")[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        network = construct(architecture, num_classes=(known and known.head_classes) or USUAL_CLASSES).eval()
    smallest_px = known.min_size_px if known else spec.preprocess.crop_px
    size_px = max(min(spec.preprocess.crop_px, NOISE_LARGEST_PX), smallest_px)
    generator = torch.Generator().manual_seed(int(seed))
    noise = torch.randint(256, (NOISE_IMAGES, 3, size_px, size_px), generator=generator, dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (spec.preprocess.mean, spec.preprocess.std))
    bn_statistics(network, [(noise / 255 - mean) / std])
    return network


def _downloaded_by_timm(spec: BackboneSpec, weights_dir: Path, *, download: bool, **options: Any) -> nn.Module:
    """options: num_classes=0 for the trunk; without it the head is the one that the weights have."""
    import timm

    name = spec.weights.identity.removeprefix("tag:timm/")
    file = f"{name}.safetensors"
    if not download:
        what = f"weights {spec.weights.label} of {spec.name} are not there"
        raise MissingWeights(what, file=file, folder=weights_dir)
    try:
        with hub_fails_fast():
            network: nn.Module = timm.create_model(name, pretrained=True, cache_dir=weights_dir, **options)
    except (OSError, RuntimeError) as error:
        what = f"weights {spec.weights.label} of {spec.name} could not be downloaded ({one_line(error)[:80]})"
        raise MissingWeights(what, file=file, folder=weights_dir) from error
    return network


def _none_alone(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The batches, a last one of a single image joined to the one before: one value has no variance."""
    previous: Tensor | None = None
    for batch in batches:
        if previous is not None and len(batch) == 1:
            batch = torch.cat([previous, batch])
        elif previous is not None:
            yield previous
        previous = batch
    if previous is not None:
        yield previous


def _keep_auxiliary(trunk: nn.Module, state: State, path: Path) -> None:
    """Load what the file has of GoogLeNet's auxiliary heads, but their outputs; nothing if it has none."""
    if "aux1.conv.conv.weight" not in state or "aux2.conv.conv.weight" not in state:
        return
    for name, channels in (("aux1", 512), ("aux2", 528)):
        with without_memory():
            head = InceptionAux(channels, 1)
            head.fc2 = nn.Identity()
        own = State((k.removeprefix(f"{name}."), v) for k, v in state.items() if k.startswith(f"{name}."))
        assign_weights(head, own, path=path)
        setattr(trunk, name, head)
