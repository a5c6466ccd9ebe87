"""Rows to prompts, and prompts to token ids with the position where the answer starts."""
