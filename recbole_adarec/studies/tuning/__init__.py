"""Tuning of any configuration keys, with RecBole's HyperTuning (hyperopt) or with Ray Tune."""
