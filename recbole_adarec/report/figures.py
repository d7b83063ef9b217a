"""Figures of the pages, as plotly figures: accuracy against size, α, layer transport, losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import qualitative

from recbole_adarec.model.search_space.architecture import edges
from recbole_adarec.report.records import (
    DASH,
    epoch_records,
    epoch_series,
    metric_keys,
    metric_label,
    number_at,
    report_models,
)

STAGE_NAMES = ("teacher", "search", "student")
LOSSES = {
    "loss": "total",
    "alpha_loss": "total, users of α",
    "ce": "cross entropy",
    "output": "output",
    "embedding": "embedding",
    "hidden": "hidden",
}
MAX_ALPHA_GROUPS = 4
Panel = tuple[str, go.Figure]  # title and figure
SizePoint = tuple[str, float, float]  # name, parameters, accuracy
INK, GRID, BLUE, GREY, PURPLE = "#1f2933", "#e4e8ec", "#2563a8", "#8b97a3", "#8a4fa3"
COLOURS = (*qualitative.T10[:7], *qualitative.T10[8:9], "#4c5a67", *qualitative.T10[7:8])


def _style(figure: go.Figure, x: str, y: str, height: int = 300) -> go.Figure:
    """Give a figure the style of the page and the titles of its axes."""
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
    """Put ticks on whole epochs only."""
    span = max(epochs) - min(epochs)
    figure.update_xaxes(tickmode="linear", tick0=1, dtick=max(1, math.ceil(span / 8)))


def _line(figure: go.Figure, epochs: Sequence[int], values: Sequence[Any], name: str, k: int, **style: Any) -> None:
    """Draw a line over epochs; a single epoch is a marker. `k` chooses the colour."""
    dash = "solid" if k < len(COLOURS) else "dash"
    figure.add_scatter(
        x=list(epochs),
        y=list(values),
        name=name,
        mode="lines" if len(epochs) > 1 else "markers",
        line={"color": colour_of(k), "width": 2, "dash": dash} | style,
        marker={"color": colour_of(k), "size": 7},
        hovertemplate="epoch %{x}: %{y:.4f}",
    )


def colour_of(k: int) -> str:
    """The colour of line `k`; after the last colour the first follows, dashed."""
    return str(COLOURS[k % len(COLOURS)])


def accuracy_figure(report: Mapping[str, Any]) -> go.Figure | None:
    """Test accuracy against layer parameters, a point for each model of a report; None if no model has both."""
    keys = metric_keys(report)
    points = []
    for model in report_models(report):
        size = number_at(model, "parameters", "layers")
        accuracy = number_at(model, "test", keys[0]) if keys else None
        if size and size > 0 and accuracy is not None:
            points.append((size, accuracy, escape(str(model.get("name") or DASH)), _model_colour(model)))
    return _scatter(points, f"test {metric_label(keys[0])}") if points else None


def ladder_figure(report: Mapping[str, Any]) -> go.Figure | None:
    """Validation log-likelihood of the finalists against bytes, the chosen one in blue; None with fewer than two."""
    architecture = report.get("architecture") or {}
    points = []
    for row in (architecture.get("search") or {}).get("candidates") or []:
        size, accuracy = number_at(row, "weights_bytes"), number_at(row, "final_log_likelihood")
        if size and accuracy is not None:
            repeats = number_at(row, "repeats") or 1
            name = f"{row.get('hidden_size')} channels" + (f", {repeats:.0f} times" if repeats > 1 else "")
            chosen = all(row.get(key) == architecture.get(key) for key in ("hidden_size", "repeats", "cells"))
            points.append((size, accuracy, escape(name), BLUE if chosen else GREY))
    return _scatter(points, "validation log-likelihood", "bytes") if len(points) > 1 else None


def pareto_figure(points: Sequence[SizePoint], label: str, size: str = "layer parameters") -> go.Figure:
    """Test accuracy against parameters, with the Pareto front: points that no other is both smaller and better than.

    Parameters
    ----------
    points : sequence of (str, float, float)
        Name, parameters above 0, and a measure of accuracy that is better when higher.
    label : str
        Name of the measure.
    size : str
        Which parameters are counted.
    """
    front: list[SizePoint] = []
    for point in sorted(points, key=lambda point: (point[1], -point[2])):
        if not front or point[2] > front[-1][2]:
            front.append(point)
    markers = [(point[1], point[2], escape(point[0]), BLUE if point in front else GREY) for point in points]
    figure = _scatter(markers, f"test {label}", size)
    figure.update_traces(mode="markers", marker_size=10)
    figure.add_scatter(
        x=[point[1] for point in front], y=[point[2] for point in front], mode="lines", hoverinfo="skip",
        line={"color": BLUE, "width": 2, "shape": "hv"},
    )  # fmt: skip
    return figure


def _scatter(points: Sequence[tuple[float, float, str, str]], label: str, size: str = "layer parameters") -> go.Figure:
    """Points of (parameters, accuracy, name, colour) on a logarithmic axis of parameters."""
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
    return {"teacher": PURPLE, "student": BLUE}.get(str(model.get("name")), GREY)


def recorded_alpha(training_logs: Mapping[str, Any]) -> tuple[list[int], np.ndarray] | None:
    """The probabilities of the operations after each epoch of the search.

    Parameters
    ----------
    training_logs : mapping of str to sequence
        Records of the epochs of each stage.

    Returns
    -------
    (list of int, ndarray) or None
        Numbers of the epochs, counted from 1, and probabilities ``[epochs, G, E, O]``; None without a search.
    """
    epochs, values = epoch_series(epoch_records(training_logs, "search"), "alpha")
    return (epochs, np.asarray(values, dtype=float)) if values else None


def _edge_names(count: int) -> list[str]:
    """Names of the edges of a cell, such as "input → node 1"."""
    nodes = next(n for n in range(1, count + 1) if len(edges(n)) >= count)
    return [f"{'input' if i == 0 else f'node {i}'} → node {j}" for i, j in edges(nodes)][:count]


def operation_names(operations: Sequence[str], count: int) -> list[str]:
    """Names of the O candidate operations; numbers if the report does not name as many."""
    names = [str(name) for name in operations]
    return names if len(names) == count else [f"operation {k}" for k in range(1, count + 1)]


def alpha_figures(training_logs: Mapping[str, Any], operations: Sequence[str]) -> list[Panel]:
    """The probability of each operation over the epochs, a panel for each edge of each group of cells that share α.

    More than `MAX_ALPHA_GROUPS` groups are too many to compare: then a panel is the mean of an edge over the groups.

    Parameters
    ----------
    training_logs : mapping of str to sequence
        Records of the epochs of each stage.
    operations : sequence of str
        Names of the O candidate operations.

    Returns
    -------
    list of (str, Figure)
        Title and figure of each panel; empty without a search.
    """
    recorded = recorded_alpha(training_logs)
    if recorded is None:
        return []
    epochs, alpha = recorded
    _, groups, edge_count, operation_count = alpha.shape
    names = operation_names(operations, operation_count)
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
    """Curves ``[epochs, O]`` of one edge, and a dotted line at 1 / O, where all operations are equal."""
    figure = go.Figure()
    for k, name in enumerate(names):
        _line(figure, epochs, curves[:, k].tolist(), escape(name), k)
    figure.add_hline(y=1 / len(names), line={"color": "#9aa5b1", "width": 1, "dash": "dot"})
    _style(figure, "epoch", "probability", height=220)
    _epoch_axis(figure, epochs)
    figure.update_layout(showlegend=False)
    figure.update_yaxes(range=[0, top], tickformat=".2~f")
    return figure


def last_alpha_figure(training_logs: Mapping[str, Any], operations: Sequence[str]) -> go.Figure | None:
    """The probabilities after the last epoch: edges in rows, operations in columns; None without a search."""
    recorded = recorded_alpha(training_logs)
    if recorded is None:
        return None
    alpha = recorded[1][-1]
    names = operation_names(operations, alpha.shape[-1])
    rows = [f"{group + 1}: {edge}" for group in range(len(alpha)) for edge in _edge_names(alpha.shape[1])]
    return _heat_map(alpha.reshape(len(rows), -1), [escape(name) for name in names], rows, "", "cell: edge", ".2f")


def _heat_map(
    values: np.ndarray, columns: Sequence[Any], rows: Sequence[Any], x: str, y: str, digits: str | None
) -> go.Figure:
    """Values ``[rows, columns]``, the first row on top; `digits` is the format of the numbers in the cells, if any."""
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


def last_flow(report: Mapping[str, Any], training_logs: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The last layer transport: of the student's training, else of the search.

    Returns
    -------
    (str, list) or None
        The stage, and the flow ``[S, T]`` between student layers and teacher layers; None if none was recorded.
    """
    for stage in ("student", "search"):
        _, flows = epoch_series(epoch_records(training_logs, stage), "flow")
        if flows:
            return stage, flows[-1]
    flow = (report.get("distillation") or {}).get("flow")
    return ("student", flow) if flow else None


