"""Tables of a comparison: terminal, Markdown, LaTeX and HTML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole.utils.utils import list_to_latex
from tabulate import tabulate

from recbole_adarec.report.page import comparison_page

MEASURES = {
    "ndcg": "NDCG@{k}", "ndcg_new": "NDCG@{k}, new", "recall": "Recall@{k}", "mrr": "MRR@{k}",
    "log_likelihood": "log-likelihood",
}  # fmt: skip
EXTRA_MEASURES = ("ndcg_new", "log_likelihood")  # measures that RecBole does not have
NOTES = (
    "Test data, the same users for all. NDCG, Recall, MRR: RecBole's, all items ranked, those of the user's history "
    "among them; new: without those. Models of this package rank them low where people do not take items again, "
    "RecBole's have nothing for that: the new ones say who knows more of the rest. Log-likelihood: of the "
    "held-out item under the softmax of the scores, mean over users; it says little of models that are not trained by "
    "cross entropy.",
    "Item table, layers: trainable parameters. MACs: multiply-accumulates of scoring all items for one full history. "
    "p50: median time of a request with one history; seq/s: throughput of batches; all models measured in turn in one "
    "process. Training: of AdaRecStudent with its teacher and its search.",
    "Difference: model minus reference, [95 % interval of the paired bootstrap over users]; p: two-sided, of the "
    "paired t-test and of Wilcoxon's signed-rank test, not corrected for the number of comparisons. Users are what "
    "varies here, one training of each model: another seed can move a difference too.",
)
TRAINED = {
    "here": "by this package",
    "RecBole": "as RecBole trains it",
    "every position": "on every position of windows, not as RecBole trains it (`--fast_baselines`)",
}


def models_table(found: Mapping[str, Any], fmt: str = "pipe") -> str:
    """A row for each model."""
    rows = []
    for model in found["models"]:
        test, parameters, training = model["test"], model["parameters"], model["training"]
        rows.append(
            {"model": model["name"]}
            | {
                measure_label(name, found): format_figure(test.get(measure_key(name, found)), "{:.4f}")
                for name in MEASURES
            }
            | {
                "item table": f"{parameters['item_table']:,}",
                "layers": f"{parameters['layers']:,}",
                "MACs": f"{model['macs_per_sequence'] / 1e6:.1f} M",
                "p50, ms": f"{model['latency_ms']['batch_1_p50']:.2f}",
                "seq/s": f"{model['sequences_per_second']:,.0f}",
                "training, s": f"{training['seconds']:,.0f}",
                "epochs": str(training["epochs"]),
                "trained": training["how"],
            }
        )
    return tabulate(rows, headers="keys", tablefmt=fmt, disable_numparse=True)


def significance_table(found: Mapping[str, Any], fmt: str = "pipe") -> str:
    """A row for each model and measure that is compared with the reference."""
    rows = [
        {
            "model": row["model"],
            "measure": measure_label(row["measure"], found),
            "difference": f"{row['mean']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]",
            "p, t-test": format_figure(row["t_test_p"], "{:.3g}"),
            "p, Wilcoxon": format_figure(row["wilcoxon_p"], "{:.3g}"),
        }
        for row in found["significance"]
    ]
    return tabulate(rows, headers="keys", tablefmt=fmt, disable_numparse=True)


def comparison_latex(found: Mapping[str, Any]) -> str:
    """Both tables as RecBole writes its result tables, the best of each measure in bold."""
    results = [
        {
            "Model": model["name"],
            **{measure_label(m, found): model["test"].get(measure_key(m, found)) for m in MEASURES},
        }
        | {"Layers": model["parameters"]["layers"], "Item table": model["parameters"]["item_table"]}
        for model in found["models"]
    ]
    tests = [
        {"Model": row["model"], "Measure": measure_label(row["measure"], found), "Difference": row["mean"]}
        | {"Low": row["low"], "High": row["high"]}
        | {
            "p, t-test": format_figure(row["t_test_p"], "{:.2g}"),
            "p, Wilcoxon": format_figure(row["wilcoxon_p"], "{:.2g}"),
        }
        for row in found["significance"]
    ]
    measures = [measure_label(measure, found) for measure in MEASURES]
    measured = [words for words in measures if all(row[words] is not None for row in results)]
    tables = [list_to_latex(results, subset_columns=measured)[1]]
    if tests:
        tables.append(list_to_latex(tests)[1])
    return "\n".join(tables)


def comparison_markdown(found: Mapping[str, Any]) -> str:
    """The comparison as Markdown."""
    parts = [f"# {comparison_heading(found)}", models_table(found), *training_sentences(found)]
    if found["significance"]:
        parts += [f"## Against {found['reference']}", significance_table(found)]
    return "\n\n".join([*parts, "## Notes", *NOTES]) + "\n"


def comparison_html(found: Mapping[str, Any]) -> str:
    """The comparison as a page."""
    tables = {"Models": models_table(found, "html")}
    if found["significance"]:
        tables[f"Against {found['reference']}"] = significance_table(found, "html")
    planes = {}
    for measure in MEASURES:
        points = [
            (m["name"], m["parameters"]["layers"], m["test"].get(measure_key(measure, found))) for m in found["models"]
        ]
        planes[measure_label(measure, found)] = [
            (n, size, value) for n, size, value in points if size and value is not None
        ]
    return comparison_page(comparison_heading(found), training_sentences(found), tables, planes, NOTES)


def comparison_heading(found: Mapping[str, Any]) -> str:
    """What was compared."""
    return f"Models on {found['dataset']}, {found['users']} users, seed {found['seed']}"


def training_sentences(found: Mapping[str, Any]) -> list[str]:
    """For each way of training the models that were trained so, as sentences."""
    names: dict[str, list[str]] = {}
    for model in found["models"]:
        names.setdefault(model["training"]["how"], []).append(model["name"])
    return [f"Trained {TRAINED[how]}: {', '.join(of)}." for how, of in names.items()]


def measure_label(measure: str, found: Mapping[str, Any]) -> str:
    return MEASURES[measure].format(k=found["k"])


def measure_key(measure: str, found: Mapping[str, Any]) -> str:
    return measure if measure in EXTRA_MEASURES else f"{measure}@{found['k']}"


def format_figure(value: float | None, style: str) -> str:
    return "–" if value is None else style.format(value)
