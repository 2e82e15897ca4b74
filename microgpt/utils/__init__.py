"""Checks of arguments, files, text for terminals, optional dependencies."""
