"""Encoders: teachers, operations, cells, the supernet and the student."""
