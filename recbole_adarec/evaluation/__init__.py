"""Accuracy of each user, significance, size and speed."""
