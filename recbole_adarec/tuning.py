"""Tuning over any key: trials by RecBole's HyperTuning (hyperopt) or by Ray Tune, in a folder that continues.

A trial is a run. Its record is written when it ends, so a study that is killed and started again asks the same
questions and finds the answers that are there; what was under way goes on with its stage.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import logging
import math
import os
import sys
import time
import traceback
import warnings
from ast import literal_eval
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from recbole.trainer.hyper_tuning import HyperTuning
from recbole.utils import argument_list
from tabulate import tabulate

from recbole_adarec.config import STAGES, resolve, stage_config
from recbole_adarec.errors import AdaRecError
from recbole_adarec.files import plain, write_bytes, write_text
from recbole_adarec.interop.patches import recbole_patches
from recbole_adarec.pipeline import Run
from recbole_adarec.run_folder import check_same, is_free
from recbole_adarec.settings import find_file, load_yaml, model_defaults, parse_value, run_defaults

FORMAT = "recbole-adarec-study/1"
TOOLS = ("hyperopt", "ray")
ALGOS = ("exhaustive", "random", "bayes")
SCHEDULERS = ("asha", "fifo")
STATUSES = ("finished", "stopped", "failed")  # stopped: early, by a scheduler
SHARED = ("teacher", "search")  # stages that trials take from each other
_BOUNDS = {"uniform": 2, "quniform": 3, "loguniform": 2}
_RUN_KEYS = {"architecture", "baselines", "latency_repeats"}  # of a run as a whole, and of none of the shared stages
_HYPEROPT = "0.2.5"

Space = dict[str, dict[str, list[Any]]]
Params = dict[str, Any]
Told = Callable[[dict[str, Any]], None]


# ---------------------------------------------------------------------- the space


def read_space(name: str | Path) -> Space:
    """A space of keys from a file: RecBole's lines ``key type values``, or YAML, ``type: {key: values}``.

    Types are RecBole's: ``choice``, ``uniform``, ``quniform`` and ``loguniform``, whose bounds are logarithms. Nothing
    is evaluated.

    Raises
    ------
    AdaRecError
        If the file is missing, or a line says something else.
    """
    path = find_file(name, "params_file")
    if path.suffix in (".yaml", ".yml"):
        space = load_yaml(path)
    else:
        space = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            key, kind, text = [*line.split(maxsplit=2), "", ""][:3]
            values = _values(text) if kind == "choice" else [_value(bound) for bound in text.split(",")]
            space.setdefault(kind, {})[key] = values
    return check_space(space, str(path))


def _value(text: str) -> Any:
    return parse_value(text.strip())


def _values(text: str) -> Any:
    """RecBole's lists are Python's; bare words are no Python, and read as YAML."""
    try:
        return literal_eval(text)
    except (ValueError, SyntaxError):
        return _value(text)


def check_space(space: Mapping[str, Any], where: str) -> Space:
    """The same space, refused in one line where it says nothing that can be drawn."""
    for kind, keys in space.items():
        if kind not in ("choice", *_BOUNDS):
            raise AdaRecError(f"{where}: unknown type {kind!r}; known are choice, {', '.join(_BOUNDS)}")
        if not isinstance(keys, dict):
            raise AdaRecError(f"{where}: {kind} holds {keys!r}, expected key: values")
        for key, values in keys.items():
            if kind == "choice":
                if not isinstance(values, list) or not values:
                    raise AdaRecError(f"{where}: {key} is {values!r}, expected a list of values to choose from")
                continue
            if not _is_range(values, _BOUNDS[kind]):
                wanted = "low, high, step" if kind == "quniform" else "low, high"
                raise AdaRecError(f"{where}: {key} is {values!r}, expected {kind} of {wanted}, low below high")
    keys = [key for of_kind in space.values() for key in of_kind]
    if not keys:
        raise AdaRecError(f"{where} holds no key to tune")
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise AdaRecError(f"{where}: {twice} is given twice")
    return {kind: dict(of_kind) for kind, of_kind in space.items()}


def _is_range(values: Any, length: int) -> bool:
    """Whether these are two numbers, the lower first, and a step above 0 where there is a third."""
    if not isinstance(values, list) or len(values) != length:
        return False
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return False
    return values[0] < values[1] and min(values[2:], default=1) > 0


def draw(space: Space, algo: str, number: int, seed: int) -> list[Params]:
    """Parameters of all trials at once: the whole grid, or `number` random draws.

    The first draws of a longer study are those of a shorter one.
    """
    if algo == "exhaustive":
        choices = space["choice"]
        return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())][:number]
    rng = np.random.default_rng(seed)
    return [as_params(space, _draw_once(space, rng)) for _ in range(number)]


def _draw_once(space: Space, rng: np.random.Generator) -> Params:
    drawn: Params = {}
    for kind, keys in space.items():
        for key, values in keys.items():
            if kind == "choice":
                drawn[key] = values[rng.integers(len(values))]
                continue
            at = rng.uniform(values[0], values[1])
            drawn[key] = {"loguniform": math.exp(at), "quniform": round(at / values[-1]) * values[-1]}.get(kind, at)
    return drawn


def as_params(space: Space, drawn: Mapping[str, Any]) -> Params:
    """What was drawn, in plain values: lists where hyperopt gives tuples, whole numbers where the step is whole."""
    params = plain(dict(drawn))
    for key, (*_, step) in space.get("quniform", {}).items():
        if key in params and float(step).is_integer() and float(params[key]).is_integer():
            params[key] = int(params[key])
    return dict(params)


# ---------------------------------------------------------------------- the study


class Study:
    """Trials and what they gave, in a folder.

    ``trials/<digest>/`` is the run of a trial and ``trials/<digest>.json`` its record, by its parameters;
    ``shared/`` holds the teachers and searches that several trials need.

    Parameters
    ----------
    values : dict
        What `recbole_adarec.config.resolve` returned: what all trials have in common.
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
        return self.folder / "trials" / _digest(params)

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
            run = Run(resolve(None, [], self.values | params | {"run_dir": str(self.path(params))} | extra))
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
        shared = self.folder / "shared" / f"{stage}-{stage_digest(run.values, stage)}.pth"
        with _locked(shared.with_suffix(".lock")):
            if shared.is_file():
                run.adopt(stage, shared)
            else:
                run.train(until=stage)
                write_bytes(shared, (run.folder / f"{stage}.pth").read_bytes())

    def finish(self) -> dict[str, Any]:
        """Write what was found: ``study.json``, ``study.md``, and the best values as ``best.yaml``."""
        records = self.records()
        found = {"format": FORMAT, "dataset": self.values["dataset"], "metric": self.metric, "trials": records}
        found["best"] = best = next((record for record in records if record["status"] == "finished"), None)
        write_text(self.folder / "study.json", json.dumps(plain(found), indent=1) + "\n")
        write_text(self.folder / "study.md", markdown(found))
        if best is not None:
            common = {key: value for key, value in self.values.items() if run_defaults().get(key, ...) != value}
            common.pop("show_progress", None)
            text = f"# The best of {len(records)} trials by {self.metric} of validation: {best['score']:.4f}\n"
            write_text(self.folder / "best.yaml", text + yaml.safe_dump(plain(common | best["params"])))
        return found


