"""Views of a model and its training: words, tables and plots."""
