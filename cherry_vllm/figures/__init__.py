"""Frames to pictures, for the commands and for the report's page."""
