"""A network on images as fit() trains it, and as it is evaluated.

B images of a batch, C classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from transfergrid.data.batches import NetworkInputs, augment_plan
from transfergrid.data.folds import Fold, Folds, class_weights
from transfergrid.data.preprocess import to_device
from transfergrid.networks.heads import mean_loss
from transfergrid.networks.joined import EVALUATION_BATCH, batch_norm_layers
from transfergrid.specs import TrainSettings
from transfergrid.training.device import arithmetic
from transfergrid.training.evaluation import scores


@contextlib.contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """bfloat16 or TensorFloat-32 where asked for; weights, BatchNorm statistics and the loss stay float32."""
    with arithmetic(precision), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        yield


def predict(
    network: nn.Module,
    inputs: NetworkInputs,
    fold: Fold,
    *,
    precision: str,
    test_bn: str = "running",
    batch_size: int = EVALUATION_BATCH,
) -> NDArray[np.float32]:
    """Logits (N, C) float32 of a fold's images, unaugmented, in eval mode (or with `test_bn=batch`)."""
    parts = []
    with evaluating(network, inputs.device, precision=precision, test_bn=test_bn):
        for batch in inputs.batches(fold.split, torch.split(torch.from_numpy(fold.index_N), batch_size)):
            logits_BC, _ = network(*batch)
            parts.append(logits_BC.float().cpu())
    logits_NC: NDArray[np.float32] = torch.cat(parts).numpy()
    return logits_NC


@contextlib.contextmanager
def evaluating(
    network: nn.Module,
    device: torch.device,
    *,
    precision: str,
    test_bn: str,
    kept_in_eval: frozenset[str] = frozenset(),
) -> Iterator[None]:
    """Eval mode without gradients, in this precision; each module's mode and every buffer is restored.

    With `test_bn=batch` BatchNorm goes by the batch at hand, as in code that never calls eval(), but for the layers
    named in kept_in_eval.
    """
    was_training = {name: module.training for name, module in network.named_modules()}
    network.eval()
    layers = batch_norm_layers(network, kept_in_eval) if test_bn == "batch" else []
    statistics = [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers()]
    for layer in layers:
        layer.training = True
    with torch.inference_mode(), autocast(device, precision):
        yield
        for buffer, value in statistics:
            buffer.copy_(value)
    for name, module in network.named_modules():
        module.training = was_training[name]


class ImageTrainee:
    """What fit() trains on images: a network, its inputs, its folds. Rows are positions in the train fold."""

    num_heads = 1

    def __init__(
        self,
        network: nn.Module,
        inputs: NetworkInputs,
        folds: Folds,
        settings: TrainSettings,
        *,
        seed: int,
        kept_in_eval: frozenset[str],
        aux_loss_weight: float = 0.0,
        watch_test: bool,
    ) -> None:
        """kept_in_eval: names of modules kept in eval mode during training. watch_test: evaluate test every epoch."""
        self.module = network
        self.num_rows = len(folds.train)
        self._inputs = inputs
        self._folds = folds
        self._settings = settings
        self._seed = seed
        self._kept_in_eval = kept_in_eval
        self._aux_loss_weight = aux_loss_weight
        self._watch_test = watch_test
        self._plan = augment_plan(settings)
        self._latest: tuple[int, Any] = (-1, None)
        self.rows_on = inputs.indices_on(folds.train.split)
        self._index_N = torch.from_numpy(folds.train.index_N).to(self.rows_on)
        self._labels_N = torch.from_numpy(folds.train.labels_N).to(inputs.device)
        weights_C = class_weights(settings, folds.train)
        self._weight_C = None if weights_C is None else torch.from_numpy(weights_C).to(inputs.device)

    def train_mode(self) -> None:
        self.module.train()
        for name, module in self.module.named_modules():
            if name in self._kept_in_eval:
                module.eval()

    def losses(self, rows_B: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        settings = self._settings
        draws = self._draws(epoch)
        index_B = self._index_N[rows_B]
        inputs = self._inputs.batch(self._folds.train.split, index_B, draws=draws, augment_at=settings.augment_at)
        labels_B = self._labels_N[to_device(rows_B, self._inputs.device)]
        with autocast(self._inputs.device, settings.precision):
            logits_BC, auxiliary = self.module(*inputs)
        smoothing, weight_C = settings.label_smoothing, self._weight_C
        loss = mean_loss(logits_BC.float(), labels_B, label_smoothing=smoothing, weight_C=weight_C)
        for aux_BC in auxiliary:
            own = mean_loss(aux_BC.float(), labels_B, label_smoothing=smoothing, weight_C=weight_C)
            loss = loss + self._aux_loss_weight * own
        correct = (logits_BC.detach().argmax(1) == labels_B).sum()
        return loss.unsqueeze(0), correct.unsqueeze(0)

    def evaluate(self, module: nn.Module) -> dict[str, Any]:
        figures: dict[str, Any] = {}
        folds = {"val": self._folds.val, "test": self._folds.test if self._watch_test else None}
        for name, fold in folds.items():
            if fold is not None:
                of_fold = scores(self.predict(module, fold), fold.labels_N, split=name)
                figures |= {f"{name}/accuracy": of_fold[f"{name}_accuracy"], f"{name}/loss": of_fold[f"{name}_loss"]}
        return figures

    def predict(self, module: nn.Module, fold: Fold) -> NDArray[np.float32]:
        """Logits (N, C), in the precision of the training."""
        settings, precision = self._settings, self._settings.precision
        batch = (settings.micro_batch or settings.batch_size) if settings.test_bn == "batch" else EVALUATION_BATCH
        return predict(module, self._inputs, fold, precision=precision, test_bn=settings.test_bn, batch_size=batch)

    def _draws(self, epoch: int) -> Any:
        if self._plan is None:
            return None
        if self._latest[0] != epoch:
            self._latest = epoch, self._inputs.draw(self._plan, self._folds.train.split, seed=self._seed, epoch=epoch)
        return self._latest[1]
