"""Random numbers: those of Python's `random`, and independent streams."""
