"""transfergrid: which pretrained image model, alone or with another, transfers best to my data, and at what cost."""

__version__ = "0.1.0"
