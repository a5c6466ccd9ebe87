"""Rows to prompts, and prompts to token ids with the place where the answer starts."""
