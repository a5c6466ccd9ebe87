"""Measurements: ``python -m bench.NAME``. ``demo`` and ``server`` are what several of them use."""
