"""Fuzzers: random input for as long as you like. Each module has a `case`, which raises on a fault."""
