"""The report of a run: its tables and sentences, missing numbers, and a page that needs no other file."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import numpy as np
import pytest

from recbole_adarec.report.figures import ladder_figure, pareto_figure
from recbole_adarec.report.page import report_html
from recbole_adarec.report.text import candidates_table, comparison_table, report_markdown
from recbole_adarec.report.writing import write_result

OPERATIONS = ["conv_3", "skip", "none"]
FLOW = [[0.25, 0.25, 0.0], [0.0, 0.1, 0.4]]
WEIGHTS = {"student_layer_weights": [0.5, 0.5], "teacher_layer_weights": [0.25, 0.35, 0.4], "flow": FLOW}


def model(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "Kind",
        "parameters": {"total": 1000, "item_table": 200, "layers": 800},
        "macs_per_sequence": 20_000_000,
        "latency_ms": {"batch_1_p50": 2.0, "batch_1_p99": 3.0},
        "sequences_per_second": 900.0,
        "valid": {"ndcg@10": 0.06},
        "test": {"recall@5": 0.05, "ndcg@5": 0.04, "mrr@5": 0.03, "recall@10": 0.1, "ndcg@10": 0.05},
    } | changes


@pytest.fixture
def report() -> dict[str, Any]:
    student = model(
        "student",
        parameters={"total": 250, "item_table": 150, "layers": 100},
        latency_ms={"batch_1_p50": 0.5, "batch_1_p99": 1.0},
        macs_per_sequence=40_000_000,
        test={"recall@5": 0.06, "ndcg@5": 0.05, "mrr@5": 0.03, "recall@10": 0.1, "ndcg@10": 0.05},
    )
    return {
        "format": "recbole-adarec-report/1",
        "dataset": "ml-100k",
        "seed": 2020,
        "stages": {name: {"seconds": 10.5, "epochs": 2} for name in ("teacher", "search", "student")},
        "models": [model("teacher"), student, model("SASRec")],
        "architecture": {
            "operations": {"conv_3": 2, "skip": 2, "none": 2},
            "hidden_size": 32,
            "cells": [[["conv_3"], ["none", "skip"]]] * 2,
            "search": {
                "alpha_moved": 0.19,
                "alpha_max_probability": 0.4,
                "changed_edges": 0.75,
                "temperature": 0.5,
                "cost": 0.1,
                "cost_budget": None,
            },
        },
        "distillation": WEIGHTS,
    }


@pytest.fixture
def history() -> dict[str, Any]:
    alpha = [[[0.5, 0.3, 0.2]] * 3]
    return {
        "teacher": [{"epoch": k, "loss": 5.0 - k, "valid_score": 0.04 + k / 100} for k in range(2)],
        "search": [
            {"epoch": k, "loss": 4.0, "ce": 3.0, "alpha_loss": 4.6 if k else None, "alpha": alpha, **WEIGHTS}
            for k in range(2)
        ],
        "student": [{"epoch": k, "loss": 3.0, "hidden": 1.0, "valid_score": 0.05, **WEIGHTS} for k in range(2)],
    }


def without_figures(value: Any) -> Any:
    """The same structure with every number and every optional part null."""
    if isinstance(value, dict):
        return {key: without_figures(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_figures(part) for part in value]
    return value if isinstance(value, str) else None


def without_scripts(page: str) -> str:
    """The page without plotly's scripts."""
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def figure_count(page: str) -> int:
    return len(re.findall(r'<div id="figure-\d+"', page))


def test_table_shows_the_metrics_at_the_first_k(report: dict[str, Any]) -> None:
    header = comparison_table(report).splitlines()[0]
    assert re.findall(r"\S+@\d+", header) == ["NDCG@5", "Recall@5", "MRR@5"]


def test_table_fits_a_terminal(report: dict[str, Any]) -> None:
    report["models"][1]["kind"] = "AdaRecStudent"
    assert max(map(len, comparison_table(report).partition("\n\n")[0].splitlines())) <= 125


def test_ratios(report: dict[str, Any]) -> None:
    sentence = comparison_table(report).rpartition("\n\n")[2]
    assert "test NDCG@5 x1.25" in sentence
    assert "8.0 times fewer layer parameters" in sentence
    assert "4.0 times lower batch-1 latency" in sentence
    assert "4.0 times fewer parameters in all" in sentence
    assert "2.0 times more MACs" in sentence
    assert "sequences per second equal within 5 %" in sentence


