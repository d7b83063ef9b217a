"""Files: YAML, properties/, model files and RecBole's checkpoints."""
