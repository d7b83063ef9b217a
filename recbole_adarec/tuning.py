"""`objective_function` for RecBole's `HyperTuning`: the module that scripts of version 0.1 import it from."""

from __future__ import annotations

from recbole_adarec.studies.tuning.trials import objective_function

__all__ = ["objective_function"]
