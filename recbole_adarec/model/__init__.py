"""Models: teachers, supernet, student and CpRec, and the item tables that they share."""
