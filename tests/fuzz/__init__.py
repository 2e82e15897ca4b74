"""Fuzzers: random input, for as long as there is time. Each module has a `case`, which raises on a fault."""