def _digest(params: Mapping[str, Any]) -> str:
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
        read[name] = {key: str(value) for key, value in config.items() if key not in others and not is_free(key)}
    return _digest(read)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Of several processes one at a time goes on; the lock of one that dies is free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ---------------------------------------------------------------------- the tools


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
    values = resolve(None, config_file_list, config_dict)
    config, student = stage_config(values, "student"), Run(values).train()["student"]
    return {
        "model": config["model"],
        "best_valid_score": student["valid"][config["valid_metric"].lower()],
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": student["valid"],
        "test_result": student["test"],
    }


class ContinuedTuning(HyperTuning):
    """RecBole's `HyperTuning` over a `Study`: it is seeded, so that a continued one asks for the same trials again.

    Parameters
    ----------
    study : Study
        Gives the answers, those that are there without another run.
    space : dict
        What `read_space` returned.
    algo : str
        ``exhaustive``, ``random`` or ``bayes``.
    number : int
        Trials at most.
    early_stop : int
        Trials without a better one before stopping.
    told : callable
        Told each record.
    """

    def __init__(
        self, study: Study, space: Space, algo: str, number: int, early_stop: int, told: Told
    ) -> None:  # fmt: skip
        self.max_evals: int
        super().__init__(None, params_dict=space, algo=algo, max_evals=number, early_stop=early_stop)
        self.max_evals = min(int(self.max_evals), number)  # RecBole's exhaustive search sets the size of the grid
        self.study, self.kinds, self.told = study, space, told

    def trial(self, params: Params) -> dict[str, Any]:
        """The record of a trial, as hyperopt wants it."""
        record = self.study.trial(as_params(self.kinds, params))
        self.told(record)
        if record["status"] == "failed":
            return {"status": "fail", "loss": sys.float_info.max}  # early stopping reads the loss of a failed trial too
        return {"status": "ok", "loss": -record["score"] if self.study.bigger else record["score"]}

    def run(self) -> None:
        """RecBole's `run`, from the seed of the study."""
        from hyperopt import fmin

        rng = np.random.RandomState(stage_config(self.study.values, "student")["seed"])
        fmin(
            self.trial, self.space, algo=self.algo, max_evals=self.max_evals, early_stop_fn=self.early_stop_fn,
            rstate=rng, show_progressbar=False, return_argmin=False, verbose=False,
        )  # fmt: skip


