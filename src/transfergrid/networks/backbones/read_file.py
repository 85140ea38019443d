"""A weights file -> what it holds, without executing anything in it.

Beside tensors, checkpoints hold settings, dates and paths. A closed list names the types that may stand there. None of
them is constructed: each is read as a stand-in that forgets what it was given. Only NumPy's arrays are themselves.
"""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from numpy._core import multiarray

from transfergrid.errors import DataError
from transfergrid.names import some
from transfergrid.networks.backbones.weight_files import foreign, is_safetensors, parts_of


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
