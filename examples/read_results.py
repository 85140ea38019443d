"""Results in Python: a grid's rows, the record behind each row, and the features that its head was fitted on.

    python examples/read_results.py [GRID] [STORE]        # default: quickstart results

Reads only; the grid must have been launched. docs/python.md lists what can be asked.
"""

import json
import sys
from pathlib import Path

import transfergrid


def percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def main(grid: str = "quickstart", store: str = "results") -> None:
    rows = transfergrid.read_comparison(grid, store)
    print("model                        phase     test     95 % interval")
    for row in sorted(rows, key=lambda row: row.test_accuracy or 0, reverse=True):
        interval = f"[{percent(row.ci95_low)}, {percent(row.ci95_high)}]"
        print(f"{row.model:28} {row.phase:9} {percent(row.test_accuracy):>5}    {interval:14} {row.variant}")

    print("\nrun, its seconds, its settings and the features it read")
    for configuration in json.loads(Path(store, "grids", f"{grid}.json").read_text())["configurations"]:
        record = transfergrid.read_record(configuration["run_id"], store)
        if record.status == "failed":
            print(record.run_id, record.failure_class, record.error)
        elif record.spec.phase == "probe":
            features = transfergrid.read_features(record.run_id, "train", store=store)
            sizes = {name: found.features_ND.shape for name, found in features.items()}
            print(record.run_id, f"{record.phase_s:.1f} s", f"val_seed={record.spec.val_seed}", sizes)


if __name__ == "__main__":
    main(*sys.argv[1:])
