"""RecBole's datasets as windows of histories."""
