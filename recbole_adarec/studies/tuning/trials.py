"""Trials of tuning: runs with a record each, in a folder that the same command continues.

`TuningStudy` runs trials, shares their teachers and searches, and writes the results. `objective_function` is a run as
RecBole's own `HyperTuning` takes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from recbole.utils import argument_list
from tabulate import tabulate

from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.config.run_config import RunConfig
from recbole_adarec.config.schema import STAGES
from recbole_adarec.config.stages import stage_config
from recbole_adarec.interop.patches import recbole_patches
from recbole_adarec.report.writing import json_text, write_result
from recbole_adarec.runs.pipeline import Run
from recbole_adarec.runs.run_folder import changes_results, check_same
from recbole_adarec.storage.files import plain, write_bytes, write_text
from recbole_adarec.storage.properties import model_defaults, run_defaults
from recbole_adarec.storage.yaml_files import load_yaml
from recbole_adarec.studies.tuning.space import Params

STUDY_FORMAT = "recbole-adarec-study/1"
STATUSES = ("finished", "stopped", "failed")  # stopped: early, by a scheduler
SHARED_STAGES = ("teacher", "search")  # stages that trials with the same values for them share
_RUN_KEYS = {"architecture", "baselines", "latency_repeats"}  # keys of a run that the shared stages do not read
OnRecord = Callable[[dict[str, Any]], None]


class TuningStudy:
    """Runs trials and records their results, in a folder.

    ``trials/<digest>/`` is the run of a trial and ``trials/<digest>.json`` its record, named by its parameters;
    ``shared/`` holds teachers and searches that several trials use.

    Parameters
    ----------
    values : dict
        Values that all trials share, as `recbole_adarec.config.resolve.resolve_user_config` returned them.
    folder : path-like
        The folder; several machines have to see the same one.

    Raises
    ------
    AdaRecError
        If the folder holds a study of other values.
    """

    def __init__(self, values: dict[str, Any], folder: str | Path) -> None:
        self.values, self.folder = values, Path(folder).absolute()
        config = stage_config(values, "student")
        self.metric: str = config["valid_metric"]
        self.bigger = bool(config["valid_metric_bigger"])
        if (stored := self.folder / "config.yaml").is_file():
            check_same(load_yaml(stored), values, self.folder)
        else:
            write_text(stored, yaml.safe_dump(plain(values)))

    def path(self, params: Params) -> Path:
        """The folder of the run of a trial."""
        return self.folder / "trials" / params_digest(params)

    def record(self, params: Params) -> dict[str, Any] | None:
        """The record of a trial; None if it has not ended."""
        path = self.path(params).with_suffix(".json")
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def records(self) -> list[dict[str, Any]]:
        """The records of all trials that have ended, the best first."""
        paths = sorted((self.folder / "trials").glob("*.json"))
        records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]

        def rank(record: dict[str, Any]) -> tuple[int, float]:
            score = 0.0 if record["score"] is None else record["score"]
            return STATUSES.index(record["status"]), -score if self.bigger else score

        return sorted(records, key=rank)

    def write_record(self, params: Params, status: str, score: float | None, **extra: Any) -> dict[str, Any]:
        """Write the record of a trial that has ended.

        Parameters
        ----------
        params : dict
            Parameters of the trial.
        status : str
            One of `STATUSES`.
        score : float, optional
            Validation metric of the student.
        **extra
            Further entries of the record.

        Returns
        -------
        dict
            The record.
        """
        record = {"params": params, "status": status, "metric": self.metric, "score": score} | extra
        record["run_dir"] = os.path.relpath(self.path(params), self.folder)
        write_text(self.path(params).with_suffix(".json"), json_text(record))
        return record

    @recbole_patches()
    def trial(self, params: Params, after_epoch: Callable[[float], None] | None = None, **extra: Any) -> dict[str, Any]:
        """Run a trial unless it has ended; an error in it is recorded, not raised.

        Parameters
        ----------
        params : dict
            Values in which the trial differs from `values`.
        after_epoch : callable, optional
            Called with the validation metric after each epoch of the student.
        **extra
            Values that change no result.

        Returns
        -------
        dict
            The record of the trial.
        """
        if (record := self.record(params)) is not None:
            return record
        start = time.perf_counter()
        try:
            values = resolve_user_config(None, [], self.values | params | {"run_dir": str(self.path(params))} | extra)
            run = Run(RunConfig(values))
            if after_epoch is not None:
                run.after_epoch = lambda stage, _, score: after_epoch(score) if stage == "student" else None
            for stage in SHARED_STAGES if run.architecture is None else SHARED_STAGES[:1]:
                self._share(run, stage)
            student = run.train()["student"]
        except Exception as error:  # an error of one combination of values does not end the other trials
            line = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return self.write_record(params, "failed", None, error=line, traceback=traceback.format_exc())
        scores = [epoch["valid_score"] for epoch in student["history"] if "valid_score" in epoch]
        return self.write_record(
            params, "finished", student["valid"][self.metric.lower()], scores=scores, valid=student["valid"],
            test=student["test"], seconds=round(time.perf_counter() - start, 2),
        )  # fmt: skip

    def _share(self, run: Run, stage: str) -> None:
        """Reuse a stage that another trial has trained with the same values, or train it for the other trials.

        A lock lets one process at a time train it.
        """
        shared = self.folder / "shared" / f"{stage}-{stage_digest(run.config.values, stage)}.pth"
        with _locked(shared.with_suffix(".lock")):
            if shared.is_file():
                run.reuse_stage(stage, shared)
            else:
                run.train(until=stage)
                write_bytes(shared, (run.folder / f"{stage}.pth").read_bytes())

    def write_results(self) -> dict[str, Any]:
        """Write study.json, study.md and, with the best values, best.yaml.

        Returns
        -------
        dict
            Content of study.json: ``trials`` are the records, the best first; ``best`` is None if no trial finished.
        """
        records = self.records()
        result = {"format": STUDY_FORMAT, "dataset": self.values["dataset"], "metric": self.metric, "trials": records}
        result["best"] = best = next((record for record in records if record["status"] == "finished"), None)
        write_result(self.folder, "study", result, {"md": study_markdown(result)})
        if best is not None:
            defaults = run_defaults()
            common = {key: value for key, value in self.values.items() if defaults.get(key, ...) != value}
            common.pop("show_progress", None)
            text = f"# The best of {len(records)} trials by {self.metric} on the validation data: {best['score']:.4f}\n"
            write_text(self.folder / "best.yaml", text + yaml.safe_dump(plain(common | best["params"])))
        return result


def params_digest(params: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that name the parameters of a trial."""
    return hashlib.sha256(json.dumps(plain(dict(params)), sort_keys=True).encode()).hexdigest()[:12]


