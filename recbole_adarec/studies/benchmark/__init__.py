"""The benchmark: time and memory of training, search and inference on this machine."""