def test_a_worse_student_is_called_worse(report: dict[str, Any]) -> None:
    report["models"][0], report["models"][1] = (
        report["models"][1] | {"name": "teacher"},
        report["models"][0] | {"name": "student"},
    )
    sentence = comparison_table(report).rpartition("\n\n")[2]
    assert "x0.80" in sentence
    assert "8.0 times more layer parameters" in sentence
    assert "4.0 times higher batch-1 latency" in sentence


def test_zeros_give_no_ratio(report: dict[str, Any], history: dict[str, Any]) -> None:
    teacher, student = report["models"][:2]
    student["parameters"]["layers"] = 0
    teacher["test"] = dict.fromkeys(teacher["test"], 0.0)
    teacher["latency_ms"]["batch_1_p50"] = 0.0
    sentence = comparison_table(report).rpartition("\n\n")[2]
    assert "no layer parameters at all" in sentence
    assert "test NDCG" not in sentence and "latency" not in sentence
    assert "without layer parameters: student" in report_html(report, history, OPERATIONS)


@pytest.mark.parametrize("figure", ["macs_per_sequence", "latency_ms", "sequences_per_second", "test", "parameters"])
def test_null_is_a_dash(report: dict[str, Any], history: dict[str, Any], figure: str) -> None:
    for entry in report["models"]:
        entry[figure] = None
    for text in (
        comparison_table(report),
        report_markdown(report, history),
        without_scripts(report_html(report, history, OPERATIONS)),
    ):
        assert "None" not in text and "nan" not in text
        assert "–" in text.partition("Units")[0] or figure == "test"


def test_everything_null(report: dict[str, Any]) -> None:
    empty = without_figures(report) | {"distillation": None}
    for text in (report_markdown(empty, {}), without_scripts(report_html(empty, {}, []))):
        assert "None" not in text
    assert "no figure was measured for both" in comparison_table(empty)


def test_nan_is_not_measured(report: dict[str, Any]) -> None:
    report["models"][1]["sequences_per_second"] = float("nan")
    assert "nan" not in comparison_table(report)


def test_no_models() -> None:
    assert comparison_table({"models": []}) == "No model was measured."
    assert "No model" in report_html({}, {}, [])


def test_markdown_shows_architecture_and_search(report: dict[str, Any], history: dict[str, Any]) -> None:
    text = report_markdown(report, history)
    assert "Cells 1 to 2 (x2)" in text
    assert "node 1 = conv_3(input)" in text
    assert "node 2 = skip(node 1)" in text
    assert "α moved 0.19" in text and "75 % of the edges" in text
    rows = [line for line in text.splitlines() if re.match(r"\| (search|student) .*0\.350", line)]
    assert len(rows) == 4


def test_edges_that_contribute_nothing_are_left_out(report: dict[str, Any]) -> None:
    report["architecture"]["cells"] = [[["none"], ["skip", "conv_3"]]]
    text = report_markdown(report, {})
    assert "node 1 = nothing" in text and "node 2 = skip(input)\n" in text


def test_candidates_are_listed_with_whole_counts(report: dict[str, Any], history: dict[str, Any]) -> None:
    report["architecture"]["search"]["candidates"] = [
        {
            "hidden_size": 8,
            "operations": {"conv_3": 1, "skip": 2},
            "valid_log_likelihood": -2.5,
            "final_log_likelihood": None,
        }
    ]
    *_, row = candidates_table(report, "github").splitlines()
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["8", "1 conv_3, 2 skip", "-2.5000", "–", "–", "–"]
    page = report_html(report, history, OPERATIONS)
    assert "1 conv_3, 2 skip" in page and "Finalists" not in page


def test_finalists_are_drawn_against_their_bytes(report: dict[str, Any], history: dict[str, Any]) -> None:
    report["architecture"] |= {"hidden_size": 8, "repeats": 2}
    same = {"cells": report["architecture"]["cells"], "operations": {"skip": 3}, "valid_log_likelihood": -2.5}
    report["architecture"]["search"]["candidates"] = rows = [
        {**same, "hidden_size": 8, "repeats": 2, "final_log_likelihood": -2.4, "weights_bytes": 8100, "worse_p": 0.25},
        {**same, "hidden_size": 16, "repeats": 2, "final_log_likelihood": -2.3, "weights_bytes": 16100, "worse_p": 1.0},
        {**same, "hidden_size": 16, "repeats": 1, "weights_bytes": 16050},
    ]
    figure = ladder_figure(report)
    assert list(figure.data[0].x) == [8100, 16100] and list(figure.data[0].y) == [-2.4, -2.3]
    assert list(figure.data[0].text) == ["8 channels, 2 times", "16 channels, 2 times"]
    assert figure.data[0].marker.color[0] != figure.data[0].marker.color[1]
    assert "Finalists: accuracy against size" in report_html(report, history, OPERATIONS)
    assert "| 8 | 0.250 |" in re.sub(" +", " ", candidates_table(report, "github"))
    del rows[1]
    assert ladder_figure(report) is None


