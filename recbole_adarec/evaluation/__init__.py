"""What a model costs, and the report that compares."""
