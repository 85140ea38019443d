"""What fit() trains in a probe: H heads side by side on standardised features that lie on the device."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from transfergrid.data.folds import Folds, class_weights
from transfergrid.networks.heads import Heads, losses_and_correct
from transfergrid.specs import ProbeSettings, seed_for
from transfergrid.training.evaluation import selection_score


def head_without_val(settings: ProbeSettings) -> int:
    """Where no image is held out to choose on: the middle learning rate (of two the lower), the largest decay."""
    lr, decay = sorted(settings.lrs)[(len(settings.lrs) - 1) // 2], max(settings.weight_decays)
    return list(product(settings.lrs, settings.weight_decays)).index((lr, decay))


class FeatureTrainee:
    """features: fold name -> standardised rows (N, D) float32 on the device."""

    def __init__(
        self,
        features: Mapping[str, Tensor],
        folds: Folds,
        settings: ProbeSettings,
        *,
        num_classes: int,
        num_heads: int,
        seed: int,
        device: torch.device,
        watch_test: bool,
    ) -> None:
        generator = torch.Generator().manual_seed(seed_for("head", seed))
        feature_dim = features["train"].shape[1]
        self.module = Heads(feature_dim, num_classes, num_heads=num_heads, generator=generator).to(device)
        self.num_rows = len(features["train"])
        self.num_heads = num_heads
        self._num_classes = num_classes
        self._features = features
        self._settings = settings
        watched = {"val": folds.val, "test": folds.test if watch_test else None, "train": folds.train}
        weights_C = class_weights(settings, folds.train)
        self._weight_C = None if weights_C is None else torch.from_numpy(weights_C).to(device)
        self._labels = {name: torch.from_numpy(f.labels_N).to(device) for name, f in watched.items() if f is not None}

    def train_mode(self) -> None:
        self.module.train()

    def losses(self, rows_B: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        rows_B = rows_B.to(self._labels["train"].device)
        logits_HBC = self.module(self._features["train"][rows_B])
        labels_B, smoothing = self._labels["train"][rows_B], self._settings.label_smoothing
        return losses_and_correct(logits_HBC, labels_B, label_smoothing=smoothing, weight_C=self._weight_C)

    def evaluate(self, module: nn.Module) -> dict[str, Any]:
        """Figures of the head that leads on val, and val accuracy of every head."""
        figures: dict[str, Any] = {}
        head = self.choose_head(module)
        if self.num_heads > 1:
            figures["head"] = head
        for name in ("val", "test"):
            if name in self._labels:
                accuracy_H, loss_H = self._score(module, name)
                figures |= {f"{name}/accuracy": float(accuracy_H[head]), f"{name}/loss": float(loss_H[head])}
                if self.num_heads > 1:
                    figures |= {f"head_{h}/{name}/accuracy": float(a) for h, a in enumerate(accuracy_H)}
        return figures

    def choose_head(self, module: nn.Module) -> int:
        """Highest score on val, by what the run chooses by, then lowest val loss, then first."""
        if "val" not in self._labels:
            return head_without_val(self._settings)
        score_H, loss_H = self._score(module, "val")
        if self._settings.select_by != "accuracy":
            score_H = self._selection_scores(module)
        return min(range(self.num_heads), key=lambda h: (-float(score_H[h]), float(loss_H[h]), h))

    def _selection_scores(self, module: nn.Module) -> Tensor:
        labels_N = self._labels["val"]
        with torch.inference_mode():
            predicted_HN = module(self._features["val"]).argmax(-1).cpu().numpy()
        true_N, by = labels_N.cpu().numpy(), self._settings.select_by
        scores_H = [selection_score(each_N, true_N, num_classes=self._num_classes, by=by) for each_N in predicted_HN]
        return torch.tensor(scores_H)

    def _score(self, module: nn.Module, name: str) -> tuple[Tensor, Tensor]:
        """Accuracy (H,) and loss (H,) on the CPU, in one pass over a fold that lies on the device."""
        labels_N, nothing_H = self._labels[name], torch.zeros(self.num_heads, dtype=torch.float64)
        with torch.inference_mode():
            parts = [
                losses_and_correct(module(self._features[name][rows]), labels_N[rows])
                for rows in torch.split(torch.arange(len(labels_N), device=labels_N.device), 8192)
            ]
            counts = torch.tensor([min(8192, len(labels_N) - 8192 * i) for i in range(len(parts))])
            loss_H = sum((part[0].cpu().double() * n for part, n in zip(parts, counts, strict=True)), start=nothing_H)
            correct_H = sum((part[1].cpu().double() for part in parts), start=nothing_H)
        return correct_H / len(labels_N), loss_H / len(labels_N)
