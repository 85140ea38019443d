"""One state dict in the shapes in which trainers, publishers and people leave it: name -> how the file is written.

Each shape is written from a network's state dict; what it holds of the trunk is named in `LOADS` or `REFUSED`.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import gzip
import io
import json
import pathlib
import pickle
import types
import uuid
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

State = dict[str, Tensor]
Content = Callable[[State], Any]


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def noise(state: State) -> State:
    """Weights of the same shapes and other values, as a teacher, an average or a second encoder has."""
    return {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}


def headless(state: State, head: str = "fc.") -> State:
    return {name: value for name, value in state.items() if not name.startswith(head)}


def joined(*parts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.items()}


def averaged(state: State) -> State:
    """As torch's AveragedModel names them."""
    return joined({"n_averaged": torch.tensor(3)}, under("module.", state))


ARGS = argparse.Namespace(lr=0.1, out=pathlib.Path("/out"), sizes=[1, 2])
PROJECTOR = {"0.weight": torch.ones(4, 4), "1.running_mean": torch.ones(4)}
OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
TOP = {"projector": under("projector.", PROJECTOR), "queue": {"queue": torch.ones(4, 8), "queue_ptr": torch.zeros(1)}}

# shape -> what torch.save is given; all hold the trunk under names
SAVED: dict[str, Content] = {
    "plain": lambda s: s,
    "plain ordered": lambda s: collections.OrderedDict(s),
    "without head": headless,
    "state_dict": lambda s: {"state_dict": s},
    "model": lambda s: {"model": s, "epoch": 3},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": OPTIMIZER},
    "net": lambda s: {"net": s, "acc": 93.1, "epoch": 5},
    "network": lambda s: {"network": s},
    "params": lambda s: {"params": s},
    "weights": lambda s: {"weights": s},
    "teacher": lambda s: {"teacher": s},
    "student alone": lambda s: {"student": s},
    "ema": lambda s: {"ema": s},
    "model_ema": lambda s: {"model_ema": averaged(s)},
    "state_dict_ema": lambda s: {"state_dict_ema": s},
    "nested": lambda s: {"checkpoint": {"model": {"state_dict": under("module.", s)}}},
    "tuple": lambda s: (s, {"epoch": 3}),
    "list": lambda s: [s, 3],
    "DataParallel": lambda s: under("module.", s),
    "compile": lambda s: under("_orig_mod.", s),
    "compile of DDP": lambda s: under("_orig_mod.module.", s),
    "DDP of compile": lambda s: under("module._orig_mod.", s),
    "Lightning model": lambda s: {
        "epoch": 3,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": under("model.", s),
        "optimizer_states": [OPTIMIZER],
        "hyper_parameters": ARGS,
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.7), "dirpath": pathlib.Path("/x")}},
    },
    "Lightning net": lambda s: {"state_dict": under("net.", s)},
    "Lightning backbone and head": lambda s: {
        "state_dict": joined(under("model.backbone.", headless(s)), {"model.head.weight": torch.ones(3, 4)})
    },
    "timm train.py": lambda s: {
        "epoch": 3,
        "arch": "resnet18",
        "state_dict": s,
        "optimizer": OPTIMIZER,
        "version": 2,
        "args": ARGS,
        "state_dict_ema": noise(s),
        "metric": np.float64(0.7),
    },
    "torchvision reference": lambda s: {
        "model": s,
        "optimizer": OPTIMIZER,
        "lr_scheduler": {"last_epoch": 3, "milestones": collections.Counter({30: 1})},
        "epoch": 3,
        "args": ARGS,
        "model_ema": averaged(noise(s)),
    },
    "DINO": lambda s: {
        "student": joined(under("module.backbone.", noise(headless(s))), under("module.head.", PROJECTOR)),
        "teacher": joined(under("backbone.", headless(s)), under("head.", PROJECTOR)),
        "dino_loss": {"center": torch.zeros(1, 4)},
        "args": ARGS,
    },
    "MoCo v2": lambda s: {
        "arch": "resnet18",
        "state_dict": joined(
            under("module.encoder_q.", s), under("module.encoder_k.", noise(s)), under("module.", TOP["queue"])
        ),
    },
    "MoCo v3": lambda s: {
        "state_dict": joined(
            under("module.base_encoder.", headless(s)),
            under("module.base_encoder.fc.", PROJECTOR),
            under("module.momentum_encoder.", noise(headless(s))),
            under("module.predictor.", PROJECTOR),
        )
    },
    "SimSiam": lambda s: {
        "state_dict": joined(
            under("module.encoder.", headless(s)),
            under("module.encoder.fc.", PROJECTOR),
            under("module.predictor.", PROJECTOR),
        )
    },
    "SimCLR": lambda s: {"state_dict": joined(under("backbone.", headless(s)), under("backbone.fc.", PROJECTOR))},
    "BYOL": lambda s: joined(under("online_encoder.net.", s), under("target_encoder.net.", noise(s))),
    "BYOL networks": lambda s: {
        "target_network_state_dict": under("encoder.", noise(s)),
        "online_network_state_dict": joined(under("encoder.", s), under("projection.", PROJECTOR)),
    },
    "solo-learn": lambda s: {
        "state_dict": joined(
            under("backbone.", headless(s)),
            under("momentum_backbone.", noise(headless(s))),
            {"classifier.weight": torch.ones(3, 4), "classifier.bias": torch.ones(3)},
            TOP["projector"],
        )
    },
    "Barlow": lambda s: {"model": joined(under("module.backbone.", headless(s)), under("module.", TOP["projector"]))},
    "OpenMMLab": lambda s: {
        "meta": {"time": datetime.datetime(2024, 1, 1), "CLASSES": ("a", "b"), "iter": np.int64(3)},
        "state_dict": joined(under("backbone.", headless(s)), {"head.fc.weight": torch.ones(3, 4)}),
    },
    "AveragedModel": averaged,
    "head of another name": lambda s: joined(headless(s), under("head.", PROJECTOR)),
    "head of two layers": lambda s: joined(headless(s), under("fc.", PROJECTOR)),
    "projector beside": lambda s: joined(s, TOP["projector"], TOP["queue"]),
    "counters of thop": lambda s: joined(
        s, {"total_ops": torch.zeros(1), "layer1.0.conv1.total_ops": torch.zeros(1), "total_params": torch.zeros(1)}
    ),
    "no num_batches_tracked": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    "keep_vars": lambda s: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
    "channels_last": lambda s: {k: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in s.items()},
    "float64": lambda s: {k: v.double() if v.is_floating_point() else v for k, v in s.items()},
    "NumPy arrays": lambda s: {k: v.numpy() for k, v in s.items()},
    "dictionaries by module": lambda s: {"model": {"trunk": s, "head": PROJECTOR}},
    "our fine-tuned run": lambda s: joined(
        under("backbones.0.", headless(s)), {"head.weight": torch.ones(3, 4), "head.bias": torch.ones(3)}
    ),
    "our pair": lambda s: joined(
        under("backbones.0.", {"conv1.weight": torch.ones(2, 2)}), under("backbones.1.", headless(s))
    ),
    **{
        f"beside {type(thing).__name__}": lambda s, thing=thing: {"state_dict": s, "info": thing}  # type: ignore[misc]
        for thing in (
            *(ARGS, pathlib.PurePosixPath("a"), types.SimpleNamespace(a=1), np.float32(1), np.dtype("f8")),
            *(np.zeros(3), np.random.default_rng(0).integers(9, size=3), collections.defaultdict(list, a=[1])),
            *(collections.deque([1]), datetime.timedelta(1), uuid.UUID(int=1), torch.Size([1]), torch.float16),
            *(torch.device("cpu"), frozenset({1}), 1 + 2j, range(3), torch.__version__),
        )
    },
}
ROUNDED = {"half": torch.float16, "bfloat16": torch.bfloat16}  # load with their rounding


