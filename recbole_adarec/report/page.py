"""HTML pages of a run, a comparison and an experiment: one file each, without network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.io import to_html

from recbole_adarec.report.figures import (
    MAX_ALPHA_GROUPS,
    Panel,
    SizePoint,
    accuracy_figure,
    alpha_figures,
    colour_of,
    ladder_figure,
    last_alpha_figure,
    last_flow,
    layer_weight_figures,
    loss_figures,
    operation_names,
    pareto_figure,
    recorded_alpha,
    transport_figure,
)
from recbole_adarec.report.records import DASH, format_number, number_at, report_models
from recbole_adarec.report.text import (
    GLOSSARY,
    architecture_summary,
    candidates_table,
    cell_formulas,
    histories_table,
    models_table,
    search_summary,
    stages_table,
    student_ratios,
    teachers_table,
)


def report_html(report: Mapping[str, Any], training_logs: Mapping[str, Any], operations: Sequence[str]) -> str:
    """The report of a run as an HTML page, the content of report.html.

    Parameters
    ----------
    report : mapping
        Content of report.json.
    training_logs : mapping of str to sequence
        Records of the epochs of each stage; a stage may be missing.
    operations : sequence of str
        Names of the candidate operations, in the order of the recorded α; empty without a search.

    Returns
    -------
    str
        A whole HTML document.
    """
    if report.get("models") and "architecture" not in report:
        return _single_model_html(report)
    title = f"AdaRec on {escape(str(report.get('dataset') or DASH))}"
    seed = format_number(number_at(report, "seed"), "{:.0f}")
    parts: list[Any] = [
        PAGE_HEAD.format(title=title, style=STYLE),
        f"<header><h1>{title}</h1><p>Teacher against searched student, seed {seed}</p></header>",
        *_section(
            "Comparison",
            _scrolling(models_table(report, "html"))
            + _paragraph(student_ratios(report))
            + _paragraph(str(report.get("teaching") or "")),
        ),
        *_section(
            "Accuracy against size",
            "",
            single_panel("", accuracy_figure(report)),
            "No model has both a test accuracy and a number of layer parameters above 0.",
            [_paragraph(not_on_log_axis(report))],
        ),
        *_section("Stages", _scrolling(stages_table(report, "html"))),
        *(_section("Teacher", _scrolling(table)) if (table := teachers_table(report, "html")) else ()),
        *(_section("Shorter histories", _scrolling(table)) if (table := histories_table(report, "html")) else ()),
        *_section("Architecture", _paragraph(architecture_summary(report)) + _cells_html(report)),
        *_section(
            "Search",
            _paragraph(search_summary(report)) + _scrolling(candidates_table(report, "html")),
            single_panel("Finalists: accuracy against size", ladder_figure(report)) or None,
        ),
        *_alpha_section(training_logs, operations),
        *_transport_section(report, training_logs),
        *_section(
            "Layer weights",
            _paragraph("Weight of each layer in the transport after each epoch: u of the student, v of the teacher."),
            layer_weight_figures(training_logs),
            "No layer weights were recorded.",
        ),
        *_section(
            "Losses",
            _paragraph(
                "Mean over the batches of an epoch; output, embedding and hidden are the parts of distillation."
            ),
            loss_figures(training_logs),
            "No losses were recorded.",
        ),
        f"<footer>{_paragraph(GLOSSARY)}</footer></main></body></html>\n",
    ]
    return _render(parts)


def _single_model_html(report: Mapping[str, Any]) -> str:
    """The page of a run that trained one model of RecBole."""
    title = escape(f"{report_models(report)[0]['name']} on {report.get('dataset') or DASH}")
    parts: list[Any] = [
        PAGE_HEAD.format(title=title, style=STYLE),
        f"<header><h1>{title}</h1><p>Seed {report.get('seed')}</p></header>",
        *_section("Comparison", _scrolling(models_table(report, "html"))),
        *_section("Stages", _scrolling(stages_table(report, "html"))),
        f"<footer>{_paragraph(GLOSSARY)}</footer></main></body></html>\n",
    ]
    return _render(parts)


def experiment_page(
    heading: str, table: str, points: Mapping[str, Sequence[SizePoint]], size: str = "layer parameters"
) -> str:
    """An experiment as an HTML page: accuracy against size, and the tables.

    Parameters
    ----------
    heading : str
        Title of the page.
    table : str
        The tables as Markdown.
    points : mapping of str to sequence
        For each measure its points, as `pareto_figure` takes them.
    size : str
        Which parameters are counted.

    Returns
    -------
    str
        A whole HTML document.
    """
    panels = _pareto_panels(points, size)
    lead = _paragraph(
        "A point for each arm, mean over seeds. The line joins the arms that no other is both smaller and better than."
    )
    parts: list[Any] = [
        PAGE_HEAD.format(title=escape(heading), style=STYLE),
        f"<header><h1>{escape(heading)}</h1></header>",
        *_section("Accuracy against size", lead, panels, "No arm has layer parameters."),
        *_section("Table", f'<div class="scroll"><pre>{escape(table)}</pre></div>'),
        "</main></body></html>\n",
    ]
    return _render(parts)


def not_on_log_axis(report: Mapping[str, Any]) -> str:
    """A sentence with the models that have no layer parameters, which a logarithmic axis cannot show; else empty."""
    names = [
        str(model.get("name") or DASH)
        for model in report_models(report)
        if number_at(model, "parameters", "layers") == 0
    ]
    return f"Not on the log axis, without layer parameters: {', '.join(names)}." if names else ""


# The policy makes the browser refuse everything that is not in the page itself.
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
/* auto-fill, not auto-fit: each figure is drawn before the next one exists, at its final width. */
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


def single_panel(title: str, figure: go.Figure | None) -> list[Panel]:
    """A figure as the only panel of its section; no panel if there is no figure."""
    return [] if figure is None else [(title, figure)]


def _pareto_panels(points: Mapping[str, Sequence[SizePoint]], size: str = "layer parameters") -> list[Panel]:
    """A panel for each measure that has points."""
    return [(name, pareto_figure(models, name, size)) for name, models in points.items() if models]


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


def _scrolling(table: str) -> str:
    return f'<div class="scroll">{table}</div>'


def _section(
    heading: str, lead: str, panels: Sequence[Panel] | None = None, missing: str = "", after: Sequence[Any] = ()
) -> list[Any]:
    """Parts of a section: pieces of HTML, and figures that `_render` draws; `missing` stands for empty `panels`."""
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
        for title, lines in cell_formulas(report)
    ]
    return f'<div class="grid">{"".join(cells)}</div>' if cells else ""


def _alpha_section(training_logs: Mapping[str, Any], operations: Sequence[str]) -> list[Any]:
    panels = alpha_figures(training_logs, operations)
    recorded = recorded_alpha(training_logs)
    names = operation_names(operations, recorded[1].shape[-1]) if recorded else []
    key = "".join(
        f'<span><i style="background:{colour_of(k)}"></i>{escape(name)}</span>' for k, name in enumerate(names)
    )
    lead = _paragraph("Probability of each operation after each epoch. Dotted: all operations equally probable.")
    missing = "No α was recorded: a run with a given architecture has no search."
    after: list[Any] = []
    if recorded and recorded[1].shape[1] > MAX_ALPHA_GROUPS:
        after = ["<h3>every edge after the last epoch</h3>", last_alpha_figure(training_logs, operations)]
    return _section("α over the search", f'{lead}<div class="key">{key}</div>', panels, missing, after)


def _transport_section(report: Mapping[str, Any], training_logs: Mapping[str, Any]) -> list[Any]:
    flow = last_flow(report, training_logs)
    stage = "student's training" if flow and flow[0] == "student" else "search"
    lead = _paragraph(f"Share of the weight that moves between each pair of layers, in the last batch of the {stage}.")
    panels = single_panel("", transport_figure(flow[1])) if flow else []
    return _section("Layer transport", lead, panels, "No layer transport was recorded.")


def _render(parts: Sequence[Any]) -> str:
    """Join the parts of a page; the first figure includes plotly's library, which draws all of them."""
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
    points: Mapping[str, Sequence[SizePoint]],
    notes: Sequence[str],
) -> str:
    """A comparison of models as an HTML page: tables, accuracy against size, notes.

    Parameters
    ----------
    heading : str
        Title of the page.
    lead, notes : sequence of str
        Paragraphs above the tables, and below the figures.
    tables : mapping of str to str
        Heading and HTML of each table.
    points : mapping of str to sequence
        For each measure its points, as `pareto_figure` takes them.

    Returns
    -------
    str
        A whole HTML document.
    """
    parts: list[Any] = [
        PAGE_HEAD.format(title=escape(heading), style=STYLE),
        f"<header><h1>{escape(heading)}</h1>{''.join(map(_paragraph, lead))}</header>",
        *(part for name, table in tables.items() for part in _section(name, _scrolling(table))),
        *_section(
            "Accuracy against size",
            _paragraph("The line joins the models that no other is both smaller and better than."),
            _pareto_panels(points),
            "No model has layer parameters.",
        ),
        f"<footer>{''.join(map(_paragraph, notes))}</footer></main></body></html>\n",
    ]
    return _render(parts)
