"""One file per data set, found by its name."""
