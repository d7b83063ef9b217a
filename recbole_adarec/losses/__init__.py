"""Losses over items: cross entropy L_CE and output distillation L_out of a softmax over the catalog."""
