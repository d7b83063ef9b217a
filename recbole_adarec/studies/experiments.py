"""Experiments over several runs: what the search, each loss and each choice are worth, paired over users and seeds."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

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
from recbole_adarec.storage.files import plain, write_text
from recbole_adarec.studies import compression
from recbole_adarec.studies.arms import (
    PAIRED_METRICS,
    Arm,
    ArmStudy,
    arm_summary,
    compare_arms,
    difference_text,
    mean_and_error,
    mean_text,
    select_arms,
)

EXPERIMENT_FORMAT = "recbole-adarec-experiment/1"
EXPERIMENTS = ("search-vs-random", "ablation", "transfer", "teachers", "cprec", "item-tables")
OF_SIZES = ("cprec", "item-tables")  # those of the module compression, which compares whole models
WITH_ARMS = ("ablation", "cprec")  # which can be told what to run
BUDGETS = (0.25, 0.5, 2.0, 4.0)  # times cost_budget
BETAS = (0.1, 10.0)


def search_vs_random(study: ArmStudy, number: int) -> dict[str, Any]:
    """The architecture that the search finds against random ones of no more cost, all trained from scratch alike.

    Parameters
    ----------
    study : Study
        Where the runs are.
    number : int
        Random architectures; each is trained with every seed.
    """
    searched = study.run([Arm("search", {})])["search"]
    config = stage_config(study.values, "search")
    limit = min(architecture_cost(architecture, config["cost"]) for architecture in searched.architectures)
    drawn = random_architectures(searched.architectures[0], config, limit, number)
    teacher = (("teacher", "search"),)
    arms = [Arm(f"random-{architecture_digest(a)}", {"architecture": a.to_dict()}, teacher) for a in drawn]
    results = study.run(arms + _retrained_arm(study, "derived"))
    derived = results.pop("derived", searched)
    others = list(results.values())
    found: dict[str, Any] = {
        "arms": {"derived": arm_summary(derived), **{n: arm_summary(r) for n, r in results.items()}}
    }
    found["teacher"] = {m: mean_and_error(searched.teacher["test"][m]) for m in PAIRED_METRICS}
    best = max(results, key=lambda name: float(results[name].scores["valid"]["log_likelihood"].mean()))
    for metric in PAIRED_METRICS:
        ours = derived.scores["test"][metric]
        theirs = torch.stack([other.scores["test"][metric] for other in others])
        found[metric] = {
            "percentile": 100 * float((theirs.mean((1, 2)) < ours.mean()).double().mean()),
            "against_mean": paired_difference(ours, theirs.mean(0))._asdict(),
            "best_by_validation": best,
            "against_best": paired_difference(ours, results[best].scores["test"][metric])._asdict(),
        }
        better = [n for n, other in results.items() if paired_difference(other.scores["test"][metric], ours).low > 0]
        found[metric]["cheaper_and_better"] = [n for n in better if sum(results[n].layers) < sum(derived.layers)]
        found[metric]["smaller_and_better"] = [n for n in better if sum(results[n].total) < sum(derived.total)]
    return found


def _retrained_arm(study: ArmStudy, name: str, home: str = "search", **values: Any) -> list[Arm]:
    """The arm that trains what the search of the arm `home` found as any architecture is trained.

    There is none where the student of the search has been trained so: unless it began with the supernet's weights.
    """
    if not stage_config(study.values, "student")["init_from_supernet"]:
        return []
    return [Arm(name, values, (("teacher", home), ("architecture", home)))]


def architecture_digest(architecture: Architecture) -> str:
    """A name that stays with an architecture: other seeds, or more random ones, find the runs that are there."""
    return f"{zlib.crc32(repr(architecture).encode()):08x}"


def random_architectures(like: Architecture, config: Any, limit: float, number: int) -> list[Architecture]:
    """Different architectures of the search space, its sizes included, uniformly among those of at most `limit`."""
    rng, found = random.Random(config["seed"]), []
    sizes = config["candidate_sizes"] or [like.hidden_size]
    for _ in range(1_000_000):
        groups = 1 if config["share_cells"] else len(like.cells)
        cells = [tuple(rng.choices(config["operations"], k=len(like.cells[0]))) for _ in range(groups)]
        drawn = Architecture(rng.choice(sizes), tuple(cells) * (len(like.cells) // groups))
        if architecture_cost(drawn, config["cost"]) <= limit and drawn not in found:
            found.append(drawn)
            if len(found) == number:
                return found
    raise AdaRecError(f"only {len(found)} random architectures cost no more than the searched one, not {number}")


def ablation(study: ArmStudy, only: Sequence[str] = ()) -> dict[str, Any]:
    """Each part of the method left out or replaced, against the whole; and the budget over a range.

    Parameters
    ----------
    study : Study
        Where the runs are.
    only : sequence of str
        Arms to run beside the whole; all by default.
    """
    # On one level an epoch goes over all users, on two over half of them: w takes as many steps.
    config = stage_config(study.values, "search")
    epochs = max(1, round(config["epochs"] * (1 - config["alpha_users"])))
    budget = config["cost_budget"]
    changes: dict[str, dict[str, Any]] = {
        "no distillation": {"gamma": 0.0},
        "no cross entropy": {"loss_ce": False},
        "no embedding loss": {"loss_embedding": False},
        "no hidden loss": {"loss_hidden": False},
        "no output loss": {"loss_output": False},
        **{f"mapping {name}": {"layer_mapping": name} for name in MAPPINGS if name not in ("emd", "none")},
        "single level": {"bilevel": False, "search_epochs": epochs},
        **{f"budget {times * budget:.4g}": {"cost_budget": times * budget} for times in BUDGETS if budget},
        **{f"no budget, beta {beta}": {"cost_budget": None, "beta": beta} for beta in BETAS},
    }
    arms = select_arms([Arm(name, values, (("teacher", "search"),)) for name, values in changes.items()], only)
    whole = study.run([Arm("search", {})])["search"]
    others = study.run(arms)
    found = compare_arms({"whole": whole, **others}, "whole")
    mappings = {name: result for name, result in others.items() if name.startswith("mapping ")}
    if not mappings:
        return found
    best = max(mappings, key=lambda name: float(mappings[name].scores["valid"]["log_likelihood"].mean()))
    found["best_one_to_one"] = {"name": best} | {
        metric: paired_difference(of, mappings[best].scores["test"][metric])._asdict()
        for metric, of in whole.scores["test"].items()
    }
    return found


def teachers(study: ArmStudy) -> dict[str, Any]:
    """The same student under each teacher: the architecture that the first teacher's search finds."""
    first, *others = backbones()
    home = "search" if study.values["backbone"] == first else first
    searched = study.run([Arm(home, {"backbone": first})])[home]
    reference = f"student of {first}"
    arms = [Arm(f"student of {name}", {"backbone": name}, (("architecture", home),)) for name in others]
    results = {reference: searched} | study.run(arms + _retrained_arm(study, reference, home, backbone=first))
    found = compare_arms(results, reference)
    for name, result in results.items():
        found["arms"][name]["teacher"] = {m: mean_and_error(result.teacher["test"][m]) for m in PAIRED_METRICS}
        found["arms"][name]["teacher_layers"] = result.teacher_layers
    return found


