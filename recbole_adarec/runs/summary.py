"""Puts the figures of a run together, and writes its report: report.json, report.md and report.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recbole_adarec.config.schema import STAGES
from recbole_adarec.data.loading import Loaders
from recbole_adarec.evaluation.profile import (
    count_macs,
    count_parameters,
    measure_speed,
    scores_all_items,
    timing_rows,
    weights_bytes,
)
from recbole_adarec.model.search_space.architecture import Architecture
from recbole_adarec.model.search_space.cost import architecture_cost, layers_cost
from recbole_adarec.report.page import report_html
from recbole_adarec.report.text import report_markdown
from recbole_adarec.report.writing import write_result
from recbole_adarec.runs.run_folder import RunFolder

REPORT_FORMAT = "recbole-adarec-report/1"


def model_rows(
    models: Mapping[str, Any],
    kinds: Mapping[str, str],
    results: Mapping[str, Mapping[str, Any]],
    data: Loaders,
    repeats: int,
) -> list[dict[str, Any]]:
    """Size, speed and accuracy of each model: ``models`` of report.json.

    Parameters
    ----------
    models : mapping of str to model
        In evaluation mode, all on one device.
    kinds : mapping of str to str
        Kind of each model, where it is not its name.
    results : mapping
        ``valid`` and ``test`` metrics of each model, and what else its file holds.
    data : Loaders
        Of the run.
    repeats : int
        Number of timed requests of one sequence, for each model.
    """
    device = next(next(iter(models.values())).parameters()).device
    rows, longest = timing_rows(data.test._dataset, device)
    timed = {name: model for name, model in models.items() if scores_all_items(type(model))}
    speed = measure_speed(timed, rows, repeats) if timed else {}
    not_measured = {"latency_ms": None, "sequences_per_second": None}
    return [
        {
            "name": name,
            "kind": kinds.get(name, name),
            "parameters": count_parameters(model),
            "weights_bytes": weights_bytes(model, _stored_weights(results[name])),
            "macs_per_sequence": count_macs(model, longest) if name in timed else None,
            **speed.get(name, not_measured),
            "valid": results[name]["valid"],
            "test": results[name]["test"],
        }
        for name, model in models.items()
    ]


def _stored_weights(content: Mapping[str, Any]) -> str | None:
    """The form of the weights in a model file; only students have another than floats."""
    return content["config"].get("stored_weights") if content.get("model") == STAGES["student"] else None


def stage_rows(contents: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Seconds and epochs of each stage: ``stages`` of report.json.

    Parameters
    ----------
    contents : mapping
        Content of the model file of each stage.
    """
    return {
        name: {"seconds": round(content["seconds"], 2), "epochs": content["epochs"]}
        for name, content in contents.items()
    }


def run_report(
    run: Mapping[str, Any],
    contents: Mapping[str, Mapping[str, Any]],
    models: Sequence[Mapping[str, Any]],
    architecture: Architecture,
    choice: Mapping[str, Any],
    teacher: Any,
    histories: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The content of report.json.

    Parameters
    ----------
    run : mapping
        ``dataset`` and ``seed``.
    contents : mapping
        Content of the model file of each stage; ``search`` may be missing.
    models : sequence of mapping
        What `model_rows` returned.
    architecture : Architecture
        Of the student.
    choice : mapping
        Content of candidates.json; empty where no architecture was chosen.
    teacher : AdaRecTeacher
        The trained teacher.
    histories : sequence of mapping
        What `by_history_length` returned.
    """
    search_row = None
    if "search" in contents:
        search = contents["search"]["search"]
        share = architecture_cost(architecture, search["cost_kind"]) / layers_cost(teacher, search["cost_kind"])
        search_row = {**search, "cost": share, "candidates": choice.get("candidates", [])}
    stages: dict[str, dict[str, Any]] = stage_rows(contents)
    if choice:
        stages["choice"] = {"seconds": round(choice["seconds"], 2), "epochs": None}
    last = contents["student"]["history"][-1]
    return {
        "format": REPORT_FORMAT,
        **run,
        "stages": stages,
        "models": list(models),
        "architecture": {**architecture.to_dict(), "operations": architecture.count(), "search": search_row},
        "teacher_candidates": contents["teacher"].get("candidates"),
        "histories": list(histories),
        "teaching": recbole_teacher_text(teacher, contents["teacher"]),
        "distillation": last.get("flow")
        and {key: last[key] for key in ("student_layer_weights", "teacher_layer_weights", "flow")},
    }


def recbole_teacher_text(teacher: Any, content: Mapping[str, Any]) -> str | None:
    """What is distilled from a model of RecBole, and its results as RecBole ranks; None for other teachers.

    Parameters
    ----------
    teacher : AdaRecTeacher
        The trained teacher.
    content : mapping
        Content of its model file.
    """
    if "as_recbole" not in content:
        return None
    bias, metric = float(teacher.repeat_bias), str(content["config"]["valid_metric"])
    if bias == 0:
        return str(teacher.describe())
    return (
        f"{teacher.describe()} Items of the history have {bias:+.1f} added to their scores here, as the student's "
        f"have; as RecBole ranks them its test {metric} is {content['as_recbole']['test'][metric.lower()]:.4f}."
    )


def write_report(
    folder: RunFolder,
    report: Mapping[str, Any],
    training_logs: Mapping[str, Any] | None = None,
    operations: Sequence[str] = (),
) -> None:
    """Write report.json, report.md and report.html into a run folder.

    Parameters
    ----------
    folder : RunFolder
        Of the run.
    report : mapping
        Content of report.json.
    training_logs : mapping, optional
        Records of the epochs of each stage.
    operations : sequence of str
        Candidate operations of the search, in the order of the recorded α.
    """
    logs = training_logs or {}
    documents = {"md": report_markdown(report, logs), "html": report_html(report, logs, operations)}
    write_result(folder.path, "report", report, documents)
