"""All that touches RecBole's own classes."""
