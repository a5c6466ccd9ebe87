"""Scores to chosen rows, and chosen rows to files."""
