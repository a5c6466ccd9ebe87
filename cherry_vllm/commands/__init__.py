"""One file per command: each reads the configuration, calls the components and prints."""
