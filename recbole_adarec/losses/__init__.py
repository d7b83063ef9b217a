"""The softmax over items: cross entropy and output distillation."""
