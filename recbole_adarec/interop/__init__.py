"""Where this package meets RecBole's own classes: name look-ups, and patches that are asked for (docs/recbole_interop.md)."""
