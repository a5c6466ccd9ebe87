"""A run as a page: what went in and out, how the scores lie, and which rows they single out."""
