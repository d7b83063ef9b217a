"""Runs: stages in order, in a run folder."""
