"""Configuration keys: schema, checks, stages."""
