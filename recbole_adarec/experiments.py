"""Experiments over several runs: what the search, each loss and each choice are worth, paired over users and seeds."""

from __future__ import annotations

import json
import multiprocessing
import random
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

from recbole_adarec.checkpoints import load_model
from recbole_adarec.config import STAGES, resolve, stage_config
from recbole_adarec.distillation.transport import MAPPINGS
from recbole_adarec.errors import AdaRecError
from recbole_adarec.evaluation.profile import count_parameters
from recbole_adarec.evaluation.report import experiment_page
from recbole_adarec.evaluation.users import UserScores, paired_difference, user_scores
from recbole_adarec.files import load_checkpoint, plain, save_checkpoint, write_text
from recbole_adarec.model.architecture import Architecture
from recbole_adarec.model.cost import architecture_cost
from recbole_adarec.model.teacher import BACKBONES
from recbole_adarec.pipeline import Run
from recbole_adarec.run_folder import check_same

FORMAT = "recbole-adarec-experiment/1"
_USERS = "recbole-adarec-users/1"
METRICS = {"ndcg": "NDCG@10", "log_likelihood": "log-likelihood"}
EXPERIMENTS = ("search-vs-random", "ablation", "transfer", "teachers", "cprec", "item-tables")
OF_SIZES = ("cprec", "item-tables")  # those of the module compression, which compares whole models
WITH_ARMS = ("ablation", "cprec")  # which can be told what to run
BUDGETS = (0.25, 0.5, 2.0, 4.0)  # times cost_budget
BETAS = (0.1, 10.0)


class Arm(NamedTuple):
    """One run of an experiment.

    Attributes
    ----------
    name : str
        Its folder, below that of its seed.
    values : dict
        Where it differs from the other arms.
    given : tuple of (str, str)
        What it takes from another arm of its seed: a stage, or ``architecture``, and the name of the arm.
    by_seed : dict of int to dict
        Values that differ from seed to seed.
    """

    name: str
    values: dict[str, Any]
    given: tuple[tuple[str, str], ...] = ()
    by_seed: dict[int, dict[str, Any]] = {}


class Result(NamedTuple):
    """What an arm gives, for each seed.

    Attributes
    ----------
    scores : dict
        ``test`` and ``valid`` of the student: metric to ``[S, U]``.
    teacher : dict
        The same of its teacher.
    layers, teacher_layers : list of int
        Parameters of the layers of both.
    architectures : list of Architecture
    """

    scores: dict[str, dict[str, Tensor]]
    teacher: dict[str, dict[str, Tensor]]
    layers: list[int]
    teacher_layers: list[int]
    architectures: list[Architecture]


