"""Arms of an experiment: several settings, each run with several seeds and compared on the same users.

`ArmStudy` trains the runs in a folder that the same command continues, and returns an `ArmResult` for each arm; the
functions below it turn results into rows with means, standard errors and paired differences.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from recbole_adarec.config.run_config import RunConfig
from recbole_adarec.config.schema import STAGES
from recbole_adarec.distillation.teacher_outputs import TeacherOutputCache
from recbole_adarec.distributed import worker_pool
from recbole_adarec.errors import AdaRecError
from recbole_adarec.evaluation.per_user import UserScores, user_scores
from recbole_adarec.evaluation.profile import count_parameters
from recbole_adarec.evaluation.significance import paired_difference
from recbole_adarec.interop.patches import recbole_patches
from recbole_adarec.model.search_space.architecture import Architecture
from recbole_adarec.model.stored import load_model
from recbole_adarec.runs.pipeline import Run
from recbole_adarec.runs.run_folder import check_same
from recbole_adarec.storage.files import load_checkpoint, save_checkpoint

USERS_FORMAT = "recbole-adarec-users/1"  # of users.pth
PAIRED_METRICS = {"ndcg": "NDCG@10", "log_likelihood": "log-likelihood"}  # measures that arms are compared by


class Arm(NamedTuple):
    """One setting of an experiment, which is run with every seed.

    Attributes
    ----------
    name : str
        Name of its folder, below the folder of a seed.
    values : dict
        Values in which it differs from the other arms.
    reused : tuple of (str, str)
        What it reuses from other arms of the same seed: the name of a stage, or ``architecture``, and the name of the
        arm.
    seed_values : dict of int to dict
        Values that differ from seed to seed.
    """

    name: str
    values: dict[str, Any]
    reused: tuple[tuple[str, str], ...] = ()
    seed_values: dict[int, dict[str, Any]] = {}


class ArmResult(NamedTuple):
    """Scores and sizes of an arm over R seeds and U users.

    Attributes
    ----------
    scores, teacher_scores : dict
        Of the student and of its teacher: ``valid`` and ``test``, each a metric of `PAIRED_METRICS` to ``[R, U]``.
    total : list of int
        All parameters of the student, for each seed.
    layers, teacher_layers : list of int
        Parameters of the layers of the student and of its teacher, for each seed.
    architectures : list of Architecture
        The student's, for each seed.
    """

    scores: dict[str, dict[str, Tensor]]
    teacher_scores: dict[str, dict[str, Tensor]]
    total: list[int]
    layers: list[int]
    teacher_layers: list[int]
    architectures: list[Architecture]


@lru_cache(maxsize=1)
def _teacher_outputs(teacher: Path) -> TeacherOutputCache:
    """The cache of the teacher in this file; this process keeps that of one teacher at a time."""
    return TeacherOutputCache()


class ArmStudy:
    """Runs arms with several seeds, in a folder that the same command continues.

    Parameters
    ----------
    values : dict
        Values that all arms share, as `recbole_adarec.config.resolve.resolve_user_config` returned them.
    seeds : sequence of int
        Every arm is run with each of them.
    folder : path-like
        Folder of the runs: ``<folder>/seed-<seed>/<arm>/``.
    workers : int
        Runs at a time, each in its own process.
    """

    def __init__(self, values: dict[str, Any], seeds: Sequence[int], folder: str | Path, workers: int = 1) -> None:
        self.values, self.seeds, self.folder, self.workers = values, list(seeds), Path(folder), workers

    def path(self, seed: int, arm: str) -> Path:
        """The folder of the run of an arm."""
        return self.folder / f"seed-{seed}" / arm

    def run(self, arms: Sequence[Arm]) -> dict[str, ArmResult]:
        """Train the runs that are not finished, and load the results of all.

        Parameters
        ----------
        arms : sequence of Arm
            An arm that others reuse stages of has to be finished before.

        Returns
        -------
        dict of str to ArmResult
            Results by the names of the arms.

        Raises
        ------
        AdaRecError
            If the folder holds a run of other values, or runs with different users.
        """
        jobs = []
        # Seeds are the outer loop: arms of a seed share their teacher, so a process encodes with each teacher once.
        for seed in self.seeds:
            for arm in arms:
                path = self.path(seed, arm.name)
                values = self.values | arm.values | arm.seed_values.get(seed, {}) | {"seed": seed, "run_dir": str(path)}
                values |= {"show_progress": self.workers == 1 and self.values.get("show_progress", True)}
                if self.workers > 1 and not values["threads"]:
                    values["threads"] = max(1, multiprocessing.cpu_count() // self.workers)
                if (path / "users.pth").is_file():
                    check_same(load_checkpoint(path / "users.pth", expected=USERS_FORMAT)["values"], values, path)
                else:
                    jobs.append((values, [(stage, str(self.path(seed, other))) for stage, other in arm.reused]))
        try:
            self._run_jobs(jobs)
        finally:
            _teacher_outputs.cache_clear()
        return {arm.name: self._result(arm.name) for arm in arms}

    @staticmethod
    @recbole_patches()
    def run_job(values: dict[str, Any], reused: Sequence[tuple[str, str]] = ()) -> None:
        """Train a run, and write the scores of each user beside its models, as ``users.pth``.

        Parameters
        ----------
        values : dict
            Values of the run, its folder and seed among them.
        reused : sequence of (str, str)
            What is reused: the name of a stage, or ``architecture``, and the folder of the run to copy it from.
        """
        content: dict[str, Any] = {"format": USERS_FORMAT, "values": values}
        files = {stage: Path(folder) / f"{stage}.pth" for stage, folder in reused}
        teacher_users = files["teacher"].with_name("users.pth") if "teacher" in files else None
        if architecture := files.pop("architecture", None):
            values = values | {"architecture": str(architecture.with_suffix(".yaml"))}
        run = Run(RunConfig(values))
        for stage, path in files.items():
            run.reuse_stage(stage, path)
        if "teacher" in files:
            run.teacher_outputs = _teacher_outputs(files["teacher"])
        contents = run.train()
        content["architecture"] = contents["student"]["architecture"]
        for name in ("teacher", "student"):
            if name == "teacher" and teacher_users is not None and teacher_users.is_file():  # same file, same users
                content[name] = load_checkpoint(teacher_users, expected=USERS_FORMAT)[name]
                continue
            config = run.config.stage(name)
            model = load_model(run.folder / f"{name}.pth", config["device"], expected=STAGES[name])
            scores = {"valid": user_scores(model, run.data.valid), "test": user_scores(model, run.data.test)}
            content[name] = {part: paired_scores(part_scores) for part, part_scores in scores.items()}
            content[name]["layers"] = count_parameters(model)["layers"]
            content["test_user"] = scores["test"].user
        save_checkpoint(run.folder / "users.pth", content)

    def _run_jobs(self, jobs: list[tuple[dict[str, Any], list[tuple[str, str]]]]) -> None:
        bar = tqdm(total=len(jobs), desc=self.folder.name, unit=" runs", disable=not jobs)
        if self.workers == 1:
            for job in jobs:
                self.run_job(*job)
                bar.update()
        else:
            with worker_pool(self.workers) as pool:
                for future in as_completed([pool.submit(self.run_job, *job) for job in jobs]):
                    future.result()  # what a worker raises is raised here
                    bar.update()
        bar.close()

    def contents(self, arm: str) -> list[dict[str, Any]]:
        """Contents of the files users.pth of an arm, for each seed.

        Raises
        ------
        AdaRecError
            If a file is missing or damaged, or the seeds have different users.
        """
        contents = [load_checkpoint(self.path(seed, arm) / "users.pth", expected=USERS_FORMAT) for seed in self.seeds]
        if not all(torch.equal(content["test_user"], contents[0]["test_user"]) for content in contents):
            raise AdaRecError(f"{self.folder}: the runs of {arm} have different users; give an empty --output")
        return contents

    def _result(self, arm: str) -> ArmResult:
        contents = self.contents(arm)
        students = [load_model(self.path(seed, arm) / "student.pth", expected=STAGES["student"]) for seed in self.seeds]
        return ArmResult(
            stacked_scores([c["student"] for c in contents]), stacked_scores([c["teacher"] for c in contents]),
            [count_parameters(student)["total"] for student in students],
            [c["student"]["layers"] for c in contents], [c["teacher"]["layers"] for c in contents],
            [Architecture.from_dict(c["architecture"]) for c in contents],
        )  # fmt: skip


def paired_scores(scores: UserScores) -> dict[str, Tensor]:
    """The measures of `PAIRED_METRICS`, each ``[U]``."""
    return {metric: getattr(scores, metric) for metric in PAIRED_METRICS}


def stacked_scores(contents: Sequence[Mapping[str, Mapping[str, Tensor]]]) -> dict[str, dict[str, Tensor]]:
    """Scores of R seeds together: ``valid`` and ``test``, each metric ``[R, U]``."""
    return {
        part: {metric: torch.stack([content[part][metric] for content in contents]) for metric in PAIRED_METRICS}
        for part in ("valid", "test")
    }


def select_arms(arms: Sequence[Arm], only: Sequence[str]) -> list[Arm]:
    """The arms with these names; all arms if no name is given.

    Raises
    ------
    AdaRecError
        If no arm has one of the names.
    """
    names = [arm.name for arm in arms]
    if unknown := [name for name in only if name not in names]:
        raise AdaRecError(f"arms: unknown {unknown[0]!r}; known are {', '.join(names)}")
    return [arm for arm in arms if not only or arm.name in only]


def compare_arms(results: Mapping[str, ArmResult], reference: str) -> dict[str, Any]:
    """A row for each arm, with its paired difference to a reference on the test data.

    Parameters
    ----------
    results : mapping of str to ArmResult
        Results by the names of the arms.
    reference : str
        One of these names.

    Returns
    -------
    dict
        ``reference``, and ``arms``: for each name what `arm_summary` returns, and ``against_reference``.
    """
    rows = {name: arm_summary(result) for name, result in results.items()}
    for name, result in results.items():
        if name != reference:
            rows[name]["against_reference"] = {
                metric: paired_difference(scores, results[reference].scores["test"][metric])._asdict()
                for metric, scores in result.scores["test"].items()
            }
    return {"reference": reference, "arms": rows}


def mean_and_error(values: Tensor) -> dict[str, float | None]:
    """Mean of ``[R, U]`` and its standard error over R seeds; the error of one seed is None."""
    seed_means = values.double().mean(1)
    error = float(seed_means.std() / len(seed_means) ** 0.5) if len(seed_means) > 1 else None
    return {"mean": float(seed_means.mean()), "standard_error": error}


def arm_summary(result: ArmResult) -> dict[str, Any]:
    """The row of an arm: parameters and architecture for each seed, means of ``valid`` and ``test`` over the seeds."""
    return {
        "total": result.total,
        "layers": result.layers,
        "architectures": [architecture.to_dict() for architecture in result.architectures],
        **{part: metric_means(scores) for part, scores in result.scores.items()},
    }


def metric_means(scores: Mapping[str, Tensor]) -> dict[str, dict[str, float | None]]:
    """`mean_and_error` of each metric of `PAIRED_METRICS`."""
    return {metric: mean_and_error(scores[metric]) for metric in PAIRED_METRICS}


def mean_text(mean: Mapping[str, Any]) -> str:
    """What `mean_and_error` returned as text, such as "0.0500 ± 0.0010"."""
    error = mean["standard_error"]
    return f"{mean['mean']:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def difference_text(difference: Mapping[str, float]) -> str:
    """A paired difference and its interval as text, such as "+0.0010 [-0.0005, +0.0025]"."""
    return f"{difference['mean']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]"
