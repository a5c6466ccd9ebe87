"""Rows to log-probs, and log-probs to IFD scores."""
