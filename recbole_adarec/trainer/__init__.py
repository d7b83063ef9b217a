"""Trainers of the stages: teacher, search and student."""
