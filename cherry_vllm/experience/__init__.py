"""Learning from brief experience: which rows a model sees first (paper, section 2.1)."""
