"""Teachers: the backbones of this package, RecBole's models, and means. Importing a module registers its teachers."""

from recbole_adarec.model.teachers import bert4rec, causal_bsarec, lrurec, mean, nextitnet, recbole_teacher, sasrec

__all__ = ["bert4rec", "causal_bsarec", "lrurec", "mean", "nextitnet", "recbole_teacher", "sasrec"]
