"""What remains to be run, in which order, at what cost; and one run carried out."""
