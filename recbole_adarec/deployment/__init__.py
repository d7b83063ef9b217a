"""Recommendations from a model file, without the dataset."""
