"""Teachers: the backbones of this package, and RecBole's models. Importing a module registers its teachers."""

from recbole_adarec.model.teachers import backbones, recbole_teacher

__all__ = ["backbones", "recbole_teacher"]
