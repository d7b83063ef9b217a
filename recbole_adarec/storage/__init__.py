"""Files on disk: written atomically, read without executing anything."""
