"""The report of a run as text: tables and sentences for the terminal, for report.md and for the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from tabulate import tabulate

from recbole_adarec.model.search_space.cell import live_edges
from recbole_adarec.report.records import (
    DASH,
    epoch_records,
    epoch_series,
    format_number,
    metric_keys,
    metric_label,
    number_at,
    plural,
    report_models,
    short_number,
)

GLOSSARY = (
    "NDCG, Recall and MRR: on the test data. "
    "Layer parameters: all trainable parameters except those of the item table. "
    "kB: the weights as the model file stores them, 1,000 bytes each. "
    "MACs: multiply-accumulates of scoring all items for one sequence, in matrix products and convolutions "
    "(k, M, G: thousands, millions, billions). "
    "p50: median time of a request with one sequence. "
    "Sequences/s, seq/s: throughput of batches. "
    f"{DASH}: not measured. "
    "All figures are of one run with one seed; small differences between models can be chance."
)
MAX_TABLE_EPOCHS = 20


def comparison_table(report: Mapping[str, Any], fmt: str = "github") -> str:
    """The table of all models, and below it the student in multiples of the teacher.

    Parameters
    ----------
    report : mapping
        Content of report.json.
    fmt : str
        A table format of tabulate.

    Returns
    -------
    str
        Table, empty line, ratios. A dash stands for what was not measured.
    """
    return "\n\n".join(part for part in (models_table(report, fmt), student_ratios(report)) if part)


def report_markdown(report: Mapping[str, Any], training_logs: Mapping[str, Any]) -> str:
    """The report as Markdown, the content of report.md.

    Parameters
    ----------
    report : mapping
        Content of report.json.
    training_logs : mapping of str to sequence
        Records of the epochs of each stage; a stage may be missing.

    Returns
    -------
    str
        Comparison, times, architecture, search and layer weights.
    """
    cells = "\n\n".join(
        f"{title}:\n\n" + "\n".join(f"    {line}" for line in lines) for title, lines in cell_formulas(report)
    )
    if "architecture" not in report:  # a RecBole model alone
        heading = f"# {report_models(report)[0]['name']} on {report.get('dataset') or DASH}, seed {report.get('seed')}"
        parts = [heading, comparison_table(report), "## Stages", stages_table(report, "github"), "## Units", GLOSSARY]
        return "\n\n".join(parts) + "\n"
    parts = [
        f"# AdaRec on {report.get('dataset') or DASH}, seed {format_number(number_at(report, 'seed'), '{:.0f}')}",
        comparison_table(report),
        str(report.get("teaching") or ""),
        "## Stages",
        stages_table(report, "github"),
        *(["## Teacher", table] if (table := teachers_table(report, "github")) else []),
        *(["## Shorter histories", table] if (table := histories_table(report, "github")) else []),
        "## Architecture",
        architecture_summary(report),
        cells,
        "## Search",
        search_summary(report),
        candidates_table(report, "github"),
        "## Teacher layer weights",
        weights_table(training_logs) or "No layer weights were recorded.",
        "## Units",
        GLOSSARY,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], fmt: str, left: int) -> str:
    """A table of cells that are text already.

    Parameters
    ----------
    header : sequence of str
        Headings of the columns.
    rows : sequence of sequence of str
        Cells.
    fmt : str
        A table format of tabulate.
    left : int
        How many columns, from the first, are aligned left; the others hold numbers and are aligned right.
    """
    if fmt in ("github", "pipe"):
        rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    align = ["left"] * left + ["right"] * (len(header) - left)
    return str(tabulate(rows, header, tablefmt=fmt, disable_numparse=True, colalign=align))


def models_table(report: Mapping[str, Any], fmt: str) -> str:
    """A row for each model: test metrics, parameters, stored bytes, MACs, latency and throughput."""
    # A terminal has about 120 columns; in a page the headings wrap.
    brief = fmt != "html"
    columns: list[tuple[str, tuple[str, ...], Callable[[float], str]]] = [
        *(
            (metric_label(key) if brief else f"test {metric_label(key)}", ("test", key), "{:.4f}".format)
            for key in metric_keys(report)
        ),
        ("layer params" if brief else "layer parameters", ("parameters", "layers"), "{:,.0f}".format),
        *([] if brief else [("all parameters", ("parameters", "total"), "{:,.0f}".format)]),
        ("kB" if brief else "weights, kB", ("weights_bytes",), lambda size: f"{size / 1000:,.0f}"),
        ("MACs", ("macs_per_sequence",), short_number),
        ("p50 ms" if brief else "latency p50, ms", ("latency_ms", "batch_1_p50"), "{:.2f}".format),
        ("seq/s" if brief else "sequences/s", ("sequences_per_second",), "{:,.0f}".format),
    ]
    rows = []
    for model in report_models(report):
        values = [(number_at(model, *keys), style) for _, keys, style in columns]
        names = [str(model.get(key) or DASH) for key in ("name", "kind")]
        rows.append(names + [DASH if value is None else style(value) for value, style in values])
    if not rows:
        return "No model was measured."
    return text_table(["model", "kind", *(heading for heading, _, _ in columns)], rows, fmt, left=2)


def student_ratios(report: Mapping[str, Any]) -> str:
    """Sentences with the student in multiples of the teacher, for all that both were measured at.

    Returns
    -------
    str
        Empty if the report has no teacher or no student.
    """
    by_name = {model.get("name"): model for model in report_models(report)}
    teacher, student = by_name.get("teacher"), by_name.get("student")
    if teacher is None or student is None:
        return ""

    def ratio(keys: tuple[str, ...], less: str, more: str, noun: str) -> str | None:
        return _ratio_phrase(number_at(teacher, *keys), number_at(student, *keys), less, more, noun)

    first = [
        _accuracy_ratio(teacher, student, metric_keys(report)),
        ratio(("parameters", "layers"), "fewer", "more", "layer parameters"),
        ratio(("parameters", "total"), "fewer", "more", "parameters in all"),
        ratio(("weights_bytes",), "fewer", "more", "bytes of weights"),
        ratio(("latency_ms", "batch_1_p50"), "lower", "higher", "batch-1 latency"),
    ]
    second = [
        ratio(("macs_per_sequence",), "fewer", "more", "MACs"),
        ratio(("sequences_per_second",), "fewer", "more", "sequences per second"),
    ]
    sentences = [
        f"{opening}: {', '.join(measured)}."
        for opening, phrases in (("Student against teacher", first), ("Per sequence and in batches", second))
        if (measured := [phrase for phrase in phrases if phrase])
    ]
    return " ".join(sentences) or "Student against teacher: no figure was measured for both."


def _accuracy_ratio(teacher: Mapping[str, Any], student: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    """Such as "test NDCG@10 x1.02", by the first metric that both have; None if there is none."""
    for key in keys:
        before, after = number_at(teacher, "test", key), number_at(student, "test", key)
        if before and after is not None:
            return f"test {metric_label(key)} x{after / before:.2f}"
    return None


def _ratio_phrase(before: float | None, after: float | None, less: str, more: str, noun: str) -> str | None:
    """Such as "3.4 times lower latency"; None if a number is missing or the teacher's is 0."""
    if before is None or after is None or before <= 0 or after < 0:
        return None
    if after == 0:
        return f"no {noun} at all" if less == "fewer" else None
    ratio, word = (before / after, less) if before > after else (after / before, more)
    # "1.0 times fewer" would read as a difference where there is next to none.
    return f"{ratio:,.1f} times {word} {noun}" if ratio >= 1.05 else f"{noun} equal within 5 %"


