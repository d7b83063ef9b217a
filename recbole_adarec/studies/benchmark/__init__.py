"""What training, search and inference cost on this machine."""
