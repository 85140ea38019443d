"""Where a backbone's weights lie, and how they get into a network: verified, whole, finite, and all of them."""

from __future__ import annotations

import contextlib
import re
import socket
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import torch
from torch import Tensor, nn

from transfergrid import backbones, durable
from transfergrid.errors import ConfigError, DataError, GridError, one_line
from transfergrid.specs import BackboneSpec

STALL_TIMEOUT_S = 30.0  # of a download that neither fails nor goes on
WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys under which trainers put what they should have saved
PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile

State = OrderedDict[str, Tensor]


def weights_file(spec: BackboneSpec, *, weights_dir: Path, weights_files: Mapping[str, str], download: bool) -> Path:
    """The verified state-dict file of a spec whose weights are a torchvision tag, a file, or built in.

    Raises DataError if it is not there and cannot be fetched, or is not the file that the identity names.
    """
    kind, _, value = spec.weights.identity.partition(":")
    if kind == "builtin":
        return _verified(backbones.builtin_file(spec.name), value)
    named = weights_files.get(spec.weights.identity)
    if kind == "file":
        if named is None or not Path(named).is_file():
            raise DataError(
                f"weights file {named or spec.weights.label!r} of {spec.name} is not there; "
                f"give weights_files.{spec.name}=FILE"
            )
        return _verified(Path(named), value)
    if kind != "tag":
        raise ConfigError(f"weights {spec.weights.identity!r} of {spec.name} are no file; known: tag, file, builtin")
    path = Path(named) if named else weights_dir / value
    known = backbones.entry(spec.name).weights[spec.weights.label]
    if not path.is_file():
        _fetch(spec, path, known.hash_prefix, download=download)
    return _verified(path, known.hash_prefix)


def read_state_dict(path: Path) -> State:
    """name -> tensor in float32 on the CPU, unwrapped from what trainers put around it.

    Nothing in the file is executed. Raises DataError if it cannot be read or holds no tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            # Copied, because tensors inside such a file lie unaligned, and kernels then round differently.
            content: Any = {key: value.clone() for key, value in load_file(path).items()}
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and safetensors each have their own errors for a damaged file
        raise DataError(
            f"{path} cannot be read as a state dict; it is cut short, or holds a whole object instead of "
            f"model.state_dict() ({one_line(error)[:120]})"
        ) from error
    while isinstance(content, Mapping) and (inside := next((w for w in WRAPPERS if _is_mapping(content, w)), None)):
        content = content[inside]
    tensors = content if isinstance(content, Mapping) else {}
    state: State = OrderedDict((str(k), v) for k, v in tensors.items() if isinstance(v, Tensor))
    if not state:
        raise DataError(f"{path} holds no state dict; save model.state_dict() with torch.save")
    metadata = getattr(content, "_metadata", None)
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = OrderedDict((key.removeprefix(prefix), value) for key, value in state.items())
            metadata = None
    for key, value in state.items():
        state[key] = value.float() if value.is_floating_point() else value
    state._metadata = metadata  # type: ignore[attr-defined]  # versions of its layers, which loading goes by
    return state


def assign_weights(network: nn.Module, state: State, *, path: Path, ignored: tuple[str, ...]) -> None:
    """Give every parameter and buffer of the network its value; the network may be without memory.

    ignored: beginnings of names in the file that the network does without (heads). Raises DataError, naming the
    first key, if one is missing, unexpected, of another shape, or not finite.
    """
    own = network.state_dict()
    wanted: State = OrderedDict((_modern(k), v) for k, v in state.items() if not k.startswith(ignored))
    wanted._metadata = getattr(state, "_metadata", None) or own._metadata  # type: ignore[attr-defined]
    try:
        found = network.load_state_dict(wanted, strict=False, assign=True)
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        raise DataError(f"{path} is of another network: {lines[1 if len(lines) > 1 else 0].strip()}") from error
    # Files of before 2018 do not count batches.
    missing = [key for key in found.missing_keys if not key.endswith("num_batches_tracked")]
    if missing or found.unexpected_keys:
        reason = f"it lacks {missing[0]!r}" if missing else f"it has {found.unexpected_keys[0]!r}, which is unknown"
        raise DataError(
            f"{path} is of another network: {reason} ({len(missing)} keys missing, "
            f"{len(found.unexpected_keys)} unexpected)"
        )
    for key, value in network.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise DataError(f"{path} is damaged: {key!r} holds values that are not finite")


def _modern(key: str) -> str:
    """torchvision's DenseNet files were written when a layer's name could hold a dot (`norm.1`)."""
    return re.sub(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", key)


def _is_mapping(content: Mapping[str, Any], key: str) -> bool:
    return isinstance(content.get(key), Mapping)


def _verified(path: Path, sha256_prefix: str) -> Path:
    if not path.is_file():
        raise DataError(f"weights file {path} is not there")
    found = durable.sha256_of(path)
    if not found.startswith(sha256_prefix):
        raise DataError(
            f"{path} is not the file it should be: its sha256 begins with {found[: max(8, len(sha256_prefix))]}, "
            f"expected {sha256_prefix}; remove it and fetch it again"
        )
    return path


def _fetch(spec: BackboneSpec, path: Path, hash_prefix: str, *, download: bool) -> None:
    """Download torchvision's file, or say in one line which file is wanted, where, and from where."""
    from torchvision import models

    architecture = backbones.entry(spec.name).architecture
    url = models.get_model_weights(architecture)[spec.weights.label].url
    remedy = f"put {path.name} into {path.parent}, or give its folder as weights_dir= (it is published at {url})"
    if not download:
        raise DataError(f"weights {spec.weights.label} of {spec.name} are not there; {remedy}")
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
            raise DataError(
                f"weights {spec.weights.label} of {spec.name} could not be downloaded ({one_line(error)[:80]}); "
                f"{remedy}"
            ) from error


@contextlib.contextmanager
def stalls_end() -> Iterator[None]:
    """Connections opened inside end with an error when nothing comes for STALL_TIMEOUT_S."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


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