def stages_table(report: Mapping[str, Any], fmt: str) -> str:
    """A row for each stage: seconds and epochs; the last row is the sum if every stage was timed."""
    stages = report.get("stages") or {}
    rows = [
        [
            str(name),
            format_number(number_at(stage, "seconds"), "{:,.1f}"),
            format_number(number_at(stage, "epochs"), "{:.0f}"),
        ]
        for name, stage in stages.items()
        if stage
    ]
    seconds = [number_at(stage, "seconds") for stage in stages.values() if stage]
    if rows and None not in seconds:
        rows.append(["total", f"{sum(filter(None, seconds)):,.1f}", ""])
    return text_table(["stage", "seconds", "epochs"], rows, fmt, left=1) if rows else "No stage was timed."


def teachers_table(report: Mapping[str, Any], fmt: str) -> str:
    """A row for each candidate for the teacher; empty where there was one backbone."""
    columns: list[tuple[str, tuple[str, ...], str]] = [
        ("epochs", ("epochs",), "{:.0f}"),
        ("seconds", ("seconds",), "{:,.1f}"),
        ("log-likelihood", ("log_likelihood",), "{:.4f}"),
        ("temperature", ("temperature",), "{:.2f}"),
        ("weight", ("weight",), "{:.3f}"),
        *(
            (f"{part} {metric_label(metric)}", (key, metric), "{:.4f}")
            for metric in metric_keys(report)[:1]
            for part, key in (("validation", "valid"), ("test", "test"))
        ),
    ]
    rows = []
    for row in report.get("teacher_candidates") or []:
        became = "member" if row.get("dropped") is None else f"dropped {row['dropped']}"
        numbers = [format_number(number_at(row, *keys), style) for _, keys, style in columns]
        rows.append([str(row.get("name") or DASH), became, *numbers])
    return text_table(["candidate", "", *(heading for heading, _, _ in columns)], rows, fmt, left=2) if rows else ""


