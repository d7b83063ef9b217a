"""The place of `objective_function` in version 0.1, kept for scripts that import it from here."""

from __future__ import annotations

from recbole_adarec.studies.tuning.trials import objective_function

__all__ = ["objective_function"]
