"""Rows to prompts, and prompts to token ids with the places of their answers."""
