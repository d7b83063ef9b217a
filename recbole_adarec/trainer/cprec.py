"""CpRec's training: cross entropy of the next item, as a teacher's."""

from __future__ import annotations

from recbole_adarec.trainer.teacher import AdaRecTeacherTrainer


class CpRecTrainer(AdaRecTeacherTrainer):
    """Trains `CpRec`."""

    stage = "CpRec"