def transport_figure(flow: Sequence[Sequence[float]]) -> go.Figure:
    """The flow ``[S, T]`` as shares of all weight that moves: teacher layers in rows, student layers in columns."""
    # Teacher layers in rows: they are many, and phones are narrow.
    values = np.asarray(flow, dtype=float).T
    columns, rows = ([str(k) for k in range(1, n + 1)] for n in (values.shape[1], values.shape[0]))
    figure = _heat_map(values, columns, rows, "student layer", "teacher layer", ".1%")
    # Category axes keep "1", "2", … from being read as numbers with halves between them.
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category")
    return figure


def layer_weight_figures(training_logs: Mapping[str, Any]) -> list[Panel]:
    """The layer weights u and v of each stage that distils: epochs in columns, layers in rows."""
    sides = (("student_layer_weights", "u, student layers"), ("teacher_layer_weights", "v, teacher layers"))
    panels = []
    for stage in ("search", "student"):
        for key, title in sides:
            epochs, weights = epoch_series(epoch_records(training_logs, stage), key)
            if weights:
                values = np.asarray(weights, dtype=float).T
                layers = list(range(1, len(values) + 1))
                figure = _heat_map(values, epochs, layers, "epoch", "layer", None)
                _epoch_axis(figure, epochs)
                figure.update_yaxes(tickmode="linear", tick0=1, dtick=max(1, math.ceil(len(layers) / 16)))
                panels.append((f"{title}, {stage} stage", figure))
    return panels


