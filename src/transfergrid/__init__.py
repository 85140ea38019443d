"""transfergrid: which pretrained image model, alone or with another, transfers best to my data, and at what cost."""
