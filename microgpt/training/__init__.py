"""Training: the recipe of a run, its loop, the files it writes, and the signals that interrupt it."""
