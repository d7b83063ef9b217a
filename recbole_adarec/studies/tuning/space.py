"""Search spaces of tuning: read, checked and drawn from."""

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

_BOUNDS = {"uniform": 2, "quniform": 3, "loguniform": 2}
Space = dict[str, dict[str, list[Any]]]
Params = dict[str, Any]


def read_space(name: str | Path) -> Space:
    """A space of keys from a file: RecBole's lines ``key type values``, or YAML, ``type: {key: values}``.

    Types are RecBole's: ``choice``, ``uniform``, ``quniform`` and ``loguniform``, whose bounds are logarithms. Nothing
    is evaluated.

    Raises
    ------
    AdaRecError
        If the file is missing, or a line says something else.
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
    """RecBole's lists are Python's; bare words are no Python, and read as YAML."""
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return _value(text)


def check_space(space: Mapping[str, Any], where: str) -> Space:
    """The same space, refused in one line where it says nothing that can be drawn."""
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
    keys = [key for of_kind in space.values() for key in of_kind]
    if not keys:
        raise AdaRecError(f"{where} holds no key to tune")
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise AdaRecError(f"{where}: {twice} is given twice")
    return {kind: dict(of_kind) for kind, of_kind in space.items()}


def _is_range(values: Any, length: int) -> bool:
    """Whether these are two numbers, the lower first, and a step above 0 where there is a third."""
    if not isinstance(values, list) or len(values) != length:
        return False
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return False
    return values[0] < values[1] and min(values[2:], default=1) > 0


def draw(space: Space, algo: str, number: int, seed: int) -> list[Params]:
    """Parameters of all trials at once: the whole grid, or `number` random draws.

    The first draws of a longer study are those of a shorter one.
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
            at = rng.uniform(values[0], values[1])
            drawn[key] = {"loguniform": math.exp(at), "quniform": round(at / values[-1]) * values[-1]}.get(kind, at)
    return drawn


def as_params(space: Space, drawn: Mapping[str, Any]) -> Params:
    """What was drawn, in plain values: lists where hyperopt gives tuples, whole numbers where the step is whole."""
    params = plain(dict(drawn))
    for key, (*_, step) in space.get("quniform", {}).items():
        if key in params and float(step).is_integer() and float(params[key]).is_integer():
            params[key] = int(params[key])
    return dict(params)


def single_values(space: Space) -> Iterator[tuple[str, Any]]:
    """Every choice of every key, and both bounds of the others: what no run takes is refused before any is begun."""
    for kind, keys in space.items():
        for key, values in keys.items():
            for value in values if kind == "choice" else values[:2]:
                yield key, as_params(space, {key: math.exp(value) if kind == "loguniform" else value})[key]
