"""transfergrid: which pretrained image model, alone or with another, transfers best to my data, and at what cost.

In Python: read_comparison, read_record, read_features and load_model (docs/python.md); __init__.pyi has their types.
"""

import importlib

__all__ = ["load_model", "read_comparison", "read_features", "read_record"]


def __getattr__(name: str) -> object:
    """Loaded when it is first asked for: importing this package loads nothing else."""
    if name in __all__:
        return getattr(importlib.import_module("transfergrid.cli.python"), name)
    raise AttributeError(f"module 'transfergrid' has no attribute {name!r}")
