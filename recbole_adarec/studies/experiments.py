"""Experiments over several runs: what the search, each loss, each mapping and each teacher contribute.

An experiment is a function that runs its arms in an `ArmStudy` and returns rows with differences that are paired over
users and seeds. `run_experiment` chooses one by name and writes its files. The experiments on model size are in
`recbole_adarec.studies.compression`, the tables in `recbole_adarec.studies.experiment_tables`.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.config.stages import stage_config
from recbole_adarec.distillation.layer_mapping import MAPPINGS
from recbole_adarec.errors import AdaRecError
from recbole_adarec.evaluation.significance import paired_difference
from recbole_adarec.interop.patches import recbole_patches
from recbole_adarec.model.search_space.architecture import Architecture
from recbole_adarec.model.search_space.cost import architecture_cost
from recbole_adarec.model.teachers.base import backbones
from recbole_adarec.report.page import experiment_page
from recbole_adarec.report.writing import write_result
from recbole_adarec.studies.arms import (
    PAIRED_METRICS,
    Arm,
    ArmResult,
    ArmStudy,
    arm_summary,
    compare_arms,
    metric_means,
    select_arms,
)
from recbole_adarec.studies.compression import cprec, item_tables
from recbole_adarec.studies.experiment_tables import (
    experiment_heading,
    experiment_points,
    experiment_table,
    size_name,
)
from recbole_adarec.studies.teacher_choice import teacher_choice

EXPERIMENT_FORMAT = "recbole-adarec-experiment/1"
EXPERIMENTS = ("search-vs-random", "ablation", "transfer", "teachers", "teacher-choice", "cprec", "item-tables")
SELECTABLE = ("ablation", "cprec")  # experiments of which single arms can be run
BUDGETS = (0.25, 0.5, 2.0, 4.0)  # of ablation: factors of cost_budget
BETAS = (0.1, 10.0)  # of ablation: prices of cost without a budget


def search_vs_random(study: ArmStudy, number: int) -> dict[str, Any]:
    """Compare the searched architecture with random architectures of no higher cost, all trained from new weights.

    Parameters
    ----------
    study : ArmStudy
        Runs the arms.
    number : int
        Random architectures; each is trained with every seed.

    Returns
    -------
    dict
        ``arms``: the row of each architecture; ``teacher``: its means; and for each metric ``percentile`` (share of
        random architectures that are worse than the searched one, in percent), ``against_mean`` and ``against_best``
        (paired differences to the mean of the random ones and to the one that validation would choose),
        ``cheaper_and_better`` and ``smaller_and_better`` (random ones that are better by more than the interval, with
        fewer layer parameters or with fewer parameters in all).

    Raises
    ------
    AdaRecError
        If the search space does not have as many architectures of that cost.
    """
    searched = study.run([Arm("search", {})])["search"]
    config = stage_config(study.values, "search")
    limit = min(architecture_cost(architecture, config["cost"]) for architecture in searched.architectures)
    architectures = random_architectures(searched.architectures[0], config, limit, number)
    same_teacher = (("teacher", "search"),)
    arms = [Arm(f"random-{architecture_digest(a)}", {"architecture": a.to_dict()}, same_teacher) for a in architectures]
    drawn = study.run(arms + _retrained_arm(study, "derived"))
    derived = drawn.pop("derived", searched)
    rows = {"derived": arm_summary(derived), **{name: arm_summary(result) for name, result in drawn.items()}}
    teacher = metric_means(searched.teacher_scores["test"])
    best = _best_by_validation(drawn)
    comparisons = {metric: _against_random(derived, drawn, best, metric) for metric in PAIRED_METRICS}
    return {"arms": rows, "teacher": teacher, **comparisons}


def _against_random(derived: ArmResult, drawn: Mapping[str, ArmResult], best: str, metric: str) -> dict[str, Any]:
    """The derived architecture against the random ones by one metric."""
    scores = derived.scores["test"][metric]
    random_scores = torch.stack([result.scores["test"][metric] for result in drawn.values()])  # [architectures, R, U]
    better = [
        name for name, result in drawn.items() if paired_difference(result.scores["test"][metric], scores).low > 0
    ]
    return {
        "percentile": 100 * float((random_scores.mean((1, 2)) < scores.mean()).double().mean()),
        "against_mean": paired_difference(scores, random_scores.mean(0))._asdict(),
        "best_by_validation": best,
        "against_best": paired_difference(scores, drawn[best].scores["test"][metric])._asdict(),
        "cheaper_and_better": [name for name in better if sum(drawn[name].layers) < sum(derived.layers)],
        "smaller_and_better": [name for name in better if sum(drawn[name].total) < sum(derived.total)],
    }


def _best_by_validation(results: Mapping[str, ArmResult]) -> str:
    """The arm with the highest log-likelihood on the validation data."""
    return max(results, key=lambda name: float(results[name].scores["valid"]["log_likelihood"].mean()))


def _retrained_arm(study: ArmStudy, name: str, source: str = "search", **values: Any) -> list[Arm]:
    """The arm that trains the architecture of the arm `source` from new weights; none if the search did so already.

    The student of a search starts from new weights too, except with ``init_from_supernet``.
    """
    if not stage_config(study.values, "student")["init_from_supernet"]:
        return []
    return [Arm(name, values, (("teacher", source), ("architecture", source)))]


def architecture_digest(architecture: Architecture) -> str:
    """Eight hexadecimal digits that name an architecture: the same for other seeds and more random architectures."""
    return f"{zlib.crc32(repr(architecture).encode()):08x}"


def random_architectures(like: Architecture, config: Any, limit: float, number: int) -> list[Architecture]:
    """Different architectures, drawn uniformly from those of the search space that cost at most `limit`.

    Parameters
    ----------
    like : Architecture
        One of the search space: gives the numbers of cells and edges.
    config : Config
        Of the search stage; its seed is that of the draws.
    limit : float
        Cost at most, in the unit of ``cost``.
    number : int
        How many.

    Raises
    ------
    AdaRecError
        If the search space seems to have fewer.
    """
    rng = random.Random(config["seed"])
    architectures: list[Architecture] = []
    sizes = config["candidate_sizes"] or [like.hidden_size]
    for _ in range(1_000_000):
        groups = 1 if config["share_cells"] else len(like.cells)
        repeats = rng.choice(config["candidate_repeats"] or [like.repeats])
        cells = [tuple(rng.choices(config["operations"], k=len(like.cells[0]))) for _ in range(groups)]
        drawn = Architecture(rng.choice(sizes), tuple(cells) * (len(like.cells) // groups), like.cell_form, repeats)
        if architecture_cost(drawn, config["cost"]) <= limit and drawn not in architectures:
            architectures.append(drawn)
            if len(architectures) == number:
                return architectures
    raise AdaRecError(
        f"only {len(architectures)} random architectures cost no more than the searched one, not {number}"
    )


def ablation(study: ArmStudy, only: Sequence[str] = ()) -> dict[str, Any]:
    """Compare the whole method with arms that leave out or replace one part, and with other cost budgets.

    Parameters
    ----------
    study : ArmStudy
        Runs the arms.
    only : sequence of str
        Arms to run beside the whole method; all by default.

    Returns
    -------
    dict
        What `compare_arms` returns; and ``best_one_to_one``, the difference to the best one-to-one layer mapping by
        validation, if there is one among the arms.

    Raises
    ------
    AdaRecError
        If no arm has one of the names.
    """
    # On one level an epoch goes over all users, on two levels over part of them: w makes as many steps in both.
    config = stage_config(study.values, "search")
    epochs = max(1, round(config["epochs"] * (1 - config["alpha_users"])))
    # A budget of the whole student is in the place of that of its layers.
    budget = config["cost_budget"] if config["budget"] is None else None
    no_budget = {"cost_budget": None} if config["budget"] is None else {"cost_budget": None, "budget": None}
    changes: dict[str, dict[str, Any]] = {
        "no distillation": {"gamma": 0.0},
        "no cross entropy": {"loss_ce": False},
        "no embedding loss": {"loss_embedding": False},
        "no hidden loss": {"loss_hidden": False},
        "no output loss": {"loss_output": False},
        **{f"mapping {name}": {"layer_mapping": name} for name in MAPPINGS if name not in ("emd", "none")},
        "single level": {"bilevel": False, "search_epochs": epochs},
        **{f"budget {times * budget:.4g}": {"cost_budget": times * budget} for times in BUDGETS if budget},
        **{f"no budget, beta {beta}": {**no_budget, "beta": beta} for beta in BETAS},
    }
    arms = select_arms([Arm(name, values, (("teacher", "search"),)) for name, values in changes.items()], only)
    whole = study.run([Arm("search", {})])["search"]
    changed = study.run(arms)
    comparison = compare_arms({"whole": whole, **changed}, "whole")
    mappings = {name: result for name, result in changed.items() if name.startswith("mapping ")}
    if mappings:
        best = _best_by_validation(mappings)
        comparison["best_one_to_one"] = {"name": best} | {
            metric: paired_difference(scores, mappings[best].scores["test"][metric])._asdict()
            for metric, scores in whole.scores["test"].items()
        }
    return comparison


def teachers(study: ArmStudy) -> dict[str, Any]:
    """Compare teachers by their students, all of the architecture that the search with the first teacher finds.

    Parameters
    ----------
    study : ArmStudy
        Runs the arms.

    Returns
    -------
    dict
        What `compare_arms` returns, with ``teacher`` and ``teacher_layers`` for each arm.
    """
    first = "NextItNet"
    others = [name for name in backbones() if name != first]
    source = "search" if study.values["backbone"] == first else first
    searched = study.run([Arm(source, {"backbone": first})])[source]
    reference = f"student of {first}"
    arms = [Arm(f"student of {name}", {"backbone": name}, (("architecture", source),)) for name in others]
    results = {reference: searched} | study.run(arms + _retrained_arm(study, reference, source, backbone=first))
    comparison = compare_arms(results, reference)
    for name, row in comparison["arms"].items():
        row["teacher"] = metric_means(results[name].teacher_scores["test"])
        row["teacher_layers"] = results[name].teacher_layers
    return comparison


def transfer(studies: Mapping[str, ArmStudy]) -> dict[str, Any]:
    """Train the architecture of each dataset on each dataset.

    Parameters
    ----------
    studies : mapping of str to ArmStudy
        Runs the arms of each dataset, all with the same seeds.

    Returns
    -------
    dict
        For each dataset what `compare_arms` returns; the reference is its own architecture.
    """
    searched = {dataset: study.run([Arm("search", {})])["search"] for dataset, study in studies.items()}
    comparisons: dict[str, Any] = {}
    for dataset, study in studies.items():
        reference = f"from {dataset}"
        arms = _retrained_arm(study, reference)
        for source, result in searched.items():
            if source != dataset:
                architectures = zip(study.seeds, result.architectures, strict=True)
                seed_values = {seed: {"architecture": architecture.to_dict()} for seed, architecture in architectures}
                arms.append(Arm(f"from {source}", {}, (("teacher", "search"),), seed_values))
        comparisons[dataset] = compare_arms({reference: searched[dataset]} | study.run(arms), reference)
    return comparisons


@recbole_patches()
def run_experiment(
    name: str,
    config_files: list[str],
    overrides: dict[str, Any],
    *,
    datasets: Sequence[str] = (),
    scenes: Sequence[str] = (),
    seeds: Sequence[int] = (2020, 2021, 2022),
    number: int = 20,
    workers: int = 1,
    output: str | None = None,
    arms: Sequence[str] = (),
    fast_baselines: bool = False,
) -> dict[str, Any]:
    """Run an experiment, and write its tables as JSON, Markdown and HTML beside its runs.

    Parameters
    ----------
    name : str
        One of `EXPERIMENTS`.
    config_files, overrides
        As in `recbole_adarec.config.resolve.resolve_user_config`.
    datasets : sequence of str
        Datasets of ``transfer``, two or more.
    scenes : sequence of str
        The name of `datasets` in version 0.1.
    seeds : sequence of int
        Each arm is run with all of them.
    number : int
        Random architectures of ``search-vs-random``.
    workers : int
        Runs at a time.
    output : str, optional
        The folder, ``experiments`` by default; each dataset has a folder in it.
    arms : sequence of str
        Arms of ``ablation`` or ``cprec`` to run; all by default.
    fast_baselines : bool
        Train causal models of RecBole in ``teacher-choice`` on every position of windows.

    Returns
    -------
    dict
        Content of the JSON file.

    Raises
    ------
    AdaRecError
        For input that cannot be used.
    """
    if datasets and scenes:
        raise AdaRecError("experiment: scenes is the old name of datasets; give datasets alone")
    datasets = datasets or scenes
    if name not in EXPERIMENTS:
        raise AdaRecError(f"experiment: unknown experiment {name!r}; known are {', '.join(EXPERIMENTS)}")
    if name == "transfer" and len(datasets) < 2:
        raise AdaRecError('experiment transfer: give two datasets or more, --datasets="[ml-100k, ml-1m]"')
    if name != "transfer" and datasets:
        raise AdaRecError(f"datasets: experiment {name} runs on one dataset, --dataset=; transfer takes several")
    if arms and name not in SELECTABLE:
        raise AdaRecError(f"arms: experiment {name} always runs all its arms; {' and '.join(SELECTABLE)} run some")
    if fast_baselines and name != "teacher-choice":
        raise AdaRecError(f"fast_baselines: experiment {name} trains no models of RecBole beside ours")
    for key in ("run_dir", "architecture", "seed"):
        if key in overrides:
            raise AdaRecError(f"experiment: {key} is set by the experiment itself; leave it out")
    folder = Path(output or "experiments")

    def study(dataset: str | None) -> ArmStudy:
        values = resolve_user_config(dataset, config_files, overrides)
        return ArmStudy(values, seeds, folder / values["dataset"] / "runs", workers)

    result: dict[str, Any] = {"format": EXPERIMENT_FORMAT, "experiment": name, "seeds": list(seeds)}
    if name == "transfer":
        result["datasets"] = transfer({dataset: study(dataset) for dataset in datasets})
    else:
        one = study(None)
        work: dict[str, Callable[[], dict[str, Any]]] = {
            "search-vs-random": lambda: search_vs_random(one, number),
            "ablation": lambda: ablation(one, arms),
            "teachers": lambda: teachers(one),
            "teacher-choice": lambda: teacher_choice(one, fast_baselines),
            "cprec": lambda: cprec(one, arms),
            "item-tables": lambda: item_tables(one),
        }
        folder /= one.values["dataset"]
        result |= {"dataset": one.values["dataset"]} | work[name]()
    table = experiment_table(result)
    page = experiment_page(experiment_heading(result), table, experiment_points(result), size_name(result))
    write_result(folder, name, result, {"md": table, "html": page})
    return result