def files(state: State, folder: Path) -> dict[str, Path]:
    """Every shape that loads, bit-equal: name -> its file."""
    written = {}
    for index, (name, content) in enumerate(SAVED.items()):
        written[name] = folder / f"{index}.pth"
        torch.save(content(state), written[name])
    plain = {k: v.contiguous() for k, v in state.items()}
    for name, file in {"safetensors": "a.safetensors", "SAFETENSORS": "a.SAFETENSORS", "in .bin": "a.bin"}.items():
        written[f"safetensors {name}"] = folder / file
        save_file(under("model.", plain), written[f"safetensors {name}"])
    written["torch in .safetensors"] = folder / "b.safetensors"
    torch.save(state, written["torch in .safetensors"])
    written["before torch 1.6"] = folder / "legacy.pth"
    torch.save({"model": state, "args": ARGS}, written["before torch 1.6"], _use_new_zipfile_serialization=False)
    names = sorted(plain)
    halves = {"one": names[: len(names) // 2], "two": names[len(names) // 2 :]}
    for kind, file, save in (
        ("safetensors", "model.safetensors", save_file),
        ("bin", "pytorch_model.bin", torch.save),
    ):
        for part, inside in halves.items():
            save({k: plain[k] for k in inside}, folder / f"{part}-{file}")
        weight_map = {k: f"{part}-{file}" for part, inside in halves.items() for k in inside}
        written[f"index of {kind}"] = folder / f"{file}.index.json"
        written[f"index of {kind}"].write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return written


def refused(state: State, folder: Path) -> dict[str, tuple[Path, str]]:
    """What cannot be read, or holds no trunk under names: name -> its file and a word that the refusal must have."""

    def saved(content: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    def archive(**files: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as out:
            for name, content in files.items():
                out.writestr(name.replace("__", "/"), content)
        return buffer.getvalue()

    scripted = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(nn.Linear(1, 1)), scripted)
    numbered = {f"{i}.weight": v for i, (k, v) in enumerate(state.items()) if k.endswith("weight")}
    contents = {
        "numbered layers": (saved(numbered), "numbers its layers"),
        "numbered tensors": (saved(dict(enumerate(state.values()))), "numbers its layers"),
        "list of tensors": (saved(list(state.values())), "numbers its layers"),
        "head alone": (saved({"head.weight": torch.ones(3, 4)}), "it has: head.weight; wanted: conv1.weight"),
        "no tensors": (saved({"epoch": 3}), "holds no state dict"),
        "whole object": (saved({"model": nn.Linear(1, 1)}), "torch.nn.modules.linear.Linear"),
        "TorchScript": (scripted.getvalue(), "TorchScript"),
        "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "git-lfs pointer"),
        "gzip": (gzip.compress(saved(state)), "gunzip"),
        "zip": (archive(readme=b"x"), "zip archive"),
        "npz": (archive(**{"a.npy": b"x"}), ".npz"),
        "web page": (b"<!DOCTYPE html><html>404</html>", "web page"),
        "ONNX": (b"\x08\x07\x12\x07pytorch", "ONNX"),
        "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
        "SavedModel": (b"\x08\x01\x12\x04abcd", "SavedModel"),
        "msgpack": (b"\x81\xa6params\x81\xa1a\x01", "msgpack"),
        "plain pickle": (pickle.dumps({"a": np.ones(3)}, 2), "plain pickle"),
        "empty": (b"", "empty"),
        "cut short": (saved(state)[:-400], "cut short or damaged"),
        "JSON": (b'{"a": 1}', "no index"),
        "index of missing parts": (b'{"weight_map": {"a": "gone.bin"}}', "gone.bin"),
        "index that leaves its folder": (b'{"weight_map": {"a": "../a.bin"}}', "in the same folder"),
    }
    written = {}
    for number, (name, (content, word)) in enumerate(contents.items()):
        path = folder / f"refused{number}.pth"
        path.write_bytes(content)
        written[name] = (path, word)
    return written
