"""Accuracy for each user, significance, size and speed."""
