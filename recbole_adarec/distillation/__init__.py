"""Distillation: teacher outputs, layer mappings, and the sum of the losses."""
