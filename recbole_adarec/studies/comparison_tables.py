"""Tables of a comparison of models, for the terminal, Markdown, LaTeX and HTML.

`comparison` is the content of compare.json throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole.utils.utils import list_to_latex
from tabulate import tabulate

from recbole_adarec.report.page import comparison_page
from recbole_adarec.report.records import format_number

MEASURES = {
    "ndcg": "NDCG@{k}", "ndcg_new": "NDCG@{k}, new", "recall": "Recall@{k}", "mrr": "MRR@{k}",
    "log_likelihood": "log-likelihood",
}  # fmt: skip
EXTRA_MEASURES = ("ndcg_new", "log_likelihood")  # those that RecBole does not have
NOTES = (
    "Test data, the same users for all models. NDCG, Recall, MRR: as RecBole computes them, with all items ranked, "
    "seen items too; new: without seen items. Models of this package rank seen items low where users rarely repeat, "
    "RecBole's models cannot: the column of new items compares how well the models rank all other items. "
    "Log-likelihood: of the held-out item under the softmax of the scores, mean over users; it says little about "
    "models that are not trained with cross entropy.",
    "Item table, layers: trainable parameters. MACs: multiply-accumulates of scoring all items for one full history. "
    "p50: median time of a request with one history; seq/s: throughput of batches; all models are measured in turn in "
    "one process. Training: that of AdaRecStudent includes its teacher and its search.",
    "Difference: model minus reference, [95 % interval of the paired bootstrap over users]; p: two-sided, of the "
    "paired t-test and of Wilcoxon's signed-rank test, not corrected for the number of comparisons. The intervals are "
    "over users; each model is trained once, and another seed can change a difference too.",
)
TRAINED = {  # ways of training: keys of compare.json, and words for people
    "here": "by this package",
    "RecBole": "as RecBole trains it",
    "every position": "on every position of windows, not as RecBole trains it (`--fast_baselines`)",
}


def models_table(comparison: Mapping[str, Any], fmt: str = "pipe") -> str:
    """A row for each model: measures on the test data, size, speed and training.

    Parameters
    ----------
    comparison : mapping
        Content of compare.json.
    fmt : str
        A table format of tabulate.
    """
    rows = []
    for model in comparison["models"]:
        test, parameters, training = model["test"], model["parameters"], model["training"]
        rows.append(
            {"model": model["name"]}
            | {
                measure_label(name, comparison): format_number(test.get(measure_key(name, comparison)), "{:.4f}")
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
                "trained": "this package" if training["how"] == "here" else training["how"],
            }
        )
    return tabulate(rows, headers="keys", tablefmt=fmt, disable_numparse=True)


def significance_table(comparison: Mapping[str, Any], fmt: str = "pipe") -> str:
    """A row for each model and measure: its difference to the reference, with interval and p-values.

    Parameters
    ----------
    comparison : mapping
        Content of compare.json.
    fmt : str
        A table format of tabulate.
    """
    rows = [
        {
            "model": row["model"],
            "measure": measure_label(row["measure"], comparison),
            "difference": f"{row['mean']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]",
            "p, t-test": format_number(row["t_test_p"], "{:.3g}"),
            "p, Wilcoxon": format_number(row["wilcoxon_p"], "{:.3g}"),
        }
        for row in comparison["significance"]
    ]
    return tabulate(rows, headers="keys", tablefmt=fmt, disable_numparse=True)


def comparison_latex(comparison: Mapping[str, Any]) -> str:
    """Both tables in LaTeX, in the form of RecBole's result tables: the best value of each measure is bold."""
    results = [
        {
            "Model": model["name"],
            **{measure_label(m, comparison): model["test"].get(measure_key(m, comparison)) for m in MEASURES},
        }
        | {"Layers": model["parameters"]["layers"], "Item table": model["parameters"]["item_table"]}
        for model in comparison["models"]
    ]
    tests = [
        {"Model": row["model"], "Measure": measure_label(row["measure"], comparison), "Difference": row["mean"]}
        | {"Low": row["low"], "High": row["high"]}
        | {
            "p, t-test": format_number(row["t_test_p"], "{:.2g}"),
            "p, Wilcoxon": format_number(row["wilcoxon_p"], "{:.2g}"),
        }
        for row in comparison["significance"]
    ]
    labels = [measure_label(measure, comparison) for measure in MEASURES]
    complete = [label for label in labels if all(row[label] is not None for row in results)]
    tables = [list_to_latex(results, subset_columns=complete)[1]]
    if tests:
        tables.append(list_to_latex(tests)[1])
    return "\n".join(tables)


def comparison_markdown(comparison: Mapping[str, Any]) -> str:
    """Tables and notes as Markdown, the content of compare.md."""
    parts = [f"# {comparison_heading(comparison)}", models_table(comparison), *training_sentences(comparison)]
    if comparison["significance"]:
        parts += [f"## Against {comparison['reference']}", significance_table(comparison)]
    return "\n\n".join([*parts, "## Notes", *NOTES]) + "\n"


def comparison_html(comparison: Mapping[str, Any]) -> str:
    """Tables, figures and notes as an HTML page, the content of compare.html."""
    tables = {"Models": models_table(comparison, "html")}
    if comparison["significance"]:
        tables[f"Against {comparison['reference']}"] = significance_table(comparison, "html")
    points = {}
    for measure in MEASURES:
        key = measure_key(measure, comparison)
        rows = [(row["name"], row["parameters"]["layers"], row["test"].get(key)) for row in comparison["models"]]
        points[measure_label(measure, comparison)] = [row for row in rows if row[1] and row[2] is not None]
    return comparison_page(comparison_heading(comparison), training_sentences(comparison), tables, points, NOTES)


def comparison_heading(comparison: Mapping[str, Any]) -> str:
    """The title of a comparison: dataset, number of users, seed."""
    return f"Models on {comparison['dataset']}, {comparison['users']} users, seed {comparison['seed']}"


def training_sentences(comparison: Mapping[str, Any]) -> list[str]:
    """A sentence for each way of training, with the models that were trained so."""
    names: dict[str, list[str]] = {}
    for model in comparison["models"]:
        names.setdefault(model["training"]["how"], []).append(model["name"])
    return [f"Trained {TRAINED[how]}: {', '.join(models)}." for how, models in names.items()]


def measure_label(measure: str, comparison: Mapping[str, Any]) -> str:
    """The heading of a measure, such as NDCG@10."""
    return MEASURES[measure].format(k=comparison["k"])


def measure_key(measure: str, comparison: Mapping[str, Any]) -> str:
    """The key of a measure among the test results of a model, such as ``ndcg@10``."""
    return measure if measure in EXTRA_MEASURES else f"{measure}@{comparison['k']}"
