"""A training run: its recipe, the run itself, what it writes, how it is interrupted."""