class Study:
    """Arms over several seeds, in a folder that the same command continues.

    Parameters
    ----------
    values : dict
        What `recbole_adarec.config.resolve` returned.
    seeds : sequence of int
        Every arm is run with each.
    folder : path-like
        ``<folder>/seed-<seed>/<arm>/`` is a run.
    workers : int
        Arms at a time, each in a process of its own.
    """

    def __init__(self, values: dict[str, Any], seeds: Sequence[int], folder: str | Path, workers: int = 1) -> None:
        self.values, self.seeds, self.folder, self.workers = values, list(seeds), Path(folder), workers

    def path(self, seed: int, arm: str) -> Path:
        """The run of an arm."""
        return self.folder / f"seed-{seed}" / arm

    def run(self, arms: Sequence[Arm]) -> dict[str, Result]:
        """Run what is not finished, and load everything."""
        jobs = []
        for arm in arms:
            for seed in self.seeds:
                path = self.path(seed, arm.name)
                values = self.values | arm.values | arm.by_seed.get(seed, {}) | {"seed": seed, "run_dir": str(path)}
                values |= {"show_progress": self.workers == 1 and self.values.get("show_progress", True)}
                if self.workers > 1 and not values["threads"]:
                    values["threads"] = max(1, multiprocessing.cpu_count() // self.workers)
                if (path / "users.pth").is_file():
                    check_same(load_checkpoint(path / "users.pth", expected=_USERS)["values"], values, path)
                else:
                    jobs.append((values, [(stage, str(self.path(seed, other))) for stage, other in arm.given]))
        self._work(jobs)
        return {arm.name: self._load(arm.name) for arm in arms}

    @staticmethod
    def complete(values: dict[str, Any], given: Sequence[tuple[str, str]] = ()) -> None:
        """What a job does, in a process of its own if there are several workers."""
        complete(values, given)

    def _work(self, jobs: list[tuple[dict[str, Any], list[tuple[str, str]]]]) -> None:
        bar = tqdm(total=len(jobs), desc=self.folder.name, unit=" runs", disable=not jobs)
        if self.workers == 1:
            for job in jobs:
                self.complete(*job)
                bar.update()
        else:
            # Forked processes would share the threads of torch, which do not survive a fork.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(self.workers, context) as pool:
                futures = [pool.submit(self.complete, *job) for job in jobs]
                try:
                    for future in as_completed(futures):
                        future.result()  # what a worker raises is raised here
                        bar.update()
                finally:
                    pool.shutdown(cancel_futures=True)
        bar.close()

    def _load(self, arm: str) -> Result:
        contents = [load_checkpoint(self.path(seed, arm) / "users.pth", expected=_USERS) for seed in self.seeds]
        users = contents[0]["test_user"]
        for content in contents:
            if not torch.equal(content["test_user"], users):
                raise AdaRecError(f"{self.folder}: the runs of {arm} have other users; give an empty --output")

        def scores(model: str) -> dict[str, dict[str, Tensor]]:
            return {
                part: {metric: torch.stack([c[model][part][metric] for c in contents]) for metric in METRICS}
                for part in ("valid", "test")
            }

        return Result(
            scores("student"), scores("teacher"), [c["student"]["layers"] for c in contents],
            [c["teacher"]["layers"] for c in contents], [Architecture.from_dict(c["architecture"]) for c in contents],
        )  # fmt: skip


def complete(values: dict[str, Any], given: Iterable[tuple[str, str]] = ()) -> None:
    """Finish a run and write what its models do for each user beside it, ``users.pth``."""
    content: dict[str, Any] = {"format": _USERS, "values": values}
    files = {stage: Path(folder) / f"{stage}.pth" for stage, folder in given}
    if architecture := files.pop("architecture", None):
        values = values | {"architecture": str(architecture.with_suffix(".yaml"))}
    run = Run(values)
    for stage, path in files.items():
        run.adopt(stage, path)
    contents = run.train()
    content["architecture"] = contents["student"]["architecture"]
    for name in ("teacher", "student"):
        config = run.config(name)
        model = load_model(run.folder / f"{name}.pth", config["device"], expected=STAGES[name])
        found: dict[str, UserScores] = {
            "valid": user_scores(model, run.data.valid), "test": user_scores(model, run.data.test),
        }  # fmt: skip
        content[name] = {part: {metric: getattr(of, metric) for metric in METRICS} for part, of in found.items()}
        content[name]["layers"] = count_parameters(model)["layers"]
        content["test_user"] = found["test"].user
    save_checkpoint(run.folder / "users.pth", content)


# ---------------------------------------------------------------------- search-vs-random


def search_vs_random(study: Study, number: int) -> dict[str, Any]:
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
    arms = [Arm("derived", {}, (*teacher, ("architecture", "search")))]
    arms += [Arm(f"random-{_digest(a)}", {"architecture": a.to_dict()}, teacher) for a in drawn]
    results = study.run(arms)
    derived = results.pop("derived")
    others = list(results.values())
    found: dict[str, Any] = {"arms": {"derived": summary(derived), **{n: summary(r) for n, r in results.items()}}}
    found["teacher"] = {m: mean_and_error(searched.teacher["test"][m]) for m in METRICS}
    best = max(results, key=lambda name: float(results[name].scores["valid"]["log_likelihood"].mean()))
    for metric in METRICS:
        ours = derived.scores["test"][metric]
        theirs = torch.stack([other.scores["test"][metric] for other in others])
        found[metric] = {
            "percentile": 100 * float((theirs.mean((1, 2)) < ours.mean()).double().mean()),
            "against_mean": paired_difference(ours, theirs.mean(0))._asdict(),
            "best_by_validation": best,
            "against_best": paired_difference(ours, results[best].scores["test"][metric])._asdict(),
            "cheaper_and_better": [
                name
                for name, other in results.items()
                if sum(other.layers) < sum(derived.layers)
                and paired_difference(other.scores["test"][metric], ours).low > 0
            ],
        }
    return found


def _digest(architecture: Architecture) -> str:
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


# ---------------------------------------------------------------------- ablation


def ablation(study: Study, only: Sequence[str] = ()) -> dict[str, Any]:
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
    arms = chosen([Arm(name, values, (("teacher", "whole"),)) for name, values in changes.items()], only)
    whole = study.run([Arm("whole", {})])
    others = study.run(arms)
    found = compared(whole | others, "whole")
    mappings = {name: result for name, result in others.items() if name.startswith("mapping ")}
    if not mappings:
        return found
    best = max(mappings, key=lambda name: float(mappings[name].scores["valid"]["log_likelihood"].mean()))
    found["best_one_to_one"] = {"name": best} | {
        metric: paired_difference(of, mappings[best].scores["test"][metric])._asdict()
        for metric, of in whole["whole"].scores["test"].items()
    }
    return found


def chosen(arms: Sequence[Arm], only: Sequence[str]) -> list[Arm]:
    """The arms of these names, or all of them; a name that none has is refused."""
    names = [arm.name for arm in arms]
    if unknown := [name for name in only if name not in names]:
        raise AdaRecError(f"arms: unknown {unknown[0]!r}; known are {', '.join(names)}")
    return [arm for arm in arms if not only or arm.name in only]


# ---------------------------------------------------------------------- teachers


def teachers(study: Study) -> dict[str, Any]:
    """The same student under each teacher: the architecture that the first teacher's search finds."""
    first, *others = BACKBONES
    results = study.run([Arm(first, {"backbone": first})])
    given = (("architecture", first),)
    alike = [Arm(f"student of {name}", {"backbone": name}, given) for name in (first, *others)]
    results = study.run(alike)
    found = compared(results, alike[0].name)
    for name, result in results.items():
        found["arms"][name]["teacher"] = {m: mean_and_error(result.teacher["test"][m]) for m in METRICS}
        found["arms"][name]["teacher_layers"] = result.teacher_layers
    return found


# ---------------------------------------------------------------------- transfer


def transfer(studies: Mapping[str, Study]) -> dict[str, Any]:
    """The architecture of each scene trained on each scene."""
    found: dict[str, Any] = {}
    homes = {scene: study.run([Arm("search", {})])["search"] for scene, study in studies.items()}
    for scene, study in studies.items():
        arms = []
        for home, searched in homes.items():
            architectures = zip(study.seeds, searched.architectures, strict=True)
            by_seed = {seed: {"architecture": architecture.to_dict()} for seed, architecture in architectures}
            arms.append(Arm(f"from {home}", {}, (("teacher", "search"),), by_seed))
        results = study.run(arms)
        found[scene] = compared(results, f"from {scene}")
    return found


# ---------------------------------------------------------------------- figures


def compared(results: Mapping[str, Result], reference: str) -> dict[str, Any]:
    """Rows of all arms, each with its paired difference to one of them."""
    rows = {name: summary(result) for name, result in results.items()}
    for name, result in results.items():
        if name != reference:
            rows[name]["against_reference"] = {
                metric: paired_difference(of, results[reference].scores["test"][metric])._asdict()
                for metric, of in result.scores["test"].items()
            }
    return {"reference": reference, "arms": rows}


def mean_and_error(values: Tensor) -> dict[str, float | None]:
    """Mean of ``[S, U]`` and its standard error over the seeds."""
    of_seeds = values.double().mean(1)
    error = float(of_seeds.std() / len(of_seeds) ** 0.5) if len(of_seeds) > 1 else None
    return {"mean": float(of_seeds.mean()), "standard_error": error}


def summary(result: Result) -> dict[str, Any]:
    """An arm's row."""
    return {
        "layers": result.layers,
        "architectures": [architecture.to_dict() for architecture in result.architectures],
        **{part: {m: mean_and_error(of[m]) for m in METRICS} for part, of in result.scores.items()},
    }


# ---------------------------------------------------------------------- command


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
        As in `recbole_adarec.config.resolve`.
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
    from recbole_adarec import compression  # it imports this module

    folder = Path(output or "experiments")

    def study(dataset: str | None) -> Study:
        values = resolve(dataset, config_files, overrides)
        return Study(values, seeds, folder / values["dataset"] / "runs", workers)

    found: dict[str, Any] = {"format": FORMAT, "experiment": name, "seeds": list(seeds)}
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
    write_text(path.with_suffix(".md"), table(found))
    size = "parameters" if name in OF_SIZES else "layer parameters"
    write_text(path.with_suffix(".html"), experiment_page(heading(found), table(found), planes(found), size))
    return found


def heading(found: Mapping[str, Any]) -> str:
    """What was compared, and where."""
    return str(found["experiment"]) + (f", {found['dataset']}" if "dataset" in found else "")


def planes(found: Mapping[str, Any]) -> dict[str, list[tuple[str, float, float]]]:
    """For each scene and metric the arms' names, mean layer parameters and test results; none without parameters."""
    if found["experiment"] in OF_SIZES:
        from recbole_adarec import compression

        return compression.planes(found)
    drawn = {}
    for scene, part in found.get("scenes", {"": found}).items():
        for metric, words in METRICS.items():
            sized = [(name, sum(arm["layers"]) / len(arm["layers"]), arm) for name, arm in part["arms"].items()]
            arms = [(name, size, arm["test"][metric]["mean"]) for name, size, arm in sized if size > 0]
            drawn[f"{words}, {scene}" if scene else words] = arms
    return drawn


def table(found: Mapping[str, Any]) -> str:
    """An experiment as Markdown."""
    lines = [f"# {heading(found)}", ""]
    lines += [f"Seeds {', '.join(map(str, found['seeds']))}; test data; ± standard error over the seeds; "
              "[95 % interval of the paired difference, bootstrap over users].", ""]  # fmt: skip
    for scene, part in found.get("scenes", {"": found}).items():
        lines += [f"## {scene}", ""] if scene else []
        lines += [_sizes(part) if found["experiment"] in OF_SIZES else _rows(part), ""]
        if best := part.get("best_one_to_one"):
            differences = ", ".join(f"{words} {_difference(best[metric])}" for metric, words in METRICS.items())
            lines += [f"EMD against the best one-to-one mapping by validation ({best['name']}): {differences}.", ""]
        for metric, words in METRICS.items():
            if metric in part:
                of = part[metric]
                lines.append(
                    f"{words}: the derived architecture is better than {of['percentile']:.0f} % of the random ones; "
                    f"against their mean {_difference(of['against_mean'])}; against the best by validation "
                    f"({of['best_by_validation']}) {_difference(of['against_best'])}; cheaper and better by more than "
                    f"the interval: {', '.join(of['cheaper_and_better']) or 'none'}."
                )
                lines.append("")
    return "\n".join(lines)


def _sizes(part: Mapping[str, Any]) -> str:
    from recbole_adarec import compression

    return compression.rows(part)


def _rows(part: Mapping[str, Any]) -> str:
    rows = []
    for name, arm in part["arms"].items():
        row = {"": name, "layer params": f"{sum(arm['layers']) / len(arm['layers']):,.0f}"}
        for metric, words in METRICS.items():
            row[words] = _mean(arm["test"][metric])
            if "against_reference" in arm:
                row[f"{words}, difference"] = _difference(arm["against_reference"][metric])
        rows.append(row)
    if "reference" in part:
        rows.sort(key=lambda row: row[""] != part["reference"])
    return tabulate(rows, headers="keys", tablefmt="pipe", missingval="–", disable_numparse=True)


def _mean(of: Mapping[str, Any]) -> str:
    error = of["standard_error"]
    return f"{of['mean']:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def _difference(of: Mapping[str, float]) -> str:
    return f"{of['mean']:+.4f} [{of['low']:+.4f}, {of['high']:+.4f}]"
