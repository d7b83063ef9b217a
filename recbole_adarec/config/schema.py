"""Temporary."""

STAGES = {"teacher": "AdaRecTeacher", "search": "AdaRecSupernet", "student": "AdaRecStudent"}
MODELS = {**STAGES, "cprec": "CpRec"}