def histories_table(report: Mapping[str, Any], fmt: str) -> str:
    """A row for each number of items that are read of a history; empty where no shorter one was tried."""
    names = ("teacher", "student")
    rows = [
        [
            format_number(number_at(row, "length"), "{:.0f}"),
            *(format_number(number_at(row, "ndcg", name), "{:.4f}") for name in names),
            *(short_number(value) if (value := number_at(row, "macs", name)) is not None else DASH for name in names),
        ]
        for row in report.get("histories") or []
    ]
    header = ["items read"] + [f"{name} {what}" for what in ("validation NDCG@10", "MACs") for name in names]
    return text_table(header, rows, fmt, left=0) if rows else ""


def architecture_summary(report: Mapping[str, Any]) -> str:
    """Sentences with the size of the architecture and how many edges have each operation."""
    architecture = report.get("architecture") or {}
    cells, counts = architecture.get("cells") or [], architecture.get("operations") or {}
    if not cells:
        return "No architecture was recorded."
    listed = ", ".join(f"{name} {format_number(number_at(counts, name), '{:.0f}')}" for name in counts)
    repeats = number_at(architecture, "repeats") or 1
    times = "" if repeats == 1 else f" applied {plural(int(repeats), 'time')}, with norms of their own"
    return (
        f"{plural(len(cells), 'cell')} of {plural(len(cells[0]), 'node')}{times}, hidden size "
        f"{format_number(number_at(architecture, 'hidden_size'), '{:.0f}')}. Edges by operation: {listed or DASH}. "
        "A node is the sum of its operations on earlier nodes; edges that contribute nothing are left out."
    )