def transfer(studies: Mapping[str, ArmStudy]) -> dict[str, Any]:
    """The architecture of each scene trained on each scene."""
    found: dict[str, Any] = {}
    homes = {scene: study.run([Arm("search", {})])["search"] for scene, study in studies.items()}
    for scene, study in studies.items():
        arms = _retrained_arm(study, f"from {scene}")
        for home, searched in homes.items():
            if home != scene:
                architectures = zip(study.seeds, searched.architectures, strict=True)
                by_seed = {seed: {"architecture": architecture.to_dict()} for seed, architecture in architectures}
                arms.append(Arm(f"from {home}", {}, (("teacher", "search"),), by_seed))
        results = {f"from {scene}": homes[scene]} | study.run(arms)
        found[scene] = compare_arms(results, f"from {scene}")
    return found


@recbole_patches()
def run_experiment(
    name: str,
    config_files: list[str],
    overrides: dict[str, Any],
    *,
    scenes: Sequence[str] = (),
    seeds: Sequence[int] = (2020, 2021, 2022),
    number: int = 20,
    workers: int = 1,
    output: str | None = None,
    arms: Sequence[str] = (),
) -> dict[str, Any]:
    """Run an experiment, print its table and write it beside its runs.

    Parameters
    ----------
    name : str
        One of `EXPERIMENTS`.
    config_files, overrides
        As in `recbole_adarec.config.resolve_user_config.resolve_user_config`.
    scenes : sequence of str
        Datasets of ``transfer``.
    seeds : sequence of int
        Each arm is run with all of them.
    number : int
        Random architectures of ``search-vs-random``.
    workers : int
        Runs at a time.
    output : str, optional
        The folder; ``experiments/`` by default. A folder of its own for each dataset is made in it.
    arms : sequence of str
        Those of ``cprec`` or ``ablation`` to run; all by default.

    Returns
    -------
    dict
        What the JSON file holds.

    Raises
    ------
    AdaRecError
        For input that cannot be used.
    """
    if name not in EXPERIMENTS:
        raise AdaRecError(f"experiment: unknown experiment {name!r}; known are {', '.join(EXPERIMENTS)}")
    if name == "transfer" and len(scenes) < 2:
        raise AdaRecError('experiment transfer: give two datasets or more, --scenes="[ml-100k, ml-1m]"')
    if arms and name not in WITH_ARMS:
        raise AdaRecError(f"arms: experiment {name} always runs all of its own; {' and '.join(WITH_ARMS)} take some")
    for key in ("run_dir", "architecture", "seed"):
        if key in overrides:
            raise AdaRecError(f"experiment: {key} is set by the experiment itself; leave it out")
    folder = Path(output or "experiments")

    def study(dataset: str | None) -> ArmStudy:
        values = resolve_user_config(dataset, config_files, overrides)
        return ArmStudy(values, seeds, folder / values["dataset"] / "runs", workers)

    found: dict[str, Any] = {"format": EXPERIMENT_FORMAT, "experiment": name, "seeds": list(seeds)}
    if name == "transfer":
        found |= {"scenes": transfer({scene: study(scene) for scene in scenes})}
        path = folder / "transfer"
    else:
        one = study(None)
        work: dict[str, Callable[[], dict[str, Any]]] = {
            "search-vs-random": lambda: search_vs_random(one, number),
            "ablation": lambda: ablation(one, arms),
            "teachers": lambda: teachers(one),
            "cprec": lambda: compression.cprec(one, arms),
            "item-tables": lambda: compression.item_tables(one),
        }
        found |= {"dataset": one.values["dataset"]} | work[name]()
        path = folder / one.values["dataset"] / name
    write_text(path.with_suffix(".json"), json.dumps(plain(found), indent=1) + "\n")
    write_text(path.with_suffix(".md"), experiment_table(found))
    size = "parameters" if name in OF_SIZES else "layer parameters"
    write_text(
        path.with_suffix(".html"),
        experiment_page(experiment_heading(found), experiment_table(found), accuracy_size_points(found), size),
    )
    return found


