"""Distillation: the teacher's outputs, the mapping of layers, and the sum of the losses."""
