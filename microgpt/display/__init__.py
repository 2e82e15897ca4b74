"""A model and its training in words, tables and plots."""
