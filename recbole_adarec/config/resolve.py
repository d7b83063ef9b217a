"""Temporary."""

from recbole_adarec.config.stages import resolve as resolve_user_config
from recbole_adarec.config.stages import resolved as full_config

__all__ = ["full_config", "resolve_user_config"]
