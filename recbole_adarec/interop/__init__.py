"""What touches RecBole's own classes: its name look-ups, and patches that are asked for (docs/recbole_interop.md)."""
