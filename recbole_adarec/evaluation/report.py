"""What a run found, for people: a table for the terminal, a Markdown file and a page with figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import groupby
from numbers import Real
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.io import to_html
from tabulate import tabulate

from recbole_adarec.model.architecture import edges
from recbole_adarec.model.cell import live_edges

DASH = "–"
METRICS = {"ndcg": "NDCG", "recall": "Recall", "mrr": "MRR"}
STAGES = ("teacher", "search", "student")
LOSSES = {
    "loss": "total",
    "alpha_loss": "total, users of α",
    "ce": "cross entropy",
    "output": "output",
    "embedding": "embedding",
    "hidden": "hidden",
}
GLOSSARY = (
    "NDCG, Recall and MRR: on the test data. "
    "Layer parameters: all trainable parameters but the item table; params: with it. "
    "MACs: multiply-accumulates of scoring all items for one sequence, in matrix products and convolutions "
    "(k, M, G: thousands, millions, billions). "
    "p50: median time of a request with one sequence. "
    "Sequences/s, seq/s: throughput of batches. "
    f"{DASH}: not measured. "
    "All figures are of one run with one seed; small differences between models can be chance."
)
MAX_ALPHA_GROUPS = 4
MAX_TABLE_EPOCHS = 20

Panel = tuple[str, go.Figure]


def comparison_table(report: Mapping[str, Any], fmt: str = "github") -> str:
    """All models side by side, and below what the student saves and costs against the teacher.

    Parameters
    ----------
    report : mapping
        What report.json holds.
    fmt : str
        A table format of tabulate.

    Returns
    -------
    str
        Table, empty line, ratios. What was not measured is a dash.
    """
    return "\n\n".join(part for part in (_models_table(report, fmt), _ratios(report)) if part)


def markdown(report: Mapping[str, Any], history: Mapping[str, Any]) -> str:
    """The report as Markdown.

    Parameters
    ----------
    report : mapping
        What report.json holds.
    history : mapping
        Records of the epochs for each stage; a stage may be missing.

    Returns
    -------
    str
        Comparison, times, architecture, search and layer weights.
    """
    cells = "\n\n".join(
        f"{title}:\n\n" + "\n".join(f"    {line}" for line in lines) for title, lines in _cells_text(report)
    )
    if "architecture" not in report:  # a stock model alone
        heading = f"# {_models(report)[0]['name']} on {report.get('dataset') or DASH}, seed {report.get('seed')}"
        alone = [heading, comparison_table(report), "## Stages", _stages_table(report, "github"), "## Units", GLOSSARY]
        return "\n\n".join(alone) + "\n"
    parts = [
        f"# AdaRec on {report.get('dataset') or DASH}, seed {_text(_number(report, 'seed'), '{:.0f}')}",
        comparison_table(report),
        str(report.get("teaching") or ""),
        "## Stages",
        _stages_table(report, "github"),
        "## Architecture",
        _architecture_summary(report),
        cells,
        "## Search",
        _search_summary(report),
        _candidates_table(report, "github"),
        "## Teacher layer weights",
        _weights_table(history) or "No layer weights were recorded.",
        "## Units",
        GLOSSARY,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def html(report: Mapping[str, Any], history: Mapping[str, Any], operations: Sequence[str]) -> str:
    """The report as one page that needs no other file and no network.

    Parameters
    ----------
    report, history : mapping
        As in `markdown`.
    operations : sequence of str
        Names of the candidate operations in the order of the recorded alpha; empty without a search.

    Returns
    -------
    str
        A whole HTML document.
    """
    if report.get("models") and "architecture" not in report:
        title = escape(f"{_models(report)[0]['name']} on {report.get('dataset') or DASH}")
        alone: list[Any] = [
            PAGE_HEAD.format(title=title, style=STYLE),
            f"<header><h1>{title}</h1><p>Seed {report.get('seed')}</p></header>",
            *_section("Comparison", _scrolling(_models_table(report, "html"))),
            *_section("Stages", _scrolling(_stages_table(report, "html"))),
            f"<footer>{_paragraph(GLOSSARY)}</footer></main></body></html>\n",
        ]
        return _render(alone)
    title = f"AdaRec on {escape(str(report.get('dataset') or DASH))}"
    seed = _text(_number(report, "seed"), "{:.0f}")
    parts: list[Any] = [
        PAGE_HEAD.format(title=title, style=STYLE),
        f"<header><h1>{title}</h1><p>Teacher against searched student, seed {seed}</p></header>",
        *_section(
            "Comparison",
            _scrolling(_models_table(report, "html"))
            + _paragraph(_ratios(report))
            + _paragraph(str(report.get("teaching") or "")),
        ),
        *_section(
            "Accuracy against size",
            "",
            _one("", accuracy_figure(report)),
            "No model has both a test accuracy and a number of layer parameters above 0.",
            [_paragraph(_not_on_log_axis(report))],
        ),
        *_section("Stages", _scrolling(_stages_table(report, "html"))),
        *_section("Architecture", _paragraph(_architecture_summary(report)) + _cells_html(report)),
        *_section("Search", _paragraph(_search_summary(report)) + _scrolling(_candidates_table(report, "html"))),
        *_alpha_section(history, operations),
        *_transport_section(report, history),
        *_section(
            "Layer weights",
            _paragraph("Weight of each layer in the transport after each epoch: u of the student, v of the teacher."),
            layer_weight_figures(history),
            "No layer weights were recorded.",
        ),
        *_section(
            "Losses",
            _paragraph(
                "Mean over the batches of an epoch; output, embedding and hidden are the parts of distillation."
            ),
            loss_figures(history),
            "No losses were recorded.",
        ),
        f"<footer>{_paragraph(GLOSSARY)}</footer></main></body></html>\n",
    ]
    return _render(parts)


# ---------------------------------------------------------------------- figures of speech


def _number(source: Any, *keys: str) -> float | None:
    """The number found by going down `keys`; None if there is none, or one that is no figure (NaN)."""
    for key in keys:
        source = source.get(key) if isinstance(source, Mapping) else None
    if isinstance(source, bool) or not isinstance(source, Real) or not math.isfinite(source):
        return None
    return float(source)


def _text(value: float | None, style: str) -> str:
    return DASH if value is None else style.format(value)


def _short(value: float) -> str:
    """A large number with three digits or so: 20.0M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.1f}{unit}"
    return f"{value:.0f}"


