"""One row of the schema: a key with its type, range, choices, defaults and meaning, and the check of its values."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from recbole_adarec.errors import AdaRecError, nearest_hint

# How messages name a type: one value, and the elements of a list.
_NOUNS: dict[type, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"), float: ("a number", "numbers"), str: ("text", "texts"),
    bool: ("True or False", "True or False"), dict: ("a mapping", "mappings"), list: ("a list", "lists"),
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """A key of the configuration.

    Attributes
    ----------
    name : str
        As it stands in YAML files and after ``--``.
    types : tuple of type
        Of its values. ``float`` takes every number; only ``bool`` takes True and False. Empty: any value.
    help : str
        What it means, in one line.
    defaults : dict
        By the file that has the key: ``run`` or a stage. Empty for keys that only RecBole has.
    optional : bool
        Whether it can be None.
    choices : tuple of str
        The names that it can have, or that the elements of its list can have; empty: any.
    registry : callable, optional
        Gives all names that are registered now, those of plugins too. Called only when torch is loaded, because
        before that no plugin can have registered anything.
    low, high : float, optional
        Inclusive range of its numbers.
    each : tuple of type
        Types of a list's elements; empty: any.
    each_low : float, optional
        Smallest element.
    nonempty : bool
        Whether a list needs an element.
    """

    name: str
    types: tuple[type, ...]
    help: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    optional: bool = False
    choices: tuple[str, ...] = ()
    registry: Callable[[], Collection[str]] | None = None
    low: float | None = None
    high: float | None = None
    each: tuple[type, ...] = ()
    each_low: float | None = None
    nonempty: bool = False

    @property
    def type_text(self) -> str:
        """The types in words, such as ``int or list of int``."""
        words = [_word(kind) for kind in self.types] or ["any"]
        if self.each and list in self.types:
            words[self.types.index(list)] = f"list of {' or '.join(map(_word, self.each))}"
        return " or ".join(words)

    @property
    def expected_text(self) -> str:
        """The types as a message says them, such as ``a whole number or a list of whole numbers``."""
        nouns = [_NOUNS.get(kind, (kind.__name__, ""))[0] for kind in self.types]
        if self.each and list in self.types:
            elements = " or ".join(_NOUNS[kind][1] for kind in self.each)
            nouns[self.types.index(list)] = f"a list of {elements}"
        return " or ".join(sorted(nouns, key=lambda noun: noun.startswith("a list")))

    @property
    def range_text(self) -> str:
        """The range in words, such as ``0 to 1``; empty if there is none."""
        if self.low is None and self.high is None:
            return ""
        if self.high is None:
            return f"at least {_number(self.low)}"
        return f"at most {_number(self.high)}" if self.low is None else f"{_number(self.low)} to {_number(self.high)}"

    def check(self, value: Any, called: str) -> None:
        """Refuse a value that this key cannot have.

        Parameters
        ----------
        value : object
            The value.
        called : str
            How the message names the key, for example "gamma in mine.yaml".

        Raises
        ------
        AdaRecError
            For a wrong type, a number out of range, or an unknown name.
        """
        if value is None and self.optional:
            return
        if self.types and not _is_a(value, self.types):
            raise AdaRecError(f"{called} is {value!r}, expected {self.expected_text}")
        if _is_number(value):
            self._check_range(value, called)
        elif isinstance(value, list) and self.types:
            self._check_list(value, called)
        if self.choices and isinstance(value, str):
            self._check_name(value, called, "value")

    def _check_range(self, value: float, called: str) -> None:
        low, high = self.low, self.high
        outside = (low is not None and value < low) or (high is not None and value > high)
        if math.isnan(value) or math.isinf(value) or outside:
            bounds = self.range_text or "a finite number"
            if low is not None and high is not None:
                bounds = f"between {_number(low)} and {_number(high)}"
            raise AdaRecError(f"{called} is {value!r}, expected {bounds}")

    def _check_list(self, values: list[Any], called: str) -> None:
        if self.nonempty and not values:
            raise AdaRecError(f"{called} is empty, expected at least one {self.name.rstrip('s').replace('_', ' ')}")
        for value in values:
            wrong = bool(self.each) and not _is_a(value, self.each)
            small = self.each_low is not None and _is_number(value) and not self.each_low <= value < math.inf
            if wrong or small:
                least = "" if self.each_low is None else f" of at least {_number(self.each_low)}"
                raise AdaRecError(f"{called} is {values!r}, expected {self.expected_text}{least}")
            if self.choices and isinstance(value, str):
                self._check_name(value, called, self.name.rstrip("s"))

    def _check_name(self, value: str, called: str, noun: str) -> None:
        known: Collection[str] = self.choices
        if value not in known and self.registry is not None and "torch" in sys.modules:
            known = self.registry()
        if value not in known:
            own = "; one of your own is loaded with --plugins= (load_plugins in Python)" if self.registry else ""
            hint = nearest_hint(value, known) if len(known) > 3 else ""
            raise AdaRecError(f"{called}: unknown {noun} {value!r}{hint}; known are {', '.join(known)}{own}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: float | None) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _is_a(value: Any, types: tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        return bool in types
    return isinstance(value, types) or (float in types and isinstance(value, int))


def _word(kind: type) -> str:
    return "number" if kind is float else kind.__name__