def cell_formulas(report: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """The cells as formulas.

    Returns
    -------
    list of (str, list of str)
        Title and lines of each cell; equal cells that follow each other are one entry.
    """
    cells = (report.get("architecture") or {}).get("cells") or []
    entries: list[tuple[str, list[str]]] = []
    number = 1
    for cell, equal in groupby(cells):
        last = number + len(list(equal)) - 1
        title = f"Cell {number}" if last == number else f"Cells {number} to {last} (x{last - number + 1})"
        entries.append((title, _cell_lines(cell)))
        number = last + 1
    return entries


def _cell_lines(cell: Sequence[Sequence[str]]) -> list[str]:
    """A cell as formulas: ``node 2 = skip(input) + conv_3(node 1)``."""
    live = iter(live_edges([name for node in cell for name in node], len(cell)))
    lines = []
    for j, node in enumerate(cell, 1):
        terms = [f"{name}({f'node {i}' if i else 'input'})" for i, name in enumerate(node) if next(live)]
        lines.append(f"node {j} = {' + '.join(terms) or 'nothing'}")
    return lines


def search_summary(report: Mapping[str, Any]) -> str:
    """Sentences on the result of the search: how far α moved, its highest probabilities, temperature and cost."""
    search = (report.get("architecture") or {}).get("search")
    if not search:
        return "The architecture was given, not searched."
    changed = number_at(search, "changed_edges")
    budget = number_at(search, "cost_budget")
    return (
        f"α moved {format_number(number_at(search, 'alpha_moved'), '{:.2f}')} from its random start (0: not at all, 1: "
        "entirely; mean total variation distance over the edges). "
        f"{format_number(None if changed is None else 100 * changed, '{:.0f} %')} of the edges ended with another most "
        "probable operation than they started with. "
        f"The most probable operation of an edge has probability "
        f"{format_number(number_at(search, 'alpha_max_probability'), '{:.2f}')} on average; "
        f"the temperature ended at {format_number(number_at(search, 'temperature'), '{:.2f}')}. "
        f"The architecture costs {format_number(number_at(search, 'cost'), '{:.3f}')} of the teacher's layers in "
        f"{search.get('cost_kind') or 'an unknown unit'} (budget: {format_number(budget, '{:.3f}')})."
    )


def candidates_table(report: Mapping[str, Any], fmt: str) -> str:
    """A row for each architecture that validation chose from; empty if there was no choice."""
    rows = []
    for row in ((report.get("architecture") or {}).get("search") or {}).get("candidates") or []:
        counts = row.get("operations") or {}
        operations = ", ".join(f"{format_number(number_at(counts, name), '{:.0f}')} {name}" for name in counts)
        measures = [format_number(number_at(row, f"{stage}_log_likelihood"), "{:.4f}") for stage in ("valid", "final")]
        size = number_at(row, "weights_bytes")
        measures.append(format_number(None if size is None else size / 1000, "{:,.0f}"))
        measures.append(format_number(number_at(row, "worse_p"), "{:.3f}"))
        shape = format_number(number_at(row, "hidden_size"), "{:.0f}")
        if (repeats := number_at(row, "repeats") or 1) > 1:
            shape += f", {repeats:.0f} times"
        rows.append([shape, operations, *measures])
    headers = [
        "hidden size",
        "operations of the candidate",
        "validation log-likelihood",
        "finalists, trained longer",
        "kB",
        "p that it is as good as the best",
    ]
    return text_table(headers, rows, fmt, left=2) if rows else ""


def weights_table(training_logs: Mapping[str, Any]) -> str:
    """The weights of the teacher's layers after each epoch, as Markdown.

    Parameters
    ----------
    training_logs : mapping of str to sequence
        Records of the epochs of each stage.

    Returns
    -------
    str
        Empty if no weights were recorded. Of a stage with more than `MAX_TABLE_EPOCHS` epochs as many rows, evenly
        spread from the first epoch to the last.
    """
    rows, notes = [], ""
    for stage in ("search", "student"):
        epochs, weights = epoch_series(epoch_records(training_logs, stage), "teacher_layer_weights")
        chosen = list(range(len(epochs)))
        if len(epochs) > MAX_TABLE_EPOCHS:
            chosen = sorted(set(np.linspace(0, len(epochs) - 1, MAX_TABLE_EPOCHS).round().astype(int).tolist()))
            notes = f"\n\n{MAX_TABLE_EPOCHS} epochs of each longer stage; report.html shows all."
        rows += [[stage, str(epochs[k]), *(f"{weight:.3f}" for weight in weights[k])] for k in chosen]
    if not rows:
        return ""
    layers = max(map(len, rows)) - 2
    header = ["stage", "epoch", *(f"layer {layer}" for layer in range(1, layers + 1))]
    rows = [row + [DASH] * (len(header) - len(row)) for row in rows]
    return text_table(header, rows, "github", left=1) + notes
