"""Item tables: embeddings of the items, and the softmax that scores all items for a state."""
