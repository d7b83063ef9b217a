"""Teachers: backbones of this package, and RecBole's models. Each class enters the registry when it is imported."""

from recbole_adarec.model.teachers import backbones, recbole_teacher

__all__ = ["backbones", "recbole_teacher"]
