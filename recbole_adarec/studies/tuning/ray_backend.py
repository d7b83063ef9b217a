"""Tuning with Ray Tune."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any

from recbole_adarec.config.stages import stage_config
from recbole_adarec.studies.tuning.space import Params
from recbole_adarec.studies.tuning.trials import OnRecord, TuningStudy


def run_ray(
    study: TuningStudy,
    trials: Sequence[Params],
    workers: int,
    scheduler: str,
    address: str | None,
    on_record: OnRecord,
) -> None:
    """Run trials with Ray Tune, several at a time, each in its own process.

    ASHA stops a trial if the validation metric of its student is not among the better half of the trials that reached
    the same epoch; it does not count the epochs of teacher and search. Trials that have ended report their epochs
    again, so that a continued study compares with all of them.

    Parameters
    ----------
    study : TuningStudy
        Runs the trials, and writes their records.
    trials : sequence of dict
        Parameters of each trial.
    workers : int
        Trials at a time.
    scheduler : str
        ``asha`` or ``fifo``.
    address : str, optional
        Address of a Ray cluster; all its machines have this package and see the folder of the study. This machine by
        default.
    on_record : callable
        Called with the record of each trial when it has ended.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Ray's new output ignores verbose=0
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a failed trial reports no metric
    import ray
    from ray import tune
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

    class RecordWriter(tune.Callback):
        """Writes the record of trials that Ray stops early, or whose process ends."""

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            params = trial.config["params"]
            record = study.record(params)
            if record is None:
                scores = trial.last_result.get("scores", [])
                best = (max if study.bigger else min)(scores, default=None)
                record = study.write_record(params, "stopped", best, scores=scores)
            on_record(record)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            params = trial.config["params"]
            error = "the process of the trial ended"
            on_record(study.record(params) or study.write_record(params, "failed", None, error=error))

    epochs = max(stage_config(study.values | params, "student")["epochs"] for params in trials)
    trial_scheduler: Any
    if scheduler == "asha" and epochs > 1:
        trial_scheduler = AsyncHyperBandScheduler(max_t=epochs, grace_period=max(1, epochs // 4), reduction_factor=2)
    else:
        trial_scheduler = FIFOScheduler()
    threads = study.values["threads"] or max(1, (os.cpu_count() or 1) // workers)
    cluster = {"address": address} if address else {"num_cpus": workers, "include_dashboard": False}
    ray.init(**cluster, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
    try:
        run = tune.with_parameters(_ray_trial, study=study, threads=threads, cwd=os.getcwd())
        gpus = min(1.0, ray.cluster_resources().get("GPU", 0) / workers)
        mode, storage = "max" if study.bigger else "min", str(study.folder / "ray")
        run_config = _ray_attribute("RunConfig")
        tuner = tune.Tuner(
            tune.with_resources(run, {"cpu": 1, "gpu": gpus}),
            param_space={"params": tune.grid_search(list(trials))},
            tune_config=tune.TuneConfig(
                metric="score", mode=mode, scheduler=trial_scheduler, max_concurrent_trials=workers
            ),
            run_config=run_config(storage_path=storage, verbose=0, callbacks=[RecordWriter()]),
        )
        tuner.fit()
    finally:
        ray.shutdown()


def _ray_trial(config: dict[str, Any], study: TuningStudy, threads: int, cwd: str) -> None:
    """A trial in a worker process of Ray; after each epoch it reports the scores of all its epochs."""
    import ray

    os.chdir(cwd)  # Ray gives each trial another folder; paths are relative to that of the command
    params: Params = config["params"]
    epochs = stage_config(study.values | params, "student")["epochs"]
    reported: list[float] = []

    def report(score: float) -> None:
        reported.append(score)
        _ray_attribute("report")({"score": score, "scores": list(reported)})

    def after_epoch(score: float) -> None:
        # The last epoch is reported after the record is written: a trial that is stopped at it would have none.
        if len(reported) + 1 < epochs:
            report(score)

    if (record := study.record(params)) is None:
        extra: dict[str, Any] = {"threads": threads, "show_progress": False}
        if gpus := ray.get_gpu_ids():
            extra["gpu_id"] = ",".join(map(str, gpus))
        record = study.trial(params, after_epoch, **extra)
    for score in record.get("scores", [])[len(reported) :]:
        report(score)


def _ray_attribute(name: str) -> Any:
    """Ray's ``RunConfig`` or ``report``; Ray 2.6, the last that RecBole allows, has them in other modules."""
    old = {"RunConfig": "ray.air", "report": "ray.air.session"}
    is_old = tuple(map(int, version("ray").split(".")[:2])) <= (2, 6)
    return getattr(import_module(old[name] if is_old else "ray.tune"), name)