def loss_figures(training_logs: Mapping[str, Any]) -> list[Panel]:
    """The losses of each stage over its epochs, and the validation scores of all stages that were validated."""
    panels = []
    for stage in STAGE_NAMES:
        figure, all_epochs = go.Figure(), set()
        for k, (key, name) in enumerate(LOSSES.items()):
            epochs, values = epoch_series(epoch_records(training_logs, stage), key)
            if values:
                _line(figure, epochs, values, name, k, width=3 if key == "loss" else 1.5)
                all_epochs.update(epochs)
        if all_epochs:
            panels.append((f"{stage} loss", _over_epochs(figure, sorted(all_epochs), "loss")))
    figure, all_epochs = go.Figure(), set()
    for stage, colour in (("teacher", PURPLE), ("search", GREY), ("student", BLUE)):
        epochs, values = epoch_series(epoch_records(training_logs, stage), "valid_score")
        if values:
            _line(figure, epochs, values, stage, 0, color=colour)
            figure.data[-1].marker.color = colour
            all_epochs.update(epochs)
    if all_epochs:
        panels.append(("validation score", _over_epochs(figure, sorted(all_epochs), "score")))
    return panels


def _over_epochs(figure: go.Figure, epochs: Sequence[int], y: str) -> go.Figure:
    """Style a figure whose lines run over epochs."""
    _style(figure, "epoch", y)
    _epoch_axis(figure, epochs)
    figure.update_layout(showlegend=True)
    return figure
