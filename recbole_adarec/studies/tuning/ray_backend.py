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
    told: OnRecord,
) -> None:
    """Run trials under Ray Tune, several at a time, each in a process of its own.

    ASHA stops a trial whose student's validation metric is not among the better half of those that came as far; the
    teacher and the search before it are not part of that race. Trials that have ended tell their epochs again, so that
    a continued study judges by all of them.

    Parameters
    ----------
    study : Study
        Where all is written.
    trials : sequence of dict
        Their parameters.
    workers : int
        Trials at a time.
    scheduler : str
        ``asha`` or ``fifo``.
    address : str, optional
        Of a Ray cluster, whose machines all have this package and see the same folder; otherwise this machine.
    told : callable
        Told each record.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # it prints though told not to
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a failed trial reports nothing
    import ray
    from ray import tune
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

    class Record(tune.Callback):
        """What Ray ends, stopped early or broken, has a record too."""

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            params = trial.config["params"]
            record = study.record(params)
            if record is None:
                scores = trial.last_result.get("scores", [])
                best = (max if study.bigger else min)(scores, default=None)
                record = study.write(params, "stopped", best, scores=scores)
            told(record)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            params = trial.config["params"]
            told(study.record(params) or study.write(params, "failed", None, error="the process of the trial ended"))

    epochs = max(stage_config(study.values | params, "student")["epochs"] for params in trials)
    order: Any
    if scheduler == "asha" and epochs > 1:
        order = AsyncHyperBandScheduler(max_t=epochs, grace_period=max(1, epochs // 4), reduction_factor=2)
    else:
        order = FIFOScheduler()
    threads = study.values["threads"] or max(1, (os.cpu_count() or 1) // workers)
    where = {"address": address} if address else {"num_cpus": workers, "include_dashboard": False}
    ray.init(**where, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
    try:
        run = tune.with_parameters(_ray_trial, study=study, threads=threads, cwd=os.getcwd())
        gpus = min(1.0, ray.cluster_resources().get("GPU", 0) / workers)
        tuner = tune.Tuner(
            tune.with_resources(run, {"cpu": 1, "gpu": gpus}),
            param_space={"params": tune.grid_search(list(trials))},
            tune_config=tune.TuneConfig(
                metric="score", mode="max" if study.bigger else "min", scheduler=order, max_concurrent_trials=workers
            ),
            run_config=_of_ray("RunConfig")(storage_path=str(study.folder / "ray"), verbose=0, callbacks=[Record()]),
        )
        tuner.fit()
    finally:
        ray.shutdown()


def _ray_trial(config: dict[str, Any], study: TuningStudy, threads: int, cwd: str) -> None:
    """A trial in a worker of Ray, which tells the scores of its epochs so far after each."""
    import ray

    os.chdir(cwd)  # Ray gives each trial a folder of its own; paths are those of the command
    params: Params = config["params"]
    epochs = stage_config(study.values | params, "student")["epochs"]
    told: list[float] = []

    def tell(score: float) -> None:
        told.append(score)
        _of_ray("report")({"score": score, "scores": list(told)})

    def after_epoch(score: float) -> None:
        if len(told) + 1 < epochs:  # the last one is told with the record: stopped by it, a trial would lose its end
            tell(score)

    if (record := study.record(params)) is None:
        extra: dict[str, Any] = {"threads": threads, "show_progress": False}
        if gpus := ray.get_gpu_ids():
            extra["gpu_id"] = ",".join(map(str, gpus))
        record = study.trial(params, after_epoch, **extra)
    for score in record.get("scores", [])[len(told) :]:
        tell(score)


def _of_ray(name: str) -> Any:
    """Ray's ``RunConfig`` or ``report``, which RecBole's Ray, 2.6 at most, has in other places than Ray has now."""
    old = {"RunConfig": "ray.air", "report": "ray.air.session"}
    is_old = tuple(map(int, version("ray").split(".")[:2])) <= (2, 6)
    return getattr(import_module(old[name] if is_old else "ray.tune"), name)
