"""Engines: which one runs, their interface, the network, the reference engine."""
