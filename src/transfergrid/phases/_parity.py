"""The hand-over from probe to fine-tuning: load the probe's head, and prove that the network computes what it saw.

N rows of the gate's index set, D features of all backbones, C classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transfergrid.errors import ParityError
from transfergrid.network import EVALUATION_BATCH, JoinedNetwork, autocast, is_auxiliary
from transfergrid.paths import store_paths
from transfergrid.phases._on_images import Setting
from transfergrid.records import Predictions, read_predictions
from transfergrid.results import load_weights
from transfergrid.specs import ExtractSettings, Runtime

LOGITS_ROUNDOFF = 2.0**-11  # the probe's logits are stored as float16
ABSOLUTE_SLACK = 1e-4
COUNTING_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Parity:
    """largest_ratio: the largest |difference| / bound over all logits; at most 1 passes. counting_share: rows whose
    margin exceeds twice the bound, so that a changed prediction cannot be rounding."""

    rows: int
    largest_difference: float
    largest_ratio: float
    counting_share: float
    changed_predictions: int


def load_probe(network: JoinedNetwork, run_id: str, runtime: Runtime) -> Predictions:
    """Give the network the probe's head (and whatever else the probe has changed); returns the gate's stored logits.

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
    return read_predictions(paths)["gate"]


def feature_roundoff(made: ExtractSettings) -> tuple[float, str]:
    """Relative error of a feature by bfloat16 or TensorFloat-32 arithmetic, float16 storage or float32 alone; what
    would lessen it."""
    if made.precision == "bf16":
        return 2.0**-7, "use phase.extract.precision=fp32"
    if made.precision == "tf32":
        return 2.0**-10, "use phase.extract.precision=fp32"
    if made.storage == "float16":
        return 2.0**-11, "use phase.extract.storage=float32"
    return 2.0**-14, "train the probe for more epochs"


def assert_parity(
    network: JoinedNetwork, setting: Setting, stored: Predictions, *, made: ExtractSettings
) -> dict[str, Any]:
    """Compare on the gate's rows in eval mode; returns what was measured. `made`: how the probe's features were.

    Raises ParityError if any logit differs by more than its bound, sum |W| |x| u + 1e-4 where u is the features'
    relative error (and |logit| 2^-11 where that is more), if any prediction changes
    whose margin exceeds twice the bound, if fewer than 90 % of the rows have such a margin, or if a backbone's
    features are the same for all rows.
    """
    fold = setting.folds.gate
    if not (np.array_equal(stored.index_N, fold.index_N) and np.array_equal(stored.label_N, fold.labels_N)):
        raise ParityError("the gate's rows or labels are not those the probe stored")
    blocks = gate_features(network, setting, precision=made.precision)
    for position, block_ND in enumerate(blocks):
        if float((block_ND - block_ND[:1]).abs().max()) == 0.0:
            raise ParityError(f"backbone {position + 1} gives the same features for every image")
    features_ND = torch.cat(blocks, dim=1)
    weight_CD, bias_C = network.head.weight.detach().double().cpu(), network.head.bias.detach().double().cpu()
    logits_NC = features_ND @ weight_CD.T + bias_C
    roundoff, remedy = feature_roundoff(made)
    of_features_NC = (features_ND.abs() @ weight_CD.abs().T) * roundoff
    bound_NC = torch.maximum(of_features_NC, logits_NC.abs() * LOGITS_ROUNDOFF) + ABSOLUTE_SLACK
    return asdict(_judge(logits_NC, bound_NC, stored, remedy=remedy))


def _judge(logits_NC: Tensor, bound_NC: Tensor, stored: Predictions, *, remedy: str) -> Parity:
    assert stored.classes_NC is None or stored.logsumexp_N is not None
    expected_NC = torch.from_numpy(stored.logits_NC.astype(np.float64))
    if stored.classes_NC is not None:  # above 100 classes only the largest logits are stored
        classes_NC = torch.from_numpy(stored.classes_NC)
        logits_NC, bound_NC = logits_NC.gather(1, classes_NC), bound_NC.gather(1, classes_NC)
    difference_NC = (logits_NC - expected_NC).abs()
    top_N2 = expected_NC.topk(2, dim=1).values
    counts_N = (top_N2[:, 0] - top_N2[:, 1]) > 2 * bound_NC.amax(1)
    changed_N = counts_N & (logits_NC.argmax(1) != expected_NC.argmax(1))
    found = Parity(
        rows=len(logits_NC),
        largest_difference=float(difference_NC.max()),
        largest_ratio=float((difference_NC / bound_NC).max()),
        counting_share=float(counts_N.double().mean()),
        changed_predictions=int(changed_N.sum()),
    )
    if found.largest_ratio > 1:
        raise ParityError(
            f"a logit differs by {found.largest_difference:.3g} from the probe's, {found.largest_ratio:.2f} times what"
            " rounding allows: transform, weights, statistics or order differ from those the features were made with"
        )
    if found.changed_predictions:
        raise ParityError(f"{found.changed_predictions} of {found.rows} predictions differ from the probe's")
    if found.counting_share < COUNTING_SHARE:
        raise ParityError(
            f"only {found.counting_share:.0%} of the rows tell rounding from error, {COUNTING_SHARE:.0%} must; {remedy}"
        )
    return found


def gate_features(network: JoinedNetwork, setting: Setting, *, precision: str) -> list[Tensor]:
    """Each backbone's features of the gate's rows (N, D_i) float64 on the CPU, in eval mode."""
    fold = setting.folds.gate
    made: list[list[Tensor]] = [[] for _ in network.backbones]
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    with torch.inference_mode(), autocast(setting.device, precision):
        index_batches = torch.split(torch.from_numpy(fold.index_N), EVALUATION_BATCH)
        for inputs in setting.inputs.batches(fold.split, index_batches):
            for position, (trunk, images) in enumerate(zip(network.backbones, inputs, strict=True)):
                made[position].append(trunk(images).double().cpu())
    for module, mode in modes:
        module.training = mode
    return [torch.cat(blocks) for blocks in made]
