"""Reads figures out of report.json and the records of the epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

DASH = "–"
METRIC_LABELS = {"ndcg": "NDCG", "recall": "Recall", "mrr": "MRR"}


def number_at(source: Any, *keys: str) -> float | None:
    """The number found by going down `keys`; None if there is none, or one that is no figure (NaN)."""
    for key in keys:
        source = source.get(key) if isinstance(source, Mapping) else None
    if isinstance(source, bool) or not isinstance(source, Real) or not math.isfinite(source):
        return None
    return float(source)


def format_number(value: float | None, style: str) -> str:
    return DASH if value is None else style.format(value)


def short_number(value: float) -> str:
    """A large number with three digits or so: 20.0M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.1f}{unit}"
    return f"{value:.0f}"


def report_models(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(report.get("models") or [])


def metric_keys(report: Mapping[str, Any]) -> list[str]:
    """NDCG, recall and MRR at the first k that any of them was measured at, as far as they are there."""
    keys = list(dict.fromkeys(key for model in report_models(report) for key in model.get("test") or {}))
    ours = [key for key in keys if key.partition("@")[0].lower() in METRIC_LABELS]
    if not ours:
        return []
    k = ours[0].partition("@")[2]
    of_metric = {key.partition("@")[0].lower(): key for key in ours if key.partition("@")[2] == k}
    return [of_metric[name] for name in METRIC_LABELS if name in of_metric]


def metric_label(key: str) -> str:
    name, _, k = key.partition("@")
    return f"{METRIC_LABELS[name.lower()]}@{k}"


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def epoch_records(history: Mapping[str, Any], stage: str) -> list[Mapping[str, Any]]:
    return list(history.get(stage) or [])


def epoch_number(record: Mapping[str, Any], position: int) -> int:
    """Epochs are counted from 1 for people."""
    return int(record.get("epoch", position)) + 1


def epoch_series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[Any]]:
    """Epochs that have `key`, and its values."""
    found = [(epoch_number(record, k), record[key]) for k, record in enumerate(records) if record.get(key) is not None]
    return [epoch for epoch, _ in found], [value for _, value in found]
