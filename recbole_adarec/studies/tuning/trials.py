"""Trials of tuning and their records, in a folder that the same command continues."""

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
from recbole_adarec.runs.pipeline import Run
from recbole_adarec.runs.run_folder import changes_results, check_same
from recbole_adarec.storage.files import plain, write_bytes, write_text
from recbole_adarec.storage.properties import model_defaults, run_defaults
from recbole_adarec.storage.yaml_files import load_yaml
from recbole_adarec.studies.tuning.space import Params

STUDY_FORMAT = "recbole-adarec-study/1"
STATUSES = ("finished", "stopped", "failed")  # stopped: early, by a scheduler
SHARED = ("teacher", "search")  # stages that trials take from each other
_RUN_KEYS = {"architecture", "baselines", "latency_repeats"}  # of a run as a whole, and of none of the shared stages
OnRecord = Callable[[dict[str, Any]], None]


class TuningStudy:
    """Trials and what they gave, in a folder.

    ``trials/<digest>/`` is the run of a trial and ``trials/<digest>.json`` its record, by its parameters;
    ``shared/`` holds the teachers and searches that several trials need.

    Parameters
    ----------
    values : dict
        What `recbole_adarec.config.resolve_user_config.resolve_user_config` returned: what all trials have in common.
    folder : path-like
        Where all is written. Of several machines all must see it.
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
        """The run of a trial."""
        return self.folder / "trials" / params_digest(params)

    def record(self, params: Params) -> dict[str, Any] | None:
        """What a trial gave; None if it has not ended."""
        path = self.path(params).with_suffix(".json")
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def records(self) -> list[dict[str, Any]]:
        """What all trials gave, the best first."""
        paths = sorted((self.folder / "trials").glob("*.json"))
        found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]

        def place(record: dict[str, Any]) -> tuple[int, float]:
            score = 0.0 if record["score"] is None else record["score"]
            return STATUSES.index(record["status"]), -score if self.bigger else score

        return sorted(found, key=place)

    def write(self, params: Params, status: str, score: float | None, **extra: Any) -> dict[str, Any]:
        """Write the record of a trial that has ended; `status` is one of `STATUSES`."""
        record = {"params": params, "status": status, "metric": self.metric, "score": score} | extra
        record["run_dir"] = os.path.relpath(self.path(params), self.folder)
        write_text(self.path(params).with_suffix(".json"), json.dumps(plain(record), indent=1) + "\n")
        return record

    @recbole_patches()
    def trial(self, params: Params, after_epoch: Callable[[float], None] | None = None, **extra: Any) -> dict[str, Any]:
        """The record of a trial, which is run unless it has ended; an error in it is recorded and goes no further.

        Parameters
        ----------
        params : dict
            Where it differs from `values`.
        after_epoch : callable, optional
            Told the validation metric after each epoch of the student.
        **extra
            Values that change no result.
        """
        if (record := self.record(params)) is not None:
            return record
        start = time.perf_counter()
        try:
            values = resolve_user_config(None, [], self.values | params | {"run_dir": str(self.path(params))} | extra)
            run = Run(RunConfig(values))
            if after_epoch is not None:
                run.after_epoch = lambda stage, _, score: after_epoch(score) if stage == "student" else None
            for stage in SHARED if run.architecture is None else SHARED[:1]:
                self._share(run, stage)
            student = run.train()["student"]
        except Exception as error:  # whatever a combination of values brings about, the other trials go on
            line = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return self.write(params, "failed", None, error=line, traceback=traceback.format_exc())
        scores = [epoch["valid_score"] for epoch in student["history"] if "valid_score" in epoch]
        return self.write(
            params, "finished", student["valid"][self.metric.lower()], scores=scores, valid=student["valid"],
            test=student["test"], seconds=round(time.perf_counter() - start, 2),
        )  # fmt: skip

    def _share(self, run: Run, stage: str) -> None:
        """Take a stage from a trial of the same values for it, or leave it to the others; one at a time makes it."""
        shared = self.folder / "shared" / f"{stage}-{stage_digest(run.config.values, stage)}.pth"
        with _locked(shared.with_suffix(".lock")):
            if shared.is_file():
                run.reuse_stage(stage, shared)
            else:
                run.train(until=stage)
                write_bytes(shared, (run.folder / f"{stage}.pth").read_bytes())

    def finish(self) -> dict[str, Any]:
        """Write what was found: ``study.json``, ``study.md``, and the best values as ``best.yaml``."""
        records = self.records()
        found = {"format": STUDY_FORMAT, "dataset": self.values["dataset"], "metric": self.metric, "trials": records}
        found["best"] = best = next((record for record in records if record["status"] == "finished"), None)
        write_text(self.folder / "study.json", json.dumps(plain(found), indent=1) + "\n")
        write_text(self.folder / "study.md", study_markdown(found))
        if best is not None:
            common = {key: value for key, value in self.values.items() if run_defaults().get(key, ...) != value}
            common.pop("show_progress", None)
            text = f"# The best of {len(records)} trials by {self.metric} of validation: {best['score']:.4f}\n"
            write_text(self.folder / "best.yaml", text + yaml.safe_dump(plain(common | best["params"])))
        return found


def params_digest(params: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain(dict(params)), sort_keys=True).encode()).hexdigest()[:12]


def stage_digest(values: dict[str, Any], stage: str) -> str:
    """A name for all that a shared stage depends on; keys that nobody knows count as such.

    What is left out: keys of the stages after it that neither it nor RecBole has, and those that change no result.
    """
    stages = list(STAGES)
    up_to, after = stages[: stages.index(stage) + 1], stages[stages.index(stage) + 1 :]
    own = {key for name in up_to for key in model_defaults(STAGES[name])}
    later = {key for name in after for key in model_defaults(STAGES[name])}
    groups = (
        getattr(argument_list, f"{group}_arguments") for group in ("general", "training", "evaluation", "dataset")
    )
    others = (later | _RUN_KEYS) - own - set(itertools.chain(*groups))
    read: dict[str, Any] = {}
    for name in up_to:
        config = stage_config(values, name).final_config_dict
        read[name] = {key: str(value) for key, value in config.items() if key not in others and changes_results(key)}
    return params_digest(read)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Of several processes one at a time goes on; the lock of one that dies is free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def study_markdown(found: Mapping[str, Any]) -> str:
    """A study as Markdown."""
    counts = Counter(record["status"] for record in found["trials"])
    rows = [
        {found["metric"]: "–" if record["score"] is None else f"{record['score']:.4f}", "status": record["status"]}
        | {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in record["params"].items()}
        | {"run": record["run_dir"], "error": record.get("error", "")}
        for record in found["trials"]
    ]
    table = tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)
    return (
        f"# Tuning on {found['dataset']}\n\n{found['metric']} of the student on validation data; {counts['finished']} "
        f"trials finished, {counts['stopped']} stopped early, {counts['failed']} failed.\n\n{table}\n"
    )


@recbole_patches()
def objective_function(
    config_dict: dict[str, Any] | None = None, config_file_list: list[str] | None = None, saved: bool = True
) -> dict[str, Any]:
    """A run as an objective of ``recbole.trainer.HyperTuning``: the validation metric of its student.

    Parameters
    ----------
    config_dict, config_file_list
        As in `recbole_adarec.run_adarec`.
    saved : bool
        As RecBole's objective has it; a run is always kept.
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
