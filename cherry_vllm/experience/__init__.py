"""Learning from brief experience: which rows a model is trained on first (paper, section 2.1)."""
