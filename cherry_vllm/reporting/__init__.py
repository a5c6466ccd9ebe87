"""A run as a page: rows in and out, the distribution of scores, and the rows to look at."""
