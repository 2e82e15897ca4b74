"""Engines: their interface, the reference engine, the network, and the choice between backends."""
