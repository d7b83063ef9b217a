"""The search space: operations, cells, architectures and their costs."""
