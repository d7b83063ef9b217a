"""Runs the stages in order, in a run folder that the same command continues."""
