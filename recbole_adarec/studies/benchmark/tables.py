"""Tables of the benchmark, one for each part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

from tabulate import tabulate

Measurements = dict[str, Any]  # nested; names end in units, a value is a number or a median with its quartiles


def _text(value: Any) -> str:
    """A number, or a median with its quartiles, as text."""
    if isinstance(value, dict):
        spread = f" ({_text(value['q1'])} to {_text(value['q3'])})" if value["n"] > 1 else ""
        return _text(value["median"]) + spread
    return value if isinstance(value, str) else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(title: str, header: str, rows: Sequence[Sequence[Any]], note: str) -> str:
    """A title, a table and a note; ``|`` separates the headings, the first column holds text and the others numbers."""
    names, cells = [name.strip() for name in header.split("|")], [[_text(value) for value in row] for row in rows]
    align = ["left"] + ["right"] * (len(names) - 1)
    return f"{title}\n\n{tabulate(cells, names, tablefmt='github', disable_numparse=True, colalign=align)}\n\n{note}"


def _teacher_table(result: Measurements) -> str:
    rows = []
    for name, label in (("ours", "AdaRecTeacher (NextItNet)"), ("recbole", "RecBole's NextItNet"),
                        ("recbole_without_anomaly_detection", "the same, no anomaly detection")):  # fmt: skip
        row = result[name]
        sizes = [row["parameters"]["layers"], row["parameters"]["total"], row["batch_targets"]]
        rows.append([label, *sizes, row["targets_per_s"], "" if name == "ours" else row["ours_against_it"]])
    note = (
        f"Speed-up: of AdaRecTeacher against that model. Its epoch, estimated from batches: "
        f"{_text(result['ours']['epoch_s'])} s. Medians (quartiles)."
    )
    header = "| layer params | params | targets/batch | targets/s | speed-up"
    return _table("Teacher training", header, rows, note)


def _search_table(result: Measurements) -> str:
    rows, sides = [], [result["weights"], result["alpha"]]
    for part in dict.fromkeys(chain(*(side["parts_ms"] for side in sides))):
        row = [part]
        for side in sides:
            ms = side["parts_ms"].get(part)
            whole = sum(value["median"] for value in side["parts_ms"].values())
            row += ["–", "–"] if ms is None else [ms, f"{ms['median'] / whole:.1%}"]
        rows.append(row)
    rows.sort(key=lambda row: row[0] == "rest")
    rows.append(["whole step, no stopwatch", sides[0]["step_ms"], "", sides[1]["step_ms"], ""])
    epoch = result["epoch"]
    note = (
        f"A batch of {result['batch_targets']:,} targets, mean of a step of w and one of α with its own batch: "
        f"{_text(result['batch_ms'])} ms, with the stopwatch {_text(result['batch_with_stopwatch_ms'])} ms.\n"
        f"An epoch, estimated from batches: search {_text(epoch['search_s'])} s, student "
        f"{_text(epoch['student_s'])} s, ratio {_text(epoch['ratio'])}."
    )
    return _table("Search step", "part | step of w, ms | share | step of α, ms | share", rows, note)


def _inference_table(result: Measurements) -> str:
    keys = ("batch_1_p50_ms", "batch_1_p99_ms", "batch_256_ms", "sequences_per_s")
    models = {name: result[name] for name in ("teacher", "student")}
    rows = [[name, row["parameters"]["layers"], *(row[key] for key in keys)] for name, row in models.items()]
    note = (
        f"Student against teacher: latency of one request {_text(result['batch_1_p50_ratio'])} times lower, batches "
        f"{_text(result['batch_256_ratio'])} times faster."
    )
    header = "untrained model | layer params | batch 1 p50, ms | p99, ms | batch 256, ms | sequences/s"
    return _table("Inference", header, rows, note)


def _growth_table(cells: list[Measurements]) -> str:
    rows = []
    for cell in cells:
        stages = [cell["teacher"], cell["search"]]
        medians = [stage[key]["median"] for stage in stages for key in ("epoch_s", "us_per_target")]
        loss = "/".join(dict.fromkeys(stage["item_loss"] for stage in stages))
        sizes = [cell["interactions"], cell["catalog"], loss, cell["load_s"]]
        rows.append([*sizes, *medians, stages[1]["prepare_s"], max(cell["peak_mb"].values())])
    header = "interactions | items | item loss | load, s | teacher, s | µs/target | search, s | µs/target"
    header += " | preparation, s | peak MB"
    note = (
        "Epochs are estimated: median time of a target over some tens of batches, times the targets; without "
        "evaluation.\nPreparation: the teacher is loaded and encodes every window once. Peak: of the whole process."
    )
    return _table("Growth on synthetic data: an epoch of teacher and search", header, rows, note)


def _ranking_table(result: Measurements) -> str:
    rows = [[name, result[key]] for name, key in (("all items scored", "full_ms"), ("blocks skipped", "bounded_ms"))]
    note = (
        f"{result['catalog']:,} items, the same ten best: {_text(result['ratio'])} times faster, "
        f"{100 * result['scored']['median']:.1f} % of the items scored."
    )
    return _table("Ten best items, adaptive item table, one request", "untrained table | ms", rows, note)


TABLES: Mapping[str, Callable[[Any], str]] = {
    "teacher": _teacher_table,
    "search": _search_table,
    "inference": _inference_table,
    "growth": _growth_table,
    "ranking": _ranking_table,
}
