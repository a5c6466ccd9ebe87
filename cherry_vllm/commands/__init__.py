"""The commands, and what they share: each reads the configuration, calls components and prints."""
