from transfergrid.cli.python import load_model as load_model
from transfergrid.cli.python import read_comparison as read_comparison
from transfergrid.cli.python import read_features as read_features
from transfergrid.cli.python import read_record as read_record

__all__ = ["load_model", "read_comparison", "read_features", "read_record"]
