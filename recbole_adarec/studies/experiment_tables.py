"""Tables and points of experiments: Markdown for the terminal and the files, points for the figures.

`result` is the content of an experiment's JSON file throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from recbole_adarec.report.figures import SizePoint
from recbole_adarec.report.records import DASH
from recbole_adarec.studies.arms import PAIRED_METRICS, difference_text, mean_text

SIZE_EXPERIMENTS = ("cprec", "item-tables")  # compare models by all parameters, others by those of the layers


def experiment_heading(result: Mapping[str, Any]) -> str:
    """The title of an experiment: its name and, except for transfer, its dataset."""
    return str(result["experiment"]) + (f", {result['dataset']}" if "dataset" in result else "")


def size_name(result: Mapping[str, Any]) -> str:
    """Which parameters an experiment compares its arms by."""
    return "parameters" if result["experiment"] in SIZE_EXPERIMENTS else "layer parameters"


def dataset_results(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The results by datasets; an experiment on one dataset has one result, with an empty name."""
    return result.get("datasets") or result.get("scenes") or {"": result}  # "scenes": files of version 0.1


def experiment_points(result: Mapping[str, Any]) -> dict[str, list[SizePoint]]:
    """Points of test accuracy against size for the figures.

    Returns
    -------
    dict of str to list
        For each metric, and each dataset of transfer, a point for each arm: name, mean parameters over the seeds, mean
        of the metric. Arms without layer parameters are left out of experiments that count those.
    """
    points: dict[str, list[SizePoint]] = {}
    for dataset, comparison in dataset_results(result).items():
        sizes = {name: _size(arm, result["experiment"]) for name, arm in comparison["arms"].items()}
        for metric, label in PAIRED_METRICS.items():
            points[f"{label}, {dataset}" if dataset else label] = [
                (name, sizes[name], arm["test"][metric]["mean"])
                for name, arm in comparison["arms"].items()
                if sizes[name] > 0
            ]
    return points


def _size(arm: Mapping[str, Any], experiment: str) -> float:
    if experiment in SIZE_EXPERIMENTS:
        return float(arm["parameters"]["total"])
    return sum(arm["layers"]) / len(arm["layers"])


def experiment_table(result: Mapping[str, Any]) -> str:
    """An experiment as Markdown: a table for each dataset, and sentences with the main differences."""
    lines = [f"# {experiment_heading(result)}", ""]
    lines += [
        f"Seeds {', '.join(map(str, result['seeds']))}; test data; ± standard error over the seeds; "
        "[95 % interval of the paired difference, bootstrap over users].",
        "",
    ]
    for dataset, comparison in dataset_results(result).items():
        lines += [f"## {dataset}", ""] if dataset else []
        table = size_table if result["experiment"] in SIZE_EXPERIMENTS else arms_table
        lines += [table(comparison), ""]
        if best := comparison.get("best_one_to_one"):
            differences = ", ".join(
                f"{label} {difference_text(best[metric])}" for metric, label in PAIRED_METRICS.items()
            )
            lines += [f"EMD against the best one-to-one mapping by validation ({best['name']}): {differences}.", ""]
        for seed, weights in zip(result["seeds"], comparison.get("members", []), strict=False):
            members = ", ".join(f"{name} {weight:.3f}" for name, weight in weights.items())
            lines += [f"Members of seed {seed}, with the factors of their logits: {members}.", ""]
        for metric, label in PAIRED_METRICS.items():
            if metric in comparison:
                lines += [_random_sentence(label, comparison[metric]), ""]
    return "\n".join(lines)


def _random_sentence(label: str, row: Mapping[str, Any]) -> str:
    """The derived architecture against the random ones by one metric."""
    return (
        f"{label}: the derived architecture is better than {row['percentile']:.0f} % of the random ones; "
        f"against their mean {difference_text(row['against_mean'])}; against the best by validation "
        f"({row['best_by_validation']}) {difference_text(row['against_best'])}; better by more than the "
        f"interval and with fewer layer parameters: {', '.join(row['cheaper_and_better']) or 'none'}; with "
        f"fewer parameters in all: {', '.join(row['smaller_and_better']) or 'none'}."
    )


def arms_table(comparison: Mapping[str, Any]) -> str:
    """A row for each arm as Markdown, the reference first: channels, parameters, metrics, differences.

    Parameters
    ----------
    comparison : mapping
        What `recbole_adarec.studies.arms.compare_arms` returned.
    """
    rows = []
    for name, arm in comparison["arms"].items():
        channels = sorted({architecture["hidden_size"] for architecture in arm["architectures"]})
        row = {"": name} | ({"channels": ", ".join(map(str, channels))} if channels else {})
        for heading, counts in (("layer params", arm["layers"]), ("params", arm["total"])):
            row[heading] = f"{sum(counts) / len(counts):,.0f}"
        recall = {"ndcg": {"Recall@10": mean_text(arm["recall"])}} if "recall" in arm else None
        rows.append(row | _metric_cells(arm, recall))
    if "reference" in comparison:
        rows.sort(key=lambda row: row[""] != comparison["reference"])
    return tabulate(rows, headers="keys", tablefmt="pipe", missingval=DASH, disable_numparse=True)


def size_table(comparison: Mapping[str, Any]) -> str:
    """A row for each arm as Markdown, the largest model first: parameters, compression, metrics, differences.

    Parameters
    ----------
    comparison : mapping
        What `recbole_adarec.studies.compression.cprec` or ``item_tables`` returned.
    """
    arms = sorted(comparison["arms"].items(), key=lambda item: -item[1]["parameters"]["total"])
    largest = arms[0][1]
    rows = []
    for name, arm in arms:
        counts = arm["parameters"]
        row = {
            "": name, "parameters": f"{counts['total']:,.0f}", "item table": f"{counts['item_table']:,.0f}",
            "layers": f"{counts['layers']:,.0f}",
            "times fewer": f"{largest['parameters']['total'] / counts['total']:.1f}",
            "weights, kB": f"{arm['file_bytes'] / 1000:,.0f}",
        }  # fmt: skip
        ratio = f"{arm['test']['ndcg']['mean'] / largest['test']['ndcg']['mean']:.3f}"
        rows.append(row | _metric_cells(arm, {"ndcg": {"ratio": ratio}}))
    return tabulate(rows, headers="keys", tablefmt="pipe", missingval=DASH, disable_numparse=True)


def _metric_cells(arm: Mapping[str, Any], extra: Mapping[str, Mapping[str, str]] | None = None) -> dict[str, str]:
    """Mean and difference of each metric; `extra` are cells between the two."""
    cells: dict[str, str] = {}
    for metric, label in PAIRED_METRICS.items():
        cells |= {label: mean_text(arm["test"][metric]), **(extra or {}).get(metric, {})}
        if "against_reference" in arm:
            cells[f"{label}, difference"] = difference_text(arm["against_reference"][metric])
    return cells
