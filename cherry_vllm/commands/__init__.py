"""One file per command: each takes the configuration apart, calls the rooms in order and prints."""
