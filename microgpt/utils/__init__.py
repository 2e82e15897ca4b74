"""Checks of arguments, files, optional dependencies."""
