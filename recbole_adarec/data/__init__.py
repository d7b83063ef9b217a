"""Windows over RecBole's sequential dataset."""
