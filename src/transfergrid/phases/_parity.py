"""The hand-over from probe to fine-tuning: load the probe's head, and prove that the network computes what it saw.

N rows of the gate's index set, D features of all backbones, C classes. A block is one backbone's stretch of D.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transfergrid.data.folds import GATE_SETS, Fold
from transfergrid.errors import ParityError
from transfergrid.networks.finished import load_weights
from transfergrid.networks.joined import EVALUATION_BATCH, JoinedNetwork, is_auxiliary
from transfergrid.paths import store_paths
from transfergrid.phases._setting import Setting
from transfergrid.specs import UNCHOSEN_C, ExtractSettings, Runtime
from transfergrid.store.records import FLOAT16_LARGEST, Predictions, read_predictions, read_record
from transfergrid.training.on_images import evaluating
from transfergrid.training.results import Logits

LOGITS_ROUNDOFF = 2.0**-11  # the probe's logits are stored as float16
ABSOLUTE_SLACK = 1e-4
FLOAT16_SMALLEST = 2.0**-24  # below 2^-14 float16 keeps steps of this size, whatever the value
PRECISION_ROUNDOFF = {"fp32": 2.0**-14, "tf32": 2.0**-10, "bf16": 2.0**-7}  # of a whole forward pass, relative
STORAGE_ROUNDOFF = {"float16": 2.0**-11, "float32": 0.0}


def load_probe(network: JoinedNetwork, run_id: str, runtime: Runtime) -> dict[str, Predictions]:
    """Give the network the probe's head (and whatever else the probe has changed); returns its stored predictions.

    Raises DataError where the probe's files are missing or damaged, ParityError where the head is of another shape.
    """
    paths = store_paths(runtime).run(run_id)
    own = network.state_dict()
    # Auxiliary heads serve training only: a fine-tuning without them starts from the rest.
    state = {name: value for name, value in load_weights(paths).items() if name in own or not is_auxiliary(name)}
    for name, value in state.items():
        if name not in own or own[name].shape != value.shape:
            raise ParityError(f"{paths.weights}: {name} {tuple(value.shape)} has no place in this network")
    network.load_state_dict(state, strict=False)
    return read_predictions(paths)


def probed_strength(run_id: str, runtime: Runtime) -> float:
    """The C that the probe chose; 1 where it was not solved."""
    record = read_record(store_paths(runtime).run(run_id))
    chosen: Any = {} if record is None else record.details.get("chosen", {})
    return float(chosen.get("C", UNCHOSEN_C))


def gate_logits(
    folds: Sequence[Fold], blocks: Sequence[Tensor], weight_CD: Tensor, bias_C: Tensor
) -> dict[str, tuple[Fold, Logits]]:
    """What a probe stores for the gate, from each backbone's features (N, D_i) of all its rows, in float64 inside.

    The logits of each of the gate's folds; for a join also each backbone's own part of those of the first fold.
    """
    parts = _parts(blocks, weight_CD)
    logits_NC = _whole(parts, bias_C).float().numpy()
    ends = np.cumsum([len(fold) for fold in folds])[:-1]
    sets = dict(zip(GATE_SETS, zip(folds, np.split(logits_NC, ends), strict=True), strict=False))
    if len(parts) > 1:
        rows = len(folds[0])
        sets |= {_part_set(i): (folds[0], part_NC[:rows].float().numpy()) for i, part_NC in enumerate(parts)}
    return sets


def assert_parity(
    network: JoinedNetwork,
    setting: Setting,
    stored: Mapping[str, Predictions],
    *,
    names: Sequence[str],
    extraction: ExtractSettings,
) -> dict[str, Any]:
    """Compare on the gate's rows in eval mode. names: of the backbones, in order. extraction: of the probe's features.

    Returns what a record says of the gate. judged: whether any row could have told another network from rounding;
    reason: why none could. largest_ratio: over all logits and parts, at most 1. constant_backbones: those that give the
    same features for every row, as they did for the probe. The others: see Compared.

    Raises ParityError, with the backbone's name, if any logit, or any backbone's part of it, differs by more than its
    bound: sum |W| |x| u + |logit| 2^-11 + 1e-4, where u is the features' relative error.
    """
    expected = _whole_gate(stored, setting.folds.gate)
    blocks = gate_features(network, setting, precision=extraction.precision)
    weight_CD, bias_C = network.head.weight.detach(), network.head.bias.detach()
    # By blocks: a join's sum can hide that one backbone is wrong, as where its weights in the head are small.
    bounds = [_bound(x_ND, w_CD, extraction) for x_ND, w_CD in zip(blocks, _of_blocks(blocks, weight_CD), strict=True)]
    parts = _parts(blocks, weight_CD)
    whole_NC = _whole(parts, bias_C)
    whole = _compare(whole_NC, sum(bounds, start=torch.zeros(())), expected)
    by_block = [whole]
    if len(parts) > 1:
        pairs = enumerate(zip(parts, bounds, strict=True))
        by_block = [_compare(part_NC, bound_NC, stored[_part_set(i)]) for i, (part_NC, bound_NC) in pairs]
    # A backbone that answers every image alike explains a mismatch best, so the message names it.
    named = zip(names, blocks, strict=True)
    constant = [name for name, x_ND in named if _is_constant(x_ND, PRECISION_ROUNDOFF[extraction.precision])]
    worst = max(whole, *by_block, key=lambda compared: compared.largest_ratio)
    # Logits and not accuracy: a wrong transform or order can leave the accuracy of few rows as it was.
    if worst.largest_ratio > 1:
        differing = [name for name, part in zip(names, by_block, strict=True) if part.largest_ratio > 1]
        raise ParityError(_mismatch(worst, differing or list(names), constant))
    return asdict(whole) | {
        "judged": whole.counting_rows > 0,
        "reason": None if whole.counting_rows else "rounding",
        "rows": len(whole_NC),
        "largest_ratio": worst.largest_ratio,
        "constant_backbones": tuple(constant),
    }


def gate_features(network: JoinedNetwork, setting: Setting, *, precision: str) -> list[Tensor]:
    """Each backbone's features of the gate's rows (N, D_i) float64 on the CPU, in eval mode."""
    by_backbone: list[list[Tensor]] = [[] for _ in network.backbones]
    with evaluating(network, setting.device, precision=precision, test_bn="running"):
        for fold in setting.folds.gate:
            index_batches = torch.split(torch.from_numpy(fold.index_N), EVALUATION_BATCH)
            for inputs in setting.inputs.batches(fold.split, index_batches):
                for position, (trunk, images) in enumerate(zip(network.backbones, inputs, strict=True)):
                    by_backbone[position].append(trunk(images).double().cpu())
    return [torch.cat(blocks) for blocks in by_backbone]


# ----------------------------------------------------------------------------------------------------------- details
@dataclass(frozen=True, slots=True)
class Compared:
    """largest_ratio: the largest |difference| / bound. counting_rows: rows whose margin exceeds twice the bound, so
    that no difference within it changes the prediction."""

    largest_difference: float
    largest_ratio: float
    counting_rows: int


def _compare(logits_NC: Tensor, bound_NC: Tensor, stored: Predictions) -> Compared:
    """The first rows of the logits against what is stored of them; bound_NC: the error that the features explain."""
    logits_NC, bound_NC = logits_NC[: len(stored.index_N)], bound_NC[: len(stored.index_N)]
    expected_NC = torch.from_numpy(stored.logits_NC.astype(np.float64))
    if stored.classes_NC is not None:  # above 100 classes only the largest logits are stored
        classes_NC = torch.from_numpy(stored.classes_NC)
        logits_NC, bound_NC = logits_NC.gather(1, classes_NC), bound_NC.gather(1, classes_NC)
    bound_NC = bound_NC + logits_NC.abs() * LOGITS_ROUNDOFF + ABSOLUTE_SLACK
    difference_NC = (logits_NC.clamp(-FLOAT16_LARGEST, FLOAT16_LARGEST) - expected_NC).abs()
    top_N2 = expected_NC.topk(2, dim=1).values
    return Compared(
        largest_difference=float(difference_NC.max()),
        # What is no number is no rounding either.
        largest_ratio=float((difference_NC / bound_NC).nan_to_num(nan=math.inf).max()),
        counting_rows=int(((top_N2[:, 0] - top_N2[:, 1]) > 2 * bound_NC.amax(1)).sum()),
    )


def _bound(block_ND: Tensor, weight_CD: Tensor, extraction: ExtractSettings) -> Tensor:
    """The error of a block's part of each logit (N, C) that the features' own error explains."""
    error_ND = block_ND.abs() * feature_roundoff(extraction)
    if extraction.storage == "float16":
        error_ND = error_ND + FLOAT16_SMALLEST
    return error_ND @ weight_CD.double().cpu().abs().T


def _is_constant(block_ND: Tensor, roundoff: float) -> bool:
    """Whether several images have the same features, but for the error of the arithmetic."""
    error_1D = roundoff * block_ND[:1].abs() + 1e-6 * float(block_ND.abs().max())
    return len(block_ND) > 1 and bool(((block_ND - block_ND[:1]).abs() <= error_1D).all())


def feature_roundoff(extraction: ExtractSettings) -> float:
    """Relative error of a feature: of the arithmetic or of the storage, whichever is the larger."""
    return max(PRECISION_ROUNDOFF[extraction.precision], STORAGE_ROUNDOFF[extraction.storage])


def _parts(blocks: Sequence[Tensor], weight_CD: Tensor) -> list[Tensor]:
    """Each block's part of the logits (N, C) float64 on the CPU."""
    pairs = zip(blocks, _of_blocks(blocks, weight_CD), strict=True)
    return [x_ND.double().cpu() @ w_CD.double().cpu().T for x_ND, w_CD in pairs]