def stage_digest(values: dict[str, Any], stage: str) -> str:
    """Twelve hexadecimal digits that name all values that a shared stage depends on.

    Left out are keys that only later stages have, and keys that change no result. Unknown keys are part of it.

    Parameters
    ----------
    values : dict
        Values of the run.
    stage : str
        One of `SHARED_STAGES`.
    """
    stages = list(STAGES)
    needed, later = stages[: stages.index(stage) + 1], stages[stages.index(stage) + 1 :]
    needed_keys = {key for name in needed for key in model_defaults(STAGES[name])}
    later_keys = {key for name in later for key in model_defaults(STAGES[name])}
    groups = (
        getattr(argument_list, f"{group}_arguments") for group in ("general", "training", "evaluation", "dataset")
    )
    left_out = (later_keys | _RUN_KEYS) - needed_keys - set(itertools.chain(*groups))
    dependencies: dict[str, Any] = {}
    for name in needed:
        config = stage_config(values, name).final_config_dict
        dependencies[name] = {
            key: str(value) for key, value in config.items() if key not in left_out and changes_results(key)
        }
    return params_digest(dependencies)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time run the block; the lock of a process that dies is released."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def study_markdown(study: Mapping[str, Any]) -> str:
    """The trials of a study as Markdown, the content of study.md; `study` is the content of study.json."""
    counts = Counter(record["status"] for record in study["trials"])
    rows = [
        {study["metric"]: "–" if record["score"] is None else f"{record['score']:.4f}", "status": record["status"]}
        | {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in record["params"].items()}
        | {"run": record["run_dir"], "error": record.get("error", "")}
        for record in study["trials"]
    ]
    table = tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)
    return (
        f"# Tuning on {study['dataset']}\n\n{study['metric']} of the student on validation data; {counts['finished']} "
        f"trials finished, {counts['stopped']} stopped early, {counts['failed']} failed.\n\n{table}\n"
    )


@recbole_patches()
def objective_function(
    config_dict: dict[str, Any] | None = None, config_file_list: list[str] | None = None, saved: bool = True
) -> dict[str, Any]:
    """Train a run, as an objective for ``recbole.trainer.HyperTuning``.

    Parameters
    ----------
    config_dict, config_file_list
        As in `recbole_adarec.run_adarec`.
    saved : bool
        An argument of RecBole's objectives; a run is always saved.

    Returns
    -------
    dict
        Entries of RecBole's objectives: ``best_valid_score`` is the validation metric of the student.

    Raises
    ------
    AdaRecError
        For input that cannot be used.
    """
    values = resolve_user_config(None, config_file_list, config_dict)
    config, student = stage_config(values, "student"), Run(RunConfig(values)).train()["student"]
    return {
        "model": config["model"],
        "best_valid_score": student["valid"][config["valid_metric"].lower()],
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": student["valid"],
        "test_result": student["test"],
    }
