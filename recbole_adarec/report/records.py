"""Reads numbers out of report.json and out of the training logs of the stages, and formats them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

DASH = "–"
METRIC_LABELS = {"ndcg": "NDCG", "recall": "Recall", "mrr": "MRR"}


def number_at(source: Any, *keys: str) -> float | None:
    """The number at a path of keys, such as ``number_at(model, "parameters", "layers")``.

    Parameters
    ----------
    source : mapping
        Nested mappings.
    *keys : str
        The path.

    Returns
    -------
    float or None
        None if the path does not exist, or leads to something that is not a finite number.
    """
    for key in keys:
        source = source.get(key) if isinstance(source, Mapping) else None
    if isinstance(source, bool) or not isinstance(source, Real) or not math.isfinite(source):
        return None
    return float(source)


def format_number(value: float | None, style: str) -> str:
    """A number in a format such as ``{:.4f}``; None is a dash."""
    return DASH if value is None else style.format(value)


def short_number(value: float) -> str:
    """A number with a unit prefix and one decimal place, such as 20.0M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.1f}{unit}"
    return f"{value:.0f}"


def plural(number: int, noun: str) -> str:
    """A count and its noun, such as "2 cells"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def report_models(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries of the models in report.json."""
    return list(report.get("models") or [])


def metric_keys(report: Mapping[str, Any]) -> list[str]:
    """Keys of NDCG, recall and MRR at the first k of the report, such as ``ndcg@10``; missing metrics are left out."""
    keys = list(dict.fromkeys(key for model in report_models(report) for key in model.get("test") or {}))
    known = [key for key in keys if key.partition("@")[0].lower() in METRIC_LABELS]
    if not known:
        return []
    k = known[0].partition("@")[2]
    keys_at_k = {key.partition("@")[0].lower(): key for key in known if key.partition("@")[2] == k}
    return [keys_at_k[name] for name in METRIC_LABELS if name in keys_at_k]


def metric_label(key: str) -> str:
    """The heading of a metric: ``ndcg@10`` is NDCG@10."""
    name, _, k = key.partition("@")
    return f"{METRIC_LABELS[name.lower()]}@{k}"


def epoch_records(training_logs: Mapping[str, Any], stage: str) -> list[Mapping[str, Any]]:
    """Records of the epochs of a stage; empty if the stage has none."""
    return list(training_logs.get(stage) or [])


def epoch_number(record: Mapping[str, Any], position: int) -> int:
    """The number of an epoch, counted from 1; records count from 0, `position` is used where they have no number."""
    return int(record.get("epoch", position)) + 1


def epoch_series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[Any]]:
    """The values of a key over the epochs that recorded it.

    Parameters
    ----------
    records : sequence of mapping
        Records of the epochs of one stage.
    key : str
        Such as ``loss`` or ``alpha``.

    Returns
    -------
    epochs : list of int
        Numbers of the epochs, counted from 1.
    values : list
        A value for each of them.
    """
    series = [(epoch_number(record, k), record[key]) for k, record in enumerate(records) if record.get(key) is not None]
    return [epoch for epoch, _ in series], [value for _, value in series]
