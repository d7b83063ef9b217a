"""Arms over several seeds: runs that are compared on the same users, in a folder that the same command continues."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from recbole_adarec.config.run_config import RunConfig
from recbole_adarec.config.schema import STAGES
from recbole_adarec.distillation.teacher_outputs import TeacherOutputCache
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

USERS_FORMAT = "recbole-adarec-users/1"
PAIRED_METRICS = {"ndcg": "NDCG@10", "log_likelihood": "log-likelihood"}


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


class ArmResult(NamedTuple):
    """What an arm gives, for each seed.

    Attributes
    ----------
    scores : dict
        ``test`` and ``valid`` of the student: metric to ``[S, U]``.
    teacher : dict
        The same of its teacher.
    total : list of int
        Parameters of the student.
    layers, teacher_layers : list of int
        Parameters of the layers of both.
    architectures : list of Architecture
    """

    scores: dict[str, dict[str, Tensor]]
    teacher: dict[str, dict[str, Tensor]]
    total: list[int]
    layers: list[int]
    teacher_layers: list[int]
    architectures: list[Architecture]


@lru_cache(maxsize=1)
def _teacher_outputs(teacher: Path) -> TeacherOutputCache:
    """Those of the last teacher that arms of this process were given."""
    return TeacherOutputCache()


class ArmStudy:
    """Arms over several seeds, in a folder that the same command continues.

    Parameters
    ----------
    values : dict
        What `recbole_adarec.config.resolve.resolve_user_config` returned.
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

    def run(self, arms: Sequence[Arm]) -> dict[str, ArmResult]:
        """Run what is not finished, and load everything."""
        jobs = []
        for seed in self.seeds:  # outermost: arms of a seed have the same teacher, which a process then asks once
            for arm in arms:
                path = self.path(seed, arm.name)
                values = self.values | arm.values | arm.by_seed.get(seed, {}) | {"seed": seed, "run_dir": str(path)}
                values |= {"show_progress": self.workers == 1 and self.values.get("show_progress", True)}
                if self.workers > 1 and not values["threads"]:
                    values["threads"] = max(1, multiprocessing.cpu_count() // self.workers)
                if (path / "users.pth").is_file():
                    check_same(load_checkpoint(path / "users.pth", expected=USERS_FORMAT)["values"], values, path)
                else:
                    jobs.append((values, [(stage, str(self.path(seed, other))) for stage, other in arm.given]))
        try:
            self._work(jobs)
        finally:
            _teacher_outputs.cache_clear()
        return {arm.name: self._load(arm.name) for arm in arms}

    @staticmethod
    @recbole_patches()
    def complete(values: dict[str, Any], given: Sequence[tuple[str, str]] = ()) -> None:
        """A job: finish a run, and write what its models do for each user beside it, ``users.pth``."""
        content: dict[str, Any] = {"format": USERS_FORMAT, "values": values}
        files = {stage: Path(folder) / f"{stage}.pth" for stage, folder in given}
        known = files["teacher"].with_name("users.pth") if "teacher" in files else None
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
            if name == "teacher" and known is not None and known.is_file():  # the same file, on the same users
                content[name] = load_checkpoint(known, expected=USERS_FORMAT)[name]
                continue
            config = run.config.stage(name)
            model = load_model(run.folder / f"{name}.pth", config["device"], expected=STAGES[name])
            found: dict[str, UserScores] = {
                "valid": user_scores(model, run.data.valid), "test": user_scores(model, run.data.test),
            }  # fmt: skip
            content[name] = {
                part: {metric: getattr(of, metric) for metric in PAIRED_METRICS} for part, of in found.items()
            }
            content[name]["layers"] = count_parameters(model)["layers"]
            content["test_user"] = found["test"].user
        save_checkpoint(run.folder / "users.pth", content)

    def _work(self, jobs: list[tuple[dict[str, Any], list[tuple[str, str]]]]) -> None:
        bar = tqdm(total=len(jobs), desc=self.folder.name, unit=" runs", disable=not jobs)
        if self.workers == 1:
            for job in jobs:
                self.complete(*job)
                bar.update()
        else:
            with worker_pool(self.workers) as pool:
                futures = [pool.submit(self.complete, *job) for job in jobs]
                try:
                    for future in as_completed(futures):
                        future.result()  # what a worker raises is raised here
                        bar.update()
                finally:
                    pool.shutdown(cancel_futures=True)
        bar.close()

    def _load(self, arm: str) -> ArmResult:
        contents = [load_checkpoint(self.path(seed, arm) / "users.pth", expected=USERS_FORMAT) for seed in self.seeds]
        users = contents[0]["test_user"]
        for content in contents:
            if not torch.equal(content["test_user"], users):
                raise AdaRecError(f"{self.folder}: the runs of {arm} have other users; give an empty --output")

        def scores(model: str) -> dict[str, dict[str, Tensor]]:
            return {
                part: {metric: torch.stack([c[model][part][metric] for c in contents]) for metric in PAIRED_METRICS}
                for part in ("valid", "test")
            }

        students = [load_model(self.path(seed, arm) / "student.pth", expected=STAGES["student"]) for seed in self.seeds]
        return ArmResult(
            scores("student"), scores("teacher"), [count_parameters(student)["total"] for student in students],
            [c["student"]["layers"] for c in contents], [c["teacher"]["layers"] for c in contents],
            [Architecture.from_dict(c["architecture"]) for c in contents],
        )  # fmt: skip


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Processes that end when this one does, killed or not."""
    # Forked processes would share the threads of torch, which do not survive a fork.
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """Let this process end when its parent does: killed, that would leave it at work beside the next command."""
    if parent := multiprocessing.parent_process():

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def select_arms(arms: Sequence[Arm], only: Sequence[str]) -> list[Arm]:
    """The arms of these names, or all of them; a name that none has is refused."""
    names = [arm.name for arm in arms]
    if unknown := [name for name in only if name not in names]:
        raise AdaRecError(f"arms: unknown {unknown[0]!r}; known are {', '.join(names)}")
    return [arm for arm in arms if not only or arm.name in only]


def compare_arms(results: Mapping[str, ArmResult], reference: str) -> dict[str, Any]:
    """Rows of all arms, each with its paired difference to one of them."""
    rows = {name: arm_summary(result) for name, result in results.items()}
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


def arm_summary(result: ArmResult) -> dict[str, Any]:
    """An arm's row."""
    return {
        "total": result.total,
        "layers": result.layers,
        "architectures": [architecture.to_dict() for architecture in result.architectures],
        **{part: {m: mean_and_error(of[m]) for m in PAIRED_METRICS} for part, of in result.scores.items()},
    }


def mean_text(of: Mapping[str, Any]) -> str:
    """What `mean_and_error` found, for a table."""
    error = of["standard_error"]
    return f"{of['mean']:.4f}" + (f" ± {error:.4f}" if error is not None else "")


def difference_text(of: Mapping[str, float]) -> str:
    """A paired difference and its interval, for a table."""
    return f"{of['mean']:+.4f} [{of['low']:+.4f}, {of['high']:+.4f}]"
