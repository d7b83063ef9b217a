"""Trainers of the three stages, on RecBole's own."""