def _whole(parts: Sequence[Tensor], bias_C: Tensor) -> Tensor:
    return sum(parts, start=torch.zeros(())) + bias_C.double().cpu()


def _of_blocks(blocks: Sequence[Tensor], weight_CD: Tensor) -> tuple[Tensor, ...]:
    return torch.split(weight_CD, [block_ND.shape[1] for block_ND in blocks], dim=1)


def _part_set(position: int) -> str:
    return f"gate_part_{position + 1}"


def _whole_gate(stored: Mapping[str, Predictions], folds: Sequence[Fold]) -> Predictions:
    """The stored predictions of all the gate's folds, one below the other. Raises ParityError for other rows."""
    parts: list[Predictions] = []
    for name, fold in zip(GATE_SETS, folds, strict=False):
        one = stored.get(name)
        same = one is not None and np.array_equal(one.index_N, fold.index_N)
        if one is None or not same or not np.array_equal(one.label_N, fold.labels_N):
            raise ParityError("the gate's rows or labels are not those the probe stored")
        parts.append(one)
    top = [one.classes_NC for one in parts if one.classes_NC is not None]
    return Predictions(
        np.concatenate([one.index_N for one in parts]),
        np.concatenate([one.label_N for one in parts]),
        np.concatenate([one.logits_NC for one in parts]),
        np.concatenate(top) if top else None,
    )


def _mismatch(worst: Compared, differing: Sequence[str], constant: Sequence[str]) -> str:
    silent = [name for name in differing if name in constant]
    text = (
        f"{' and '.join(differing)}: a logit differs by {worst.largest_difference:.3g} from the probe's,"
        f" {worst.largest_ratio:.2f} times what rounding allows"
    )
    if silent:
        return f"{text}: {' and '.join(silent)} gives the same features for every image, but not in the probe"
    return f"{text}: transform, weights, statistics or order differ from those the features were made with"