def _models(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(report.get("models") or [])


def _metric_keys(report: Mapping[str, Any]) -> list[str]:
    """NDCG, recall and MRR at the first k that any of them was measured at, as far as they are there."""
    keys = list(dict.fromkeys(key for model in _models(report) for key in model.get("test") or {}))
    ours = [key for key in keys if key.partition("@")[0].lower() in METRICS]
    if not ours:
        return []
    k = ours[0].partition("@")[2]
    of_metric = {key.partition("@")[0].lower(): key for key in ours if key.partition("@")[2] == k}
    return [of_metric[name] for name in METRICS if name in of_metric]


def _metric_label(key: str) -> str:
    name, _, k = key.partition("@")
    return f"{METRICS[name.lower()]}@{k}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], fmt: str, left: int) -> str:
    """A table whose first `left` columns are words and whose others are numbers, as they stand."""
    if fmt in ("github", "pipe"):
        rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    align = ["left"] * left + ["right"] * (len(header) - left)
    return str(tabulate(rows, header, tablefmt=fmt, disable_numparse=True, colalign=align))


def _models_table(report: Mapping[str, Any], fmt: str) -> str:
    # A terminal has about 120 columns; in a page the headings wrap.
    brief = fmt != "html"
    columns: list[tuple[str, tuple[str, ...], Callable[[float], str]]] = [
        *(
            (_metric_label(key) if brief else f"test {_metric_label(key)}", ("test", key), "{:.4f}".format)
            for key in _metric_keys(report)
        ),
        ("layer params" if brief else "layer parameters", ("parameters", "layers"), "{:,.0f}".format),
        ("params" if brief else "all parameters", ("parameters", "total"), "{:,.0f}".format),
        ("MACs", ("macs_per_sequence",), _short),
        ("p50 ms" if brief else "latency p50, ms", ("latency_ms", "batch_1_p50"), "{:.2f}".format),
        ("seq/s" if brief else "sequences/s", ("sequences_per_second",), "{:,.0f}".format),
    ]
    rows = []
    for model in _models(report):
        values = [(_number(model, *keys), style) for _, keys, style in columns]
        names = [str(model.get(key) or DASH) for key in ("name", "kind")]
        rows.append(names + [DASH if value is None else style(value) for value, style in values])
    if not rows:
        return "No model was measured."
    return _table(["model", "kind", *(heading for heading, _, _ in columns)], rows, fmt, left=2)


def _ratios(report: Mapping[str, Any]) -> str:
    """The student in multiples of the teacher, where both were measured."""
    by_name = {model.get("name"): model for model in _models(report)}
    teacher, student = by_name.get("teacher"), by_name.get("student")
    if teacher is None or student is None:
        return ""

    def times(keys: tuple[str, ...], less: str, more: str, noun: str) -> str | None:
        return _times(_number(teacher, *keys), _number(student, *keys), less, more, noun)

    first = [
        _accuracy_ratio(teacher, student, _metric_keys(report)),
        times(("parameters", "layers"), "fewer", "more", "layer parameters"),
        times(("parameters", "total"), "fewer", "more", "parameters in all"),
        times(("latency_ms", "batch_1_p50"), "lower", "higher", "batch-1 latency"),
    ]
    second = [
        times(("macs_per_sequence",), "fewer", "more", "MACs"),
        times(("sequences_per_second",), "fewer", "more", "sequences per second"),
    ]
    sentences = [
        f"{opening}: {', '.join(known)}."
        for opening, phrases in (("Student against teacher", first), ("Per sequence and in batches", second))
        if (known := [phrase for phrase in phrases if phrase])
    ]
    return " ".join(sentences) or "Student against teacher: no figure was measured for both."


def _accuracy_ratio(teacher: Mapping[str, Any], student: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    for key in keys:
        before, after = _number(teacher, "test", key), _number(student, "test", key)
        if before and after is not None:
            return f"test {_metric_label(key)} x{after / before:.2f}"
    return None


def _times(before: float | None, after: float | None, less: str, more: str, noun: str) -> str | None:
    """Such as "3.4 times lower latency"; None where no ratio exists."""
    if before is None or after is None or before <= 0 or after < 0:
        return None
    if after == 0:
        return f"no {noun} at all" if less == "fewer" else None
    ratio, word = (before / after, less) if before > after else (after / before, more)
    # "1.0 times fewer" would read as a difference where there is next to none.
    return f"{ratio:,.1f} times {word} {noun}" if ratio >= 1.05 else f"{noun} equal within 5 %"


# ---------------------------------------------------------------------- stages, architecture, search


def _stages_table(report: Mapping[str, Any], fmt: str) -> str:
    stages = report.get("stages") or {}
    rows = [
        [str(name), _text(_number(stage, "seconds"), "{:,.1f}"), _text(_number(stage, "epochs"), "{:.0f}")]
        for name, stage in stages.items()
        if stage
    ]
    seconds = [_number(stage, "seconds") for stage in stages.values() if stage]
    if rows and None not in seconds:
        rows.append(["together", f"{sum(filter(None, seconds)):,.1f}", ""])
    return _table(["stage", "seconds", "epochs"], rows, fmt, left=1) if rows else "No stage was timed."


def _architecture_summary(report: Mapping[str, Any]) -> str:
    architecture = report.get("architecture") or {}
    cells, counts = architecture.get("cells") or [], architecture.get("operations") or {}
    if not cells:
        return "No architecture was recorded."
    listed = ", ".join(f"{name} {_text(_number(counts, name), '{:.0f}')}" for name in counts)
    return (
        f"{_count(len(cells), 'cell')} of {_count(len(cells[0]), 'node')}, hidden size "
        f"{_text(_number(architecture, 'hidden_size'), '{:.0f}')}. Edges by operation: {listed or DASH}. "
        "A node is the sum of its operations on earlier nodes; edges that carry nothing are left out."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _cells_text(report: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Title and lines of each cell; equal neighbours are one entry."""
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


def _search_summary(report: Mapping[str, Any]) -> str:
    search = (report.get("architecture") or {}).get("search")
    if not search:
        return "The architecture was given, not searched."
    changed = _number(search, "changed_edges")
    budget = _number(search, "cost_budget")
    return (
        f"α moved {_text(_number(search, 'alpha_moved'), '{:.2f}')} from its random start (0: not at all, 1: entirely; "
        "mean total variation distance over the edges). "
        f"{_text(None if changed is None else 100 * changed, '{:.0f} %')} of the edges ended with another most "
        "probable operation than they began with. "
        f"The most probable operation of an edge has probability "
        f"{_text(_number(search, 'alpha_max_probability'), '{:.2f}')} on average; "
        f"the temperature ended at {_text(_number(search, 'temperature'), '{:.2f}')}. "
        f"The architecture costs {_text(_number(search, 'cost'), '{:.3f}')} of the teacher's layers in "
        f"{search.get('cost_kind') or 'an unknown unit'} (budget: {_text(budget, '{:.3f}')})."
    )


def _candidates_table(report: Mapping[str, Any], fmt: str) -> str:
    """What validation chose from; empty where there was no choice."""
    rows = []
    for row in ((report.get("architecture") or {}).get("search") or {}).get("candidates") or []:
        operations = ", ".join(f"{_number(row['operations'], name)} {name}" for name in row.get("operations") or {})
        measures = [_text(_number(row, f"{stage}_log_likelihood"), "{:.4f}") for stage in ("valid", "final")]
        rows.append([_text(_number(row, "hidden_size"), "{:.0f}"), operations, *measures])
    headers = ["hidden size", "candidate: operations", "validation log-likelihood", "of finalists, trained longer"]
    return _table(headers, rows, fmt, left=2) if rows else ""


# ---------------------------------------------------------------------- history


def _records(history: Mapping[str, Any], stage: str) -> list[Mapping[str, Any]]:
    return list(history.get(stage) or [])


def _epoch(record: Mapping[str, Any], position: int) -> int:
    """Epochs are counted from 1 for people."""
    return int(record.get("epoch", position)) + 1


def _series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[Any]]:
    """Epochs that have `key`, and its values."""
    found = [(_epoch(record, k), record[key]) for k, record in enumerate(records) if record.get(key) is not None]
    return [epoch for epoch, _ in found], [value for _, value in found]


def _weights_table(history: Mapping[str, Any]) -> str:
    """Teacher layer weights after each epoch; of a long training evenly spread epochs with the first and last."""
    rows, notes = [], ""
    for stage in ("search", "student"):
        epochs, weights = _series(_records(history, stage), "teacher_layer_weights")
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
    return _table(header, rows, "github", left=1) + notes


# ---------------------------------------------------------------------- figures

INK, GRID, BLUE = "#1f2933", "#e4e8ec", "#2563a8"
COLOURS = (*qualitative.T10[:7], *qualitative.T10[8:9], "#4c5a67", *qualitative.T10[7:8])


def _style(figure: go.Figure, x: str, y: str, height: int = 300) -> go.Figure:
    # Fixed ranges and no drag mode: a finger that scrolls the page must not zoom a figure.
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 56, "r": 14, "t": 12, "b": 46},
        font={"family": "system-ui, sans-serif", "size": 12, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        dragmode=False,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"bgcolor": "white"},
    )
    axis = {"gridcolor": GRID, "linecolor": GRID, "zeroline": False, "fixedrange": True}
    figure.update_xaxes(title={"text": x, "standoff": 8}, automargin=True, **axis)
    figure.update_yaxes(title={"text": y, "standoff": 8}, automargin=True, **axis)
    return figure


def _epoch_axis(figure: go.Figure, epochs: Sequence[int]) -> None:
    """Ticks on whole epochs only."""
    span = max(epochs) - min(epochs)
    figure.update_xaxes(tickmode="linear", tick0=1, dtick=max(1, math.ceil(span / 8)))


def _line(figure: go.Figure, epochs: Sequence[int], values: Sequence[Any], name: str, k: int, **style: Any) -> None:
    """A line over epochs; a single epoch has no line to draw, so it is a marker."""
    dash = "solid" if k < len(COLOURS) else "dash"
    figure.add_scatter(
        x=list(epochs),
        y=list(values),
        name=name,
        mode="lines" if len(epochs) > 1 else "markers",
        line={"color": _colour(k), "width": 2, "dash": dash} | style,
        marker={"color": _colour(k), "size": 7},
        hovertemplate="epoch %{x}: %{y:.4f}",
    )


def _colour(k: int) -> str:
    return str(COLOURS[k % len(COLOURS)])


def accuracy_figure(report: Mapping[str, Any]) -> go.Figure | None:
    """A point for each model: test accuracy against layer parameters; None if no model has both."""
    keys = _metric_keys(report)
    points = []
    for model in _models(report):
        size = _number(model, "parameters", "layers")
        accuracy = _number(model, "test", keys[0]) if keys else None
        if size and size > 0 and accuracy is not None:
            points.append((size, accuracy, escape(str(model.get("name") or DASH)), _model_colour(model)))
    return _plane(points, f"test {_metric_label(keys[0])}") if points else None


def pareto_figure(arms: Sequence[tuple[str, float, float]], label: str, size: str = "layer parameters") -> go.Figure:
    """Accuracy against parameters, and the line of those that none is both smaller and better than.

    Parameters
    ----------
    arms : sequence of (str, float, float)
        Name, parameters above 0, and a measure of accuracy that is better when higher.
    label : str
        Name of the measure.
    size : str
        What is counted.
    """
    best: list[tuple[str, float, float]] = []
    for arm in sorted(arms, key=lambda arm: (arm[1], -arm[2])):
        if not best or arm[2] > best[-1][2]:
            best.append(arm)
    points = [(arm[1], arm[2], escape(arm[0]), BLUE if arm in best else "#8b97a3") for arm in arms]
    figure = _plane(points, f"test {label}", size)
    figure.update_traces(mode="markers", marker_size=10)
    figure.add_scatter(
        x=[arm[1] for arm in best], y=[arm[2] for arm in best], mode="lines", hoverinfo="skip",
        line={"color": BLUE, "width": 2, "shape": "hv"},
    )  # fmt: skip
    return figure


def experiment_page(
    heading: str,
    table: str,
    planes: Mapping[str, Sequence[tuple[str, float, float]]],
    size: str = "layer parameters",
) -> str:
    """An experiment as one page: its figures on the plane of accuracy against size, and its table.

    Parameters
    ----------
    heading : str
        What was compared.
    table : str
        As Markdown.
    planes : mapping of str to sequence
        For each measure what `pareto_figure` draws.
    size : str
        What is counted.
    """
    panels: list[Panel] = [(name, pareto_figure(arms, name, size)) for name, arms in planes.items() if arms]
    lead = _paragraph(
        "A point for each arm, mean over seeds; the line joins those that no arm is smaller and better than."
    )
    parts: list[Any] = [
        PAGE_HEAD.format(title=escape(heading), style=STYLE),
        f"<header><h1>{escape(heading)}</h1></header>",
        *_section("Accuracy against size", lead, panels, "No arm has layer parameters."),
        *_section("Table", f'<div class="scroll"><pre>{escape(table)}</pre></div>'),
        "</main></body></html>\n",
    ]
    return _render(parts)


def _plane(points: Sequence[tuple[float, float, str, str]], label: str, size: str = "layer parameters") -> go.Figure:
    """Points of parameters, accuracy, name and colour, on a logarithmic axis of sizes."""
    sizes, accuracies, names, colours = (list(column) for column in zip(*points, strict=True))
    figure = go.Figure(
        go.Scatter(
            x=sizes,
            y=accuracies,
            text=names,
            mode="markers+text",
            textposition="top center",
            cliponaxis=False,
            marker={"size": 13, "color": colours, "line": {"color": "white", "width": 1}},
            hovertemplate=f"%{{text}}<br>%{{x:,.0f}} {size}<br>%{{y:.4f}}<extra></extra>",
        )
    )
    _style(figure, f"{size} (log axis)", label, height=360)
    logs = np.log10(sizes)
    # Room around the points, also around a single one; 5 % of an accuracy, which is never far from 0.
    across, up = max(0.15 * float(np.ptp(logs)), 0.3), max(0.2 * float(np.ptp(accuracies)), 0.05 * max(accuracies))
    up = up or 0.01
    low, high = float(logs.min()) - across, float(logs.max()) + across
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    ticks = [step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
    figure.update_xaxes(type="log", range=[low, high], tickvals=ticks, tickformat="~s")
    figure.update_yaxes(range=[min(accuracies) - up, max(accuracies) + up], tickformat=".3f")
    return figure


def _model_colour(model: Mapping[str, Any]) -> str:
    return {"teacher": "#8a4fa3", "student": BLUE}.get(str(model.get("name")), "#8b97a3")


def _not_on_log_axis(report: Mapping[str, Any]) -> str:
    names = [str(model.get("name") or DASH) for model in _models(report) if _number(model, "parameters", "layers") == 0]
    return f"Not on the log axis, without layer parameters: {', '.join(names)}." if names else ""


def _alpha(history: Mapping[str, Any]) -> tuple[list[int], np.ndarray] | None:
    """Epochs and probabilities ``[epochs, G, E, O]``."""
    epochs, values = _series(_records(history, "search"), "alpha")
    return (epochs, np.asarray(values, dtype=float)) if values else None


def _edge_names(count: int) -> list[str]:
    nodes = next(n for n in range(1, count + 1) if len(edges(n)) >= count)
    return [f"{'input' if i == 0 else f'node {i}'} → node {j}" for i, j in edges(nodes)][:count]


def _operation_names(operations: Sequence[str], count: int) -> list[str]:
    names = [str(name) for name in operations]
    return names if len(names) == count else [f"operation {k}" for k in range(1, count + 1)]


def alpha_figures(history: Mapping[str, Any], operations: Sequence[str]) -> list[Panel]:
    """A line for each operation over the epochs, a panel for each edge of each group of cells that shares alpha.

    More than `MAX_ALPHA_GROUPS` groups are too many to compare: then a panel is the mean of an edge over the groups.
    """
    found = _alpha(history)
    if found is None:
        return []
    epochs, alpha = found
    _, groups, edge_count, operation_count = alpha.shape
    names = _operation_names(operations, operation_count)
    if groups > MAX_ALPHA_GROUPS:
        alpha = alpha.mean(1, keepdims=True)
        cells = ["mean over cells: "]
    else:
        cells = [f"cell {group + 1}: " if groups > 1 else "" for group in range(groups)]
    labels = [cell + edge for cell in cells for edge in _edge_names(edge_count)]
    curves = alpha.reshape(len(epochs), -1, operation_count)
    # One range for all panels, so that heights compare.
    top = float(curves.max()) * 1.08
    return [(label, _alpha_panel(epochs, curves[:, k], names, top)) for k, label in enumerate(labels)]


def _alpha_panel(epochs: Sequence[int], curves: np.ndarray, names: Sequence[str], top: float) -> go.Figure:
    """Curves ``[epochs, O]`` of one edge, and the level at which all operations are equal."""
    figure = go.Figure()
    for k, name in enumerate(names):
        _line(figure, epochs, curves[:, k].tolist(), escape(name), k)
    figure.add_hline(y=1 / len(names), line={"color": "#9aa5b1", "width": 1, "dash": "dot"})
    _style(figure, "epoch", "probability", height=220)
    _epoch_axis(figure, epochs)
    figure.update_layout(showlegend=False)
    figure.update_yaxes(range=[0, top], tickformat=".2~f")
    return figure


def last_alpha_figure(history: Mapping[str, Any], operations: Sequence[str]) -> go.Figure | None:
    """Alpha after the last epoch: a row for each edge, a column for each operation; None without a search."""
    found = _alpha(history)
    if found is None:
        return None
    alpha = found[1][-1]
    names = _operation_names(operations, alpha.shape[-1])
    rows = [f"{group + 1}: {edge}" for group in range(len(alpha)) for edge in _edge_names(alpha.shape[1])]
    return _heat_map(alpha.reshape(len(rows), -1), [escape(name) for name in names], rows, "", "cell: edge", ".2f")


def _heat_map(
    values: np.ndarray, columns: Sequence[Any], rows: Sequence[Any], x: str, y: str, digits: str | None
) -> go.Figure:
    """Values ``[rows, columns]``, the first row on top; written into the cells in the format `digits`."""
    figure = go.Figure(
        go.Heatmap(
            z=values.tolist(),
            x=list(columns),
            y=list(rows),
            text=None if digits is None else [["0" if v == 0 else format(v, digits) for v in row] for row in values],
            texttemplate=None if digits is None else "%{text}",
            colorscale="Blues",
            # From 0, so that weights that hardly differ look alike.
            zmin=0,
            zmax=max(float(values.max()), 1e-12),
            xgap=1,
            ygap=1,
            showscale=digits is None,
            colorbar={"thickness": 10, "outlinewidth": 0, "nticks": 5},
            hovertemplate=f"{x or 'column'} %{{x}}, {y} %{{y}}: %{{z:.4f}}<extra></extra>",
        )
    )
    _style(figure, x, y, height=max(200, 90 + 24 * len(rows)))
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False, autorange="reversed")
    return figure


def _last_flow(report: Mapping[str, Any], history: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The last transport of the student's training, else of the search."""
    for stage in ("student", "search"):
        _, flows = _series(_records(history, stage), "flow")
        if flows:
            return stage, flows[-1]
    flow = (report.get("distillation") or {}).get("flow")
    return ("student", flow) if flow else None


def transport_figure(flow: Sequence[Sequence[float]]) -> go.Figure:
    """The flow ``[S, T]`` as shares; teacher layers go down, since they are many and phones are narrow."""
    values = np.asarray(flow, dtype=float).T
    columns, rows = ([str(k) for k in range(1, n + 1)] for n in (values.shape[1], values.shape[0]))
    figure = _heat_map(values, columns, rows, "student layer", "teacher layer", ".1%")
    # Category axes keep "1", "2", … from being read as numbers with halves between them.
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category")
    return figure


def layer_weight_figures(history: Mapping[str, Any]) -> list[Panel]:
    """Epochs across, layers down, a panel for u and v of each stage that distils."""
    sides = (("student_layer_weights", "u, student layers"), ("teacher_layer_weights", "v, teacher layers"))
    panels = []
    for stage in ("search", "student"):
        for key, title in sides:
            epochs, weights = _series(_records(history, stage), key)
            if weights:
                values = np.asarray(weights, dtype=float).T
                layers = list(range(1, len(values) + 1))
                figure = _heat_map(values, epochs, layers, "epoch", "layer", None)
                _epoch_axis(figure, epochs)
                figure.update_yaxes(tickmode="linear", tick0=1, dtick=max(1, math.ceil(len(layers) / 16)))
                panels.append((f"{title}, {stage} stage", figure))
    return panels


def loss_figures(history: Mapping[str, Any]) -> list[Panel]:
    """The losses of each stage over its epochs, and the validation score of those that have one."""
    panels = []
    for stage in STAGES:
        figure, all_epochs = go.Figure(), set()
        for k, (key, name) in enumerate(LOSSES.items()):
            epochs, values = _series(_records(history, stage), key)
            if values:
                _line(figure, epochs, values, name, k, width=3 if key == "loss" else 1.5)
                all_epochs.update(epochs)
        if all_epochs:
            panels.append((f"{stage} loss", _over_epochs(figure, sorted(all_epochs), "loss")))
    figure, all_epochs = go.Figure(), set()
    for stage, colour in (("teacher", "#8a4fa3"), ("search", "#8b97a3"), ("student", BLUE)):
        epochs, values = _series(_records(history, stage), "valid_score")
        if values:
            _line(figure, epochs, values, stage, 0, color=colour)
            figure.data[-1].marker.color = colour
            all_epochs.update(epochs)
    if all_epochs:
        panels.append(("validation score", _over_epochs(figure, sorted(all_epochs), "score")))
    return panels


def _over_epochs(figure: go.Figure, epochs: Sequence[int], y: str) -> go.Figure:
    _style(figure, "epoch", y)
    _epoch_axis(figure, epochs)
    figure.update_layout(showlegend=True)
    return figure


# ---------------------------------------------------------------------- page

# The policy makes the browser refuse whatever the page does not hold itself.
PAGE_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline';\
 style-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>{style}</style></head>
<body><main>
"""
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
html { overflow-y: scroll; }
body { margin: 0; background: #f5f7f9; color: #1f2933; font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .6rem; }
h3 { font-size: .85rem; font-weight: 600; margin: 0; color: #52606d; }
p { margin: 0 0 .7rem; max-width: 75ch; }
header p { color: #52606d; margin: .2rem 0 1.2rem; }
section { background: #fff; border: 1px solid #e4e8ec; border-radius: 10px; padding: 1.1rem; margin-bottom: 1rem; }
section > :last-child { margin-bottom: 0; }
.scroll { overflow-x: auto; margin-bottom: .7rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #e4e8ec; text-align: left; white-space: nowrap; }
th { color: #52606d; font-weight: 600; vertical-align: bottom; white-space: normal; }
/* auto-fill, not auto-fit: a figure is drawn before those after it are there, and must find its final width. */
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 280px), 1fr)); }
.two { grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); }
.grid > div { min-width: 0; }
.cell { background: #f5f7f9; border-radius: 8px; padding: .6rem .8rem; }
.cell code { display: block; font-size: .85rem; overflow-wrap: anywhere; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .85rem; margin-bottom: .7rem; }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }
.note { color: #7b8794; }
footer { color: #52606d; font-size: .85rem; padding: 0 .2rem; }
"""


def _one(title: str, figure: go.Figure | None) -> list[Panel]:
    return [] if figure is None else [(title, figure)]


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


def _scrolling(table: str) -> str:
    return f'<div class="scroll">{table}</div>'


def _section(
    heading: str, lead: str, panels: Sequence[Panel] | None = None, missing: str = "", after: Sequence[Any] = ()
) -> list[Any]:
    """Parts of a section: pieces of HTML, and figures that `_render` draws; `missing` is said if `panels` is empty."""
    parts: list[Any] = [f"<section><h2>{escape(heading)}</h2>", lead if panels or panels is None else ""]
    if panels:
        layout = "" if len(panels) == 1 else "grid two" if len(panels) <= 4 else "grid"
        parts.append(f'<div class="{layout}">')
        for title, figure in panels:
            parts += ["<div>", f"<h3>{escape(title)}</h3>" if title else "", figure, "</div>"]
        parts.append("</div>")
    elif panels is not None:
        parts.append(f'<p class="note">{escape(missing)}</p>')
    return [*parts, *after, "</section>\n"]


def _cells_html(report: Mapping[str, Any]) -> str:
    cells = [
        f'<div class="cell"><h3>{title}</h3>{"".join(f"<code>{escape(line)}</code>" for line in lines)}</div>'
        for title, lines in _cells_text(report)
    ]
    return f'<div class="grid">{"".join(cells)}</div>' if cells else ""


def _alpha_section(history: Mapping[str, Any], operations: Sequence[str]) -> list[Any]:
    panels = alpha_figures(history, operations)
    found = _alpha(history)
    names = _operation_names(operations, found[1].shape[-1]) if found else []
    key = "".join(f'<span><i style="background:{_colour(k)}"></i>{escape(name)}</span>' for k, name in enumerate(names))
    lead = _paragraph("Probability of each operation after each epoch. Dotted: all operations equal.")
    missing = "No α was recorded: a run with a given architecture has no search."
    after: list[Any] = []
    if found and found[1].shape[1] > MAX_ALPHA_GROUPS:
        after = ["<h3>every edge after the last epoch</h3>", last_alpha_figure(history, operations)]
    return _section("α over the search", f'{lead}<div class="key">{key}</div>', panels, missing, after)


def _transport_section(report: Mapping[str, Any], history: Mapping[str, Any]) -> list[Any]:
    found = _last_flow(report, history)
    stage = "student's training" if found and found[0] == "student" else "search"
    lead = _paragraph(f"Share of the weight that moves between each pair of layers, in the last batch of the {stage}.")
    panels = _one("", transport_figure(found[1])) if found else []
    return _section("Layer transport", lead, panels, "No layer transport was recorded.")


def _render(parts: Sequence[Any]) -> str:
    """Join the pieces of a page; the first figure brings the library that draws all of them."""
    pieces: list[str] = []
    drawn = 0
    for part in parts:
        if isinstance(part, str):
            pieces.append(part)
            continue
        pieces.append(
            to_html(
                part,
                config={"displayModeBar": False, "responsive": True},
                include_plotlyjs=drawn == 0,
                full_html=False,
                default_width="100%",
                default_height=f"{part.layout.height}px",
                div_id=f"figure-{drawn}",
            )
        )
        drawn += 1
    return "".join(pieces)


def comparison_page(
    heading: str,
    lead: Sequence[str],
    tables: Mapping[str, str],
    planes: Mapping[str, Sequence[tuple[str, float, float]]],
    notes: Sequence[str],
) -> str:
    """Models side by side as one page.

    Parameters
    ----------
    heading : str
        What was compared.
    lead, notes : sequence of str
        Sentences above the tables, and below the figures.
    tables : mapping of str to str
        Heading and HTML of each table.
    planes : mapping of str to sequence
        For each measure what `pareto_figure` draws.
    """
    panels: list[Panel] = [(name, pareto_figure(models, name)) for name, models in planes.items() if models]
    parts: list[Any] = [
        PAGE_HEAD.format(title=escape(heading), style=STYLE),
        f"<header><h1>{escape(heading)}</h1>{''.join(map(_paragraph, lead))}</header>",
        *(part for name, table in tables.items() for part in _section(name, _scrolling(table))),
        *_section(
            "Accuracy against size",
            _paragraph("The line joins the models that none is smaller and better than."),
            panels,
            "No model has layer parameters.",
        ),
        f"<footer>{''.join(map(_paragraph, notes))}</footer></main></body></html>\n",
    ]
    return _render(parts)
