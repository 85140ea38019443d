"""Where a backbone's weights lie, and how they get into a network: verified, whole, finite, and all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import torch
from torch import nn

from transfergrid.data.published import stalls_end
from transfergrid.errors import ConfigError, DataError, GridError, one_line
from transfergrid.networks import backbones
from transfergrid.networks.backbones.match_names import State
from transfergrid.networks.backbones.weight_files import identity_of
from transfergrid.specs import BackboneSpec
from transfergrid.store import durable


def weights_file(spec: BackboneSpec, *, weights_dir: Path, weights_files: Mapping[str, str], download: bool) -> Path:
    """The verified state-dict file of a spec whose weights are a torchvision tag, a file, or built in.

    Raises DataError if it is not there and cannot be fetched, or is not the file that the identity names.
    """
    kind, _, value = spec.weights.identity.partition(":")
    if kind == "builtin":
        return _verified(backbones.builtin_file(spec.name), value)
    file = weights_files.get(spec.weights.identity)
    if kind == "file":
        if file is None or not Path(file).is_file():
            raise DataError(
                f"weights file {file or spec.weights.label!r} of {spec.name} is not there; "
                f"give weights_files.{spec.name}=FILE"
            )
        return _verified(Path(file), value)
    if kind != "tag":
        raise ConfigError(f"weights {spec.weights.identity!r} of {spec.name} are not a file; known: tag, file, builtin")
    path = Path(file) if file else weights_dir / value
    known = backbones.entry(spec.name).weights[spec.weights.label]
    if not path.is_file():
        _fetch(spec, path, known.hash_prefix, download=download)
    return _verified(path, known.hash_prefix)


def assign_weights(network: nn.Module, state: State, *, path: Path) -> None:
    """Give every parameter and buffer of the network its value; the network may be without memory. What the state has
    beside them, as of heads, is not used.

    Raises DataError, naming the first key, if one is missing, of another shape, or not finite.
    """
    own = network.state_dict()
    values = State((key, value) for key, value in state.items() if key in own)
    # Files of before 2018 do not count batches.
    missing = [key for key in own if key not in values and not key.endswith("num_batches_tracked")]
    if missing:
        raise DataError(f"{path} is of another network: it lacks {missing[0]!r} ({len(missing)} missing)")
    for key, value in values.items():
        if value.shape != own[key].shape:
            shapes = f"{tuple(value.shape)}, wanted {tuple(own[key].shape)}"
            raise DataError(f"{path} is of another network: {key!r} has shape {shapes}")
    values._metadata = state._metadata or getattr(own, "_metadata", None)
    network.load_state_dict(values, strict=False, assign=True)
    for key, value in network.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise DataError(f"{path} is damaged: {key!r} holds values that are not finite")


def _verified(path: Path, sha256_prefix: str) -> Path:
    if not path.is_file():
        raise DataError(f"weights file {path} is not there")
    sha256 = identity_of(path)
    if not sha256.startswith(sha256_prefix):
        raise DataError(
            f"{path} is not the file it should be: its sha256 begins with {sha256[: max(8, len(sha256_prefix))]}, "
            f"expected {sha256_prefix}",
            remedy="remove it and fetch it again",
        )
    return path


def _fetch(spec: BackboneSpec, path: Path, hash_prefix: str, *, download: bool) -> None:
    """Download torchvision's file, or say in one line which file is wanted, where, and from where."""
    from torchvision import models

    architecture = backbones.entry(spec.name).architecture
    url = models.get_model_weights(architecture)[spec.weights.label].url
    remedy = f"put {path.name} into {path.parent}, or give its folder as weights_dir= (it is published at {url})"
    if not download:
        raise DataError(f"weights {spec.weights.label} of {spec.name} are not there", remedy=remedy)
    durable.make_folder(path.parent)
    # One download on a machine; the others wait and find the file.
    with durable.lock(path.with_name(f".{path.name}.lock"), wait=True), stalls_end():
        if path.is_file():
            return
        try:
            durable.write_with(
                path,
                lambda temporary: torch.hub.download_url_to_file(
                    url, str(temporary), hash_prefix=hash_prefix, progress=False
                ),
            )
        except GridError:
            raise
        except (OSError, RuntimeError) as error:
            what = f"weights {spec.weights.label} of {spec.name} could not be downloaded ({one_line(error)[:80]})"
            raise DataError(what, remedy=remedy) from error


@contextlib.contextmanager
def hub_fails_fast() -> Iterator[None]:
    """If timm's hub cannot be reached, only its cached files are used inside; it would be asked again for 48 s."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    with stalls_end():
        try:
            urlopen(constants.ENDPOINT).close()
        except HTTPError:
            pass  # an answer, if not a kind one
        except OSError:
            constants.HF_HUB_OFFLINE = True
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before
