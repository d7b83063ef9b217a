"""Tuning over any key, by hyperopt or Ray."""
