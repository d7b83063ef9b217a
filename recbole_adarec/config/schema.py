"""The schema: every key that can be set, its stages, the check of values, and the nearest key to a misspelt one.

``python -m recbole_adarec.config.documents`` writes what is made from it: properties/ and docs/configuration.md.
Nothing here imports torch or RecBole's modules, so that wrong input is refused at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from recbole_adarec.config import adarec_keys, recbole_keys
from recbole_adarec.config.key import Key
from recbole_adarec.errors import AdaRecError

STAGES = {"teacher": "AdaRecTeacher", "search": "AdaRecSupernet", "student": "AdaRecStudent"}
MODELS = {**STAGES, "cprec": "CpRec"}  # what has defaults and a prefix of its own
PREFIXES = (*MODELS, "baseline")
SECTIONS = (*adarec_keys.SECTIONS, *recbole_keys.SECTIONS)
KEYS: Mapping[str, Key] = {key.name: key for section in SECTIONS for key in section.keys}
# Keys of our teacher that apply to a RecBole model as the teacher too.
OF_RECBOLE_TEACHERS = ("distilled_layers", "taught_positions")


def split_prefix(key: str) -> tuple[str | None, str]:
    """The stage prefix of a key, None if it has none, and the key without it."""
    if key not in KEYS:
        for prefix in PREFIXES:
            if key.startswith(f"{prefix}_"):
                return prefix, key.removeprefix(f"{prefix}_")
    return None, key


def check_values(values: Mapping[str, Any], where: str, recbole: RecBoleKeys | None = None) -> None:
    """Refuse unknown keys and values that their keys cannot have.

    Parameters
    ----------
    values : dict
        As the user gave them.
    where : str
        Where they stand: a file's name, or the command line.
    recbole : RecBoleKeys, optional
        The keys of the RecBole models that the run names.

    Raises
    ------
    AdaRecError
        Names the key, the place, and the nearest known key or what the value should be.
    """
    recbole = recbole or RecBoleKeys()
    for key, value in values.items():
        if not isinstance(key, str):
            raise AdaRecError(f"key {key!r} in {where} is no text")
        row = _row(key, recbole)
        if row is None:
            if key in recbole_keys.COMPUTED:
                raise AdaRecError(f"{key} in {where}: RecBole computes it from other keys; leave it out")
            near = nearest_key(key, recbole)
            raise AdaRecError(f"unknown key {key!r} in {where}; the nearest known key is {near!r}")
        row.check(value, f"{key} in {where}")
        if row.name == "operations":
            _check_causal(value, f"{key} in {where}")
        if key == "teacher_item_table" and value != "full":
            raise AdaRecError(f"{key} in {where} is {value!r}; a teacher's table is full, a student's can be adaptive")


class RecBoleKeys:
    """The keys of RecBole's own models that a run names.

    Parameters
    ----------
    alone, teacher : mapping of str to Key
        Keys of the model that is trained alone, and of the one that is the teacher.
    baselines : mapping of str to Key
        Keys of the models that the prefix ``baseline_`` may mean.
    named : mapping of str to Key
        Keys of the baselines that the run names, which may be given without the prefix.
    any_baseline : bool
        Whether ``baseline_`` admits every key: some model is not RecBole's own.
    """

    def __init__(
        self,
        alone: Mapping[str, Key] | None = None,
        teacher: Mapping[str, Key] | None = None,
        baselines: Mapping[str, Key] | None = None,
        named: Mapping[str, Key] | None = None,
        any_baseline: bool = False,
    ) -> None:
        self.alone, self.teacher = alone or {}, teacher or {}
        self.baselines, self.named, self.any_baseline = baselines or {}, named or {}, any_baseline

    def of_prefix(self, prefix: str | None) -> Mapping[str, Key]:
        """The keys that go before ours under a prefix, because only a RecBole model reads them there."""
        if prefix == "baseline":
            return {**self.baselines, **self.named, **self.alone}
        if prefix == "teacher":
            return {name: key for name, key in self.teacher.items() if name not in OF_RECBOLE_TEACHERS}
        return self.alone if prefix is None else {}


def _row(key: str, recbole: RecBoleKeys) -> Key | None:
    """The row that says what a key can be; None for a key that is unknown."""
    prefix, name = split_prefix(key)
    if (row := recbole.of_prefix(prefix).get(name)) is not None:
        return row
    if (row := KEYS.get(name)) is not None:
        return row
    if prefix == "baseline" and recbole.any_baseline:
        return Key(name, (), "", optional=True)
    for whole in (recbole.named, recbole.teacher):  # without a prefix; "teacher_x" may be a RecBole key by itself
        if (row := whole.get(key)) is not None:
            return row
    return None


def nearest_key(key: str, recbole: RecBoleKeys | None = None) -> str:
    """The known key most like a misspelt one; one with a stage prefix is looked for among those with it."""
    recbole = recbole or RecBoleKeys()
    known = {*KEYS, *recbole.alone, *recbole.teacher, *recbole.named}
    for prefix in PREFIXES:
        if key.startswith(f"{prefix}_"):
            known |= {f"{prefix}_{name}" for name in _of_stage(prefix, recbole)}
    matches = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.6)
    return (matches or difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.0))[0]


def _of_stage(prefix: str, recbole: RecBoleKeys) -> Iterable[str]:
    """The keys that mean something with a prefix, for hints."""
    if prefix == "baseline":
        return {*recbole.of_prefix(prefix), *(key.name for section in recbole_keys.SECTIONS for key in section.keys),
                *(key.name for section in adarec_keys.SECTIONS[-2:] for key in section.keys)}  # fmt: skip
    own = {name for name, key in KEYS.items() if prefix in key.defaults}
    return {*own, *recbole.of_prefix(prefix), *(k.name for section in recbole_keys.SECTIONS for k in section.keys)}


def _check_causal(names: Collection[str], where: str) -> None:
    """Refuse operations of plugins that see later items; our own do not."""
    added = [name for name in names if name not in adarec_keys.OPERATIONS]
    if added:
        from recbole_adarec.model.search_space.operations import check_operations

        check_operations(added, where)
