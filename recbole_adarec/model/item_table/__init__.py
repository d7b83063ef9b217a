"""Item tables: rows for items, and a softmax over them."""
