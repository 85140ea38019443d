"""One row of the comparison: the columns of comparison.csv, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from transfergrid.report.analysis.use import UseCost
from transfergrid.specs import SelectBy

NAMES = "dataset model phase variant weights protocol"  # what a row is, beside its grid
_NO_COLUMN = {"column": False}
_OF_GROUPS = {"column": "test_groups"}  # a column where some row has that one
_OF_CPU, _OF_GPU = {"column": "cpu_latency_ms"}, {"column": "gpu_latency_ms"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """One line of comparison.csv; the fields are its columns, in order. None is an empty cell.

    Numbers are means over the completed seeds, `n_seeds` of them, so the seconds say what one seed costs: wall_s and
    gpu_s of all attempts of its own run (gpu_s: what SLURM bills), phase_s of the phase's own work, upstream_gpu_s of
    all that the run is made from, full_wall_s and full_gpu_s of both, see costs.py; None where something that it is
    made from has no record. Accuracies and deltas in [0, 1], losses in nats, size_mb in 1e6 bytes.
    The interval is Wilson's over test images for one seed, Student's t over seeds for several, cut to [0, 1]; where all
    seeds have one accuracy, which is no width, Wilson's again; by group where the test images come in groups, see
    grouped.py. p_value_vs_best_single is Holm-adjusted within its family, see families.py, and verdict (`better`,
    `worse`, `no difference shown`, `not judged`) is by it at 5 %; the test is statistics.compare's or, by group,
    grouped.compared's. published_differs, better_than_head and remarks are several texts;
    comparison.csv joins them by `; `. status: `completed`, `failed`, `missing`, or `2/3 completed`. select_by: the
    score on val that choices between rows are by. remarks: what makes the row doubtful, see remarks.py.
    """

    grid: str
    dataset: str
    model: str
    phase: str
    variant: str
    weights: str
    protocol: str
    n_seeds: int
    n_train: int | None = None
    test_accuracy: float | None = None
    test_accuracy_std: float | None = None
    ci95_low: float | None = None
    ci95_high: float | None = None
    val_accuracy: float | None = None
    train_accuracy: float | None = None
    test_loss: float | None = None
    macro_precision: float | None = None
    macro_recall: float | None = None
    macro_f1: float | None = None
    lbfgs_test_accuracy: float | None = None
    knn_test_accuracy: float | None = None
    lda_test_accuracy: float | None = None
    qda_test_accuracy: float | None = None
    better_than_head: tuple[str, ...] = ()
    published_accuracy: float | None = None
    published_rule: str | None = None
    published_differs: tuple[str, ...] = ()
    delta_to_published: float | None = None
    best_single_model: str | None = None
    delta_to_best_single: float | None = None
    p_value_vs_best_single: float | None = None
    verdict: str | None = None
    epochs: int | None = None
    parameters: int | None = None
    trainable_parameters: int | None = None
    size_mb: float | None = None
    gflops_per_image: float | None = None
    images_per_s: float | None = None
    wall_s: float | None = None
    phase_s: float | None = None
    gpu_s: float | None = None
    upstream_gpu_s: float | None = None
    full_wall_s: float | None = None
    full_gpu_s: float | None = None
    status: str
    failure_class: str | None = None
    n_val: int | None = None
    val_loss: float | None = None
    val_balanced_accuracy: float | None = None
    val_macro_f1: float | None = None
    select_by: SelectBy = "accuracy"
    optimizer_steps: int | None = None
    remarks: tuple[str, ...] = ()
    # Columns where the test images of some row come in groups: how many, and what Wilson's interval would be.
    test_groups: int | None = field(default=None, metadata=_OF_GROUPS)
    wilson95_low: float | None = field(default=None, metadata=_OF_GROUPS)
    wilson95_high: float | None = field(default=None, metadata=_OF_GROUPS)
    # Columns where using the network of some row was measured on a CPU, or on a GPU: see use.py.
    cpu_latency_ms: float | None = field(default=None, metadata=_OF_CPU)
    cpu_images_per_s: float | None = field(default=None, metadata=_OF_CPU)
    cpu_memory_mib: float | None = field(default=None, metadata=_OF_CPU)
    cpu_measured_on: str | None = field(default=None, metadata=_OF_CPU)
    gpu_latency_ms: float | None = field(default=None, metadata=_OF_GPU)
    gpu_images_per_s: float | None = field(default=None, metadata=_OF_GPU)
    gpu_memory_mib: float | None = field(default=None, metadata=_OF_GPU)
    gpu_measured_on: str | None = field(default=None, metadata=_OF_GPU)
    use: tuple[UseCost, ...] = field(default=(), metadata=_NO_COLUMN)
    # Of the row, and no columns: how many runs it was launched with, and its variant where the shown one tells more.
    n_launched: int | None = field(default=None, metadata=_NO_COLUMN)
    own_variant: str | None = field(default=None, metadata=_NO_COLUMN)

    @property
    def parts(self) -> tuple[str, ...]:
        """The networks of a join, in its order; of a single model itself."""
        return tuple(self.model.split("+"))

    @property
    def title(self) -> str:
        """`mnist resnet18 finetune batch_64`"""
        return " ".join(part for part in (self.dataset, self.model, self.phase, self.variant) if part)

    def cell(self, name: str) -> str | float | None:
        """The value of a column; several texts are joined, and none is None."""
        value = getattr(self, name)
        return ("; ".join(value) or None) if isinstance(value, tuple) else value

    def cells(self, names: Sequence[str] = ()) -> dict[str, str | float | None]:
        """Those named, or all of COLUMNS, in order."""
        return {name: self.cell(name) for name in names or COLUMNS}


COLUMNS = tuple(f.name for f in fields(ComparisonRow) if not f.metadata)


def seconds_of(rows: Sequence[ComparisonRow]) -> str:
    """The column that tells what these rows cost: GPU seconds where some used one, with all that a row is made from
    where that is known of some."""
    names = ("full_gpu_s", "gpu_s", "full_wall_s", "wall_s")
    return next((name for name in names if any(row.cell(name) for row in rows)), "wall_s")


def names_of(rows: Sequence[ComparisonRow]) -> tuple[str, ...]:
    """The columns of comparison.csv for these rows."""
    shown = [by for by in (_OF_GROUPS, _OF_CPU, _OF_GPU) if any(getattr(row, by["column"]) for row in rows)]
    return COLUMNS + tuple(f.name for f in fields(ComparisonRow) if f.metadata in shown)
