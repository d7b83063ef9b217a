"""The search space: operations, cells, architectures and what they cost."""