def with_ray(
    study: Study,
    trials: Sequence[Params],
    workers: int,
    scheduler: str,
    address: str | None,
    told: Told,
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


def _ray_trial(config: dict[str, Any], study: Study, threads: int, cwd: str) -> None:
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


# ---------------------------------------------------------------------- command


def markdown(found: Mapping[str, Any]) -> str:
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
def run_tuning(
    config_files: list[str],
    overrides: dict[str, Any],
    *,
    params_file: str = "tuning/student.yaml",
    tool: str = "hyperopt",
    algo: str | None = None,
    max_evals: int = 20,
    early_stop: int = 10,
    workers: int = 1,
    scheduler: str = "asha",
    ray_address: str | None = None,
    output: str = "tuning",
    told: Told = lambda record: None,
) -> dict[str, Any]:
    """Tune a run, and write the best values as a file that ``--config_files=`` takes.

    Parameters
    ----------
    config_files, overrides
        As in `recbole_adarec.config.resolve`: what all trials have in common.
    params_file : str
        The space, as `read_space` reads it.
    tool : str
        ``hyperopt``: RecBole's HyperTuning, one trial at a time. ``ray``: Ray Tune.
    algo : str, optional
        ``exhaustive``, ``random`` or, with hyperopt, ``bayes``. By default exhaustive over a space of choices, else
        bayes with hyperopt and random with Ray.
    max_evals : int
        Trials at most.
    early_stop : int
        Trials without a better one before hyperopt stops.
    workers : int
        Trials at a time, with Ray.
    scheduler : str
        ``asha`` or ``fifo``, with Ray.
    ray_address : str, optional
        Of a Ray cluster.
    output : str
        The folder; one of its own for each dataset is made in it. The same command continues it.
    told : callable
        Told each record.

    Returns
    -------
    dict
        What ``study.json`` holds.

    Raises
    ------
    AdaRecError
        For input that cannot be used.
    """
    tool = tool.lower()
    choices_of = {"tool": (tool, TOOLS), "algo": (algo or ALGOS[0], ALGOS), "scheduler": (scheduler, SCHEDULERS)}
    for name, (value, known) in choices_of.items():
        if value not in known:
            raise AdaRecError(f"tune: unknown {name} {value!r}; known are {', '.join(known)}")
    for key in ("run_dir", "nproc", "world_size"):
        if key in overrides:
            raise AdaRecError(f"tune: leave out {key}; trials are runs of one process in the folder --output=")
    if min(max_evals, early_stop, workers) < 1:
        raise AdaRecError("tune: max_evals, early_stop and workers are at least 1")
    if tool == "hyperopt" and (workers > 1 or ray_address):
        raise AdaRecError("tune: hyperopt runs one trial after the other; several workers and clusters take --tool=ray")
    space = read_space(params_file)
    choices = set(space) == {"choice"}
    algo = algo or ("exhaustive" if choices else "bayes" if tool == "hyperopt" else "random")
    if algo == "exhaustive" and not choices:
        raise AdaRecError(f"tune: exhaustive takes choices alone, {params_file} has others; random draws from all")
    if algo == "bayes" and tool == "ray":
        raise AdaRecError("tune: bayes is hyperopt's, one trial after the other; ray takes random and exhaustive")
    values = resolve(None, config_files, overrides)
    for key, value in _each_alone(space):
        resolve(None, [], values | {key: value})
    _check_installed(tool)
    study = Study(values, Path(output) / values["dataset"])
    if tool == "hyperopt":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # hyperopt's use of pkg_resources
            logging.getLogger("hyperopt").setLevel(logging.WARNING)
            ContinuedTuning(study, space, algo, max_evals, early_stop, told).run()
    else:
        seed = stage_config(values, "student")["seed"]
        trials = {_digest(params): params for params in draw(space, algo, max_evals, seed)}
        with_ray(study, list(trials.values()), workers, scheduler, ray_address, told)
    return study.finish()


def _each_alone(space: Space) -> Iterator[tuple[str, Any]]:
    """Every choice of every key, and both bounds of the others: what no run takes is refused before any is begun."""
    for kind, keys in space.items():
        for key, values in keys.items():
            for value in values if kind == "choice" else values[:2]:
                yield key, as_params(space, {key: math.exp(value) if kind == "loguniform" else value})[key]


def _check_installed(tool: str) -> None:
    """Refuse in one line what an import deep inside would say in many."""
    needed = ("hyperopt",) if tool == "hyperopt" else ("ray", "pyarrow")
    for module in needed:
        try:
            import_module(module)
        except ImportError as error:
            raise AdaRecError(f'tune: {tool} needs {module} ({error}); pip install "recbole-adarec[tune]"') from error
    if tool == "hyperopt" and version("hyperopt") != _HYPEROPT:
        raise AdaRecError(
            f"tune: RecBole's HyperTuning works with hyperopt {_HYPEROPT}, not {version('hyperopt')}; "
            f"pip install hyperopt=={_HYPEROPT}"
        )