def test_a_long_training_gives_a_short_table(report: dict[str, Any]) -> None:
    history = {"student": [{"epoch": k, **WEIGHTS} for k in range(100)]}
    epochs = [
        int(number) for number in re.findall(r"\| student *\| +(\d+) \| +0\.250", report_markdown(report, history))
    ]
    assert len(epochs) == 20 and epochs[0] == 1 and epochs[-1] == 100


def test_page_loads_nothing(report: dict[str, Any], history: dict[str, Any]) -> None:
    page = report_html(report, history, OPERATIONS)
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*\s(?:src|href)\s*=", page)
    assert "@import" not in without_scripts(page) and "url(" not in without_scripts(page)
    assert "default-src 'none'" in page


def test_page_includes_plotly_once(report: dict[str, Any], history: dict[str, Any]) -> None:
    page = report_html(report, history, OPERATIONS)
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, flags=re.DOTALL)
    assert sum(len(script) > 1_000_000 for script in scripts) == 1
    # Accuracy, an alpha panel for each of 3 edges, transport, u and v of two stages, three losses, validation.
    assert figure_count(page) == 1 + 3 + 1 + 4 + 4
    assert page == report_html(report, history, OPERATIONS)


def test_names_are_escaped(report: dict[str, Any], history: dict[str, Any]) -> None:
    evil = "<script>alert(1)</script><b>"
    report["dataset"] = evil
    report["models"][2]["name"] = report["models"][2]["kind"] = evil
    page = report_html(report, history, [evil, "skip", "none"])
    assert evil not in page and "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&lt;b&gt;" in without_scripts(page)


def test_a_bar_in_a_name_does_not_end_a_markdown_cell(report: dict[str, Any]) -> None:
    report["models"][2]["name"] = "a|b"
    assert "a\\|b" in comparison_table(report)


@pytest.mark.parametrize("stages", [[], ["teacher"], ["teacher", "student"], ["search"]])
def test_missing_history(report: dict[str, Any], history: dict[str, Any], stages: list[str]) -> None:
    part = {name: history[name] for name in stages} | ({} if "search" in stages else {"search": []})
    page, text = report_html(report, part, OPERATIONS), report_markdown(report, part)
    assert ("No α was recorded" in page) == ("search" not in stages)
    assert ("No losses were recorded" in page) == (not stages)
    assert ("No layer weights were recorded" in text) == (not {"search", "student"} & set(stages))


def test_a_given_architecture_has_no_search_section(report: dict[str, Any], history: dict[str, Any]) -> None:
    report["architecture"]["search"] = report["stages"]["search"] = report["distillation"] = None
    part = {stage: [{"epoch": 0, "loss": 1.0}] for stage in ("teacher", "student")}
    page, text = report_html(report, part, []), report_markdown(report, part)
    for document in (page, text):
        assert "The architecture was given, not searched." in document
    assert "No layer transport was recorded" in page


@pytest.mark.parametrize(("groups", "panels"), [(1, 3), (4, 12), (5, 4)])
def test_many_groups_are_averaged(report: dict[str, Any], history: dict[str, Any], groups: int, panels: int) -> None:
    few = copy.deepcopy(history)
    for record in history["search"]:
        record["alpha"] = record["alpha"] * groups
    before, after = (figure_count(report_html(report, records, OPERATIONS)) for records in (few, history))
    assert after - before == panels - 3


def test_the_line_joins_the_pareto_front():
    points = [("small", 10.0, 0.1), ("worse", 100.0, 0.05), ("good", 1000.0, 0.3), ("as good", 2000.0, 0.3)]
    line = pareto_figure(points, "NDCG@10").data[-1]
    assert list(line.x) == [10, 1000] and list(line.y) == [0.1, 0.3]
    assert list(pareto_figure([("one", 5.0, -6.0)], "log-likelihood").data[-1].x) == [5]


def test_a_result_is_written_as_json_with_its_documents_beside_it(tmp_path):
    write_result(tmp_path / "new", "compare.1", {"mean": np.float64(0.5), "seeds": (1, 2)}, {"md": "# Title\n"})
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"compare.1.json", "compare.1.md"}
    assert json.loads((tmp_path / "new/compare.1.json").read_text()) == {"mean": 0.5, "seeds": [1, 2]}
    assert (tmp_path / "new/compare.1.md").read_text() == "# Title\n"
