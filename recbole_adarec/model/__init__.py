"""Encoders and item tables: teachers, supernet, student, CpRec."""