def experiment_heading(found: Mapping[str, Any]) -> str:
    """What was compared, and where."""
    return str(found["experiment"]) + (f", {found['dataset']}" if "dataset" in found else "")


def accuracy_size_points(found: Mapping[str, Any]) -> dict[str, list[tuple[str, float, float]]]:
    """For each scene and metric the arms' names, mean layer parameters and test results; none without parameters."""
    if found["experiment"] in OF_SIZES:
        return compression.accuracy_parameters_points(found)
    drawn = {}
    for scene, part in found.get("scenes", {"": found}).items():
        for metric, words in PAIRED_METRICS.items():
            sized = [(name, sum(arm["layers"]) / len(arm["layers"]), arm) for name, arm in part["arms"].items()]
            arms = [(name, size, arm["test"][metric]["mean"]) for name, size, arm in sized if size > 0]
            drawn[f"{words}, {scene}" if scene else words] = arms
    return drawn


def experiment_table(found: Mapping[str, Any]) -> str:
    """An experiment as Markdown."""
    lines = [f"# {experiment_heading(found)}", ""]
    lines += [f"Seeds {', '.join(map(str, found['seeds']))}; test data; ± standard error over the seeds; "
              "[95 % interval of the paired difference, bootstrap over users].", ""]  # fmt: skip
    for scene, part in found.get("scenes", {"": found}).items():
        lines += [f"## {scene}", ""] if scene else []
        lines += [compression.size_table(part) if found["experiment"] in OF_SIZES else _rows(part), ""]
        if best := part.get("best_one_to_one"):
            differences = ", ".join(
                f"{words} {difference_text(best[metric])}" for metric, words in PAIRED_METRICS.items()
            )
            lines += [f"EMD against the best one-to-one mapping by validation ({best['name']}): {differences}.", ""]
        for metric, words in PAIRED_METRICS.items():
            if metric in part:
                of = part[metric]
                lines.append(
                    f"{words}: the derived architecture is better than {of['percentile']:.0f} % of the random ones; "
                    f"against their mean {difference_text(of['against_mean'])}; against the best by validation "
                    f"({of['best_by_validation']}) {difference_text(of['against_best'])}; better by more than the "
                    f"interval and with fewer layer parameters: {', '.join(of['cheaper_and_better']) or 'none'}; with "
                    f"fewer parameters in all: {', '.join(of['smaller_and_better']) or 'none'}."
                )
                lines.append("")
    return "\n".join(lines)


def _rows(part: Mapping[str, Any]) -> str:
    rows = []
    for name, arm in part["arms"].items():
        channels = sorted({architecture["hidden_size"] for architecture in arm["architectures"]})
        row = {"": name, "channels": ", ".join(map(str, channels))}
        for words, of in (("layer params", arm["layers"]), ("params", arm["total"])):
            row[words] = f"{sum(of) / len(of):,.0f}"
        for metric, words in PAIRED_METRICS.items():
            row[words] = mean_text(arm["test"][metric])
            if "against_reference" in arm:
                row[f"{words}, difference"] = difference_text(arm["against_reference"][metric])
        rows.append(row)
    if "reference" in part:
        rows.sort(key=lambda row: row[""] != part["reference"])
    return tabulate(rows, headers="keys", tablefmt="pipe", missingval="–", disable_numparse=True)
