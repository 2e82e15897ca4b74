"""Tuning: many training runs, of which the best go on."""
