"""Where a backbone's weights lie, what a file of them holds, without executing anything in it, and how they get into a
network: verified, whole, finite, and all of them."""

from __future__ import annotations

import contextlib
import pickletools
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import torch
from numpy._core import multiarray
from torch import nn

from transfergrid.data.published import stalls_end
from transfergrid.errors import ConfigError, DataError, GridError, MissingWeights, one_line
from transfergrid.names import some
from transfergrid.networks import backbones
from transfergrid.networks.backbones.match_names import State
from transfergrid.networks.backbones.weight_files import foreign, identity_of, is_safetensors, parts_of
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
    if not download:
        what = f"weights {spec.weights.label} of {spec.name} are not there"
        raise MissingWeights(what, file=path.name, folder=path.parent, url=url)
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
            raise MissingWeights(what, file=path.name, folder=path.parent, url=url) from error


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


# ---------------------------------------------------------------------------------------------------- what a file holds
# Beside tensors, checkpoints hold settings, dates and paths. A closed list names the types that may stand there. None
# of them is constructed: each is read as a stand-in that forgets what it was given. Only NumPy's arrays are themselves.
class _Placeholder:
    """Stands for an object whose value no weights depend on."""

    def __new__(cls, *_args: Any, **_options: Any) -> _Placeholder:
        return object.__new__(cls)

    def __setstate__(self, _state: Any) -> None:
        pass


class _Dict:
    """Stands for dictionaries of other types: what is set in them afterwards is kept, as weights may lie there."""

    def __new__(cls, *_args: Any) -> Any:
        return OrderedDict()


class _List:
    def __new__(cls, *_args: Any) -> Any:
        return []


_PATHS = "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath"
_NUMBERS = "bool bool_ float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 str_"
_NODES = "AnyNode BooleanNode BytesNode EnumNode FloatNode IntegerNode PathNode StringNode"
# module -> names of the types that may stand beside weights
_PLACEHOLDERS = {
    "argparse": "Namespace",
    # getattr: mmengine's histories name their methods; here it gets nothing.
    "builtins": "bool bytes dict float frozenset getattr int list object range slice str tuple",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "mmengine.logging.history_buffer": "HistoryBuffer",
    "numpy": _NUMBERS,
    "numpy._core.multiarray": "scalar",
    "numpy.core.multiarray": "scalar",
    "omegaconf.base": "ContainerMetadata Metadata",
    "omegaconf.dictconfig": "DictConfig",
    "omegaconf.listconfig": "ListConfig",
    "omegaconf.nodes": _NODES,
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,
    "torch.torch_version": "TorchVersion",
    "types": "SimpleNamespace",
    "typing": "Any",
    "uuid": "UUID",
}
_DICTS = {
    "addict.addict": "Dict",
    "collections": "defaultdict",
    "easydict": "EasyDict",
    "fvcore.common.config": "CfgNode",
    "lightning.fabric.utilities.data": "AttributeDict",
    "lightning_fabric.utilities.data": "AttributeDict",
    "lightning_utilities.core.imports": "AttributeDict",
    "mmcv.utils.config": "ConfigDict",
    "mmengine.config.config": "ConfigDict",
    "pytorch_lightning.utilities.parsing": "AttributeDict",
    "yacs.config": "CfgNode",
}
# What torch reads by itself, for naming what is left.
_TORCHS_OWN = tuple(
    "torch._utils. torch._tensor. torch.storage. torch.nn.parameter. torch.serialization. collections.OrderedDict"
    " collections.Counter _codecs.encode builtins.bytearray builtins.set builtins.complex".split()
)


def _safe_types() -> list[tuple[Any, str]]:
    """(what it becomes, its full name in the file)."""
    types = [
        (kind, f"{module}.{name}")
        for kind, table in ((_Placeholder, _PLACEHOLDERS), (_Dict, _DICTS), (_List, {"collections": "deque"}))
        for module, names in table.items()
        for name in names.split()
    ]
    arrays = [(np.ndarray, "numpy.ndarray"), (np.dtype, "numpy.dtype")]
    # NumPy keeps the dtype's class, which its restored values are checked against.
    arrays += [(kind, f"numpy.dtypes.{name}") for name, kind in vars(np.dtypes).items() if isinstance(kind, type)]
    rebuild = cast(Any, multiarray)._reconstruct
    return [*types, *arrays, *((rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core"))]


def read_content(path: Path) -> Any:
    """Mappings, lists and tensors on the CPU, as the file holds them; nothing in it is executed.

    Raises DataError that says what the file is, where that can be told, or which object in it is not read.
    """
    parts = parts_of(path)
    if parts:
        merged: dict[str, Any] = {}
        for part in parts:
            content = read_content(part)
            if not isinstance(content, dict):
                raise DataError(f"{part} is a part of {path.name}, but holds no names with tensors; fetch it again")
            merged |= content
        return merged
    safe = is_safetensors(path)
    kind = None if safe else foreign(path)
    if kind is not None:
        raise DataError(f"{path} cannot be read as a state dict: it is {kind}")
    try:
        if safe:
            from safetensors.torch import load_file

            # Copied, because tensors inside such a file lie unaligned, and kernels then round differently.
            return {key: value.clone() for key, value in load_file(path).items()}
        types = torch.serialization.safe_globals(cast(Any, _safe_types()))
        with open(path, "rb") as file, types, warnings.catch_warnings():  # opened here: torch goes by a name's suffix
            warnings.simplefilter("ignore")  # on the pickle's protocol: what cannot be read is said below
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and safetensors each have their own errors for a damaged file
        objects = [] if safe else _unsafe_names(path)
        if objects:
            reason = f"beside tensors it holds {some(objects, 2)}; objects could run code"
            raise DataError(
                f"{path} cannot be read as a state dict: {reason}; save model.state_dict() alone with torch.save"
            ) from error
        raise DataError(
            f"{path} cannot be read as a state dict: it is cut short or damaged ({type(error).__name__}); "
            "fetch it again, or save model.state_dict() with torch.save"
        ) from error


def _unsafe_names(path: Path) -> list[str]:
    """Full names of what a pickle refers to and nothing may become; read from its instructions, never followed."""
    safe_names = {name for _, name in _safe_types()}
    classes: dict[str, None] = {}
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
                with archive.open(name) as file:
                    classes = dict.fromkeys(_references(cast(BinaryIO, file)))
        else:
            with open(path, "rb") as legacy:
                for _ in range(4):  # torch.save before 1.6: a number, a version, the system, then the object
                    classes |= dict.fromkeys(_references(legacy))
    except Exception:  # pickletools has no error of its own for damaged files: ValueError, IndexError, ...
        pass
    torchs_own = {n for n in classes if n.startswith(_TORCHS_OWN) or (n.startswith("torch.") and n.count(".") == 1)}
    return [name for name in classes if name not in safe_names | torchs_own]


def _references(file: BinaryIO) -> Iterator[str]:
    texts: list[str] = []
    for instruction, argument, _ in pickletools.genops(file):
        if instruction.name == "GLOBAL":
            yield str(argument).replace(" ", ".", 1)
        elif instruction.name == "STACK_GLOBAL" and len(texts) >= 2:
            yield f"{texts[-2]}.{texts[-1]}"
        elif isinstance(argument, str):
            texts.append(argument)
