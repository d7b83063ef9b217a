"""Search spaces of tuning: reads, checks and draws from them."""

from __future__ import annotations

import itertools
import math
from ast import literal_eval
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recbole_adarec.errors import AdaRecError
from recbole_adarec.storage.files import plain
from recbole_adarec.storage.properties import find_file
from recbole_adarec.storage.yaml_files import load_yaml, parse_value

_BOUNDS = {"uniform": 2, "quniform": 3, "loguniform": 2}  # numbers that a range of each type has
Space = dict[str, dict[str, list[Any]]]  # type to key to values
Params = dict[str, Any]  # key to the value of a trial


def read_space(name: str | Path) -> Space:
    """The search space of a file: RecBole's lines ``key type values``, or YAML ``type: {key: values}``.

    Types are RecBole's: ``choice``, ``uniform``, ``quniform`` (low, high, step) and ``loguniform``, whose bounds are
    natural logarithms. Values are parsed, never evaluated.

    Parameters
    ----------
    name : path-like
        A file in the current folder, or else in properties/.

    Returns
    -------
    dict
        Type to key to values.

    Raises
    ------
    AdaRecError
        If the file is missing, or a line has another form.
    """
    path = find_file(name, "params_file")
    if path.suffix in (".yaml", ".yml"):
        space = load_yaml(path)
    else:
        space = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            key, kind, text = [*line.split(maxsplit=2), "", ""][:3]
            values = _values(text) if kind == "choice" else [_value(bound) for bound in text.split(",")]
            space.setdefault(kind, {})[key] = values
    return check_space(space, str(path))


def _value(text: str) -> Any:
    return parse_value(text.strip())


def _values(text: str) -> Any:
    """A list as RecBole writes it: a Python literal, or YAML if its words have no quotes."""
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return _value(text)


def check_space(space: Mapping[str, Any], where: str) -> Space:
    """A copy of a space whose types and values have been checked.

    Parameters
    ----------
    space : mapping
        Type to key to values.
    where : str
        Name of the file, for the error message.

    Raises
    ------
    AdaRecError
        For an unknown type, values that cannot be drawn from, a key that stands twice, or no key.
    """
    for kind, keys in space.items():
        if kind not in ("choice", *_BOUNDS):
            raise AdaRecError(f"{where}: unknown type {kind!r}; known are choice, {', '.join(_BOUNDS)}")
        if not isinstance(keys, dict):
            raise AdaRecError(f"{where}: {kind} holds {keys!r}, expected key: values")
        for key, values in keys.items():
            if kind == "choice":
                if not isinstance(values, list) or not values:
                    raise AdaRecError(f"{where}: {key} is {values!r}, expected a list of values to choose from")
                continue
            if not _is_range(values, _BOUNDS[kind]):
                wanted = "low, high, step" if kind == "quniform" else "low, high"
                raise AdaRecError(f"{where}: {key} is {values!r}, expected {kind} of {wanted}, low below high")
    keys = [key for keys_of_kind in space.values() for key in keys_of_kind]
    if not keys:
        raise AdaRecError(f"{where} holds no key to tune")
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise AdaRecError(f"{where}: {twice} is given twice")
    return {kind: dict(keys_of_kind) for kind, keys_of_kind in space.items()}


def _is_range(values: Any, length: int) -> bool:
    """Whether these are two numbers, the lower one first, and a step above 0 if there are three."""
    if not isinstance(values, list) or len(values) != length:
        return False
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return False
    return values[0] < values[1] and min(values[2:], default=1) > 0


def draw(space: Space, algo: str, number: int, seed: int) -> list[Params]:
    """The parameters of all trials; a longer study starts with the draws of a shorter one.

    Parameters
    ----------
    space : dict
        What `read_space` returned.
    algo : str
        ``exhaustive``: the grid of a space of choices. ``random``: random draws.
    number : int
        Trials at most.
    seed : int
        Seed of the draws.
    """
    if algo == "exhaustive":
        choices = space["choice"]
        return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())][:number]
    rng = np.random.default_rng(seed)
    return [as_params(space, _draw_once(space, rng)) for _ in range(number)]


def _draw_once(space: Space, rng: np.random.Generator) -> Params:
    drawn: Params = {}
    for kind, keys in space.items():
        for key, values in keys.items():
            if kind == "choice":
                drawn[key] = values[rng.integers(len(values))]
                continue
            value = rng.uniform(values[0], values[1])
            if kind == "loguniform":
                value = math.exp(value)
            elif kind == "quniform":
                value = round(value / values[-1]) * values[-1]
            drawn[key] = value
    return drawn


def as_params(space: Space, drawn: Mapping[str, Any]) -> Params:
    """Drawn parameters as plain values: lists instead of hyperopt's tuples, integers where the step is an integer.

    Parameters
    ----------
    space : dict
        What `read_space` returned.
    drawn : mapping
        Key to value.
    """
    params = plain(dict(drawn))
    for key, (*_, step) in space.get("quniform", {}).items():
        if key in params and float(step).is_integer() and float(params[key]).is_integer():
            params[key] = int(params[key])
    return dict(params)


def values_to_check(space: Space) -> Iterator[tuple[str, Any]]:
    """Key and value of every choice and of both bounds of every range, to be checked before the first trial starts."""
    for kind, keys in space.items():
        for key, values in keys.items():
            for value in values if kind == "choice" else values[:2]:
                yield key, as_params(space, {key: math.exp(value) if kind == "loguniform" else value})[key]
