"""Configuration: the schema of all keys, what a user gave, and RecBole's configuration of each stage."""
