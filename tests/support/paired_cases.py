"""What a comparison of two rows came to."""

from __future__ import annotations

from transfergrid.report.analysis.statistics import PairedComparison, Variances


def observed(difference: float, variances: Variances, *, seeds: int, images: int = 2_000) -> PairedComparison:
    return PairedComparison(
        difference=difference,
        low=0.0,
        high=0.0,
        p_value=0.5,
        test="mcnemar_exact" if seeds == 1 else "paired_bootstrap",
        seeds=seeds,
        images=images,
        variances=variances,
    )
