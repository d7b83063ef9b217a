"""Using a student without the dataset that it was trained on."""
