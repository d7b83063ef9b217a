"""Tuning over any key: trials by RecBole's HyperTuning (hyperopt) or by Ray Tune, in a folder that continues.

A trial is a run. Its record is written when it ends, so a study that is killed and started again asks the same
questions and finds the answers that are there; what was under way goes on with its stage.
"""

from __future__ import annotations

import logging
import warnings
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.config.stages import stage_config
from recbole_adarec.errors import AdaRecError
from recbole_adarec.interop.patches import recbole_patches
from recbole_adarec.studies.tuning.hyperopt_backend import HYPEROPT_VERSION, ContinuedTuning
from recbole_adarec.studies.tuning.ray_backend import run_ray
from recbole_adarec.studies.tuning.space import draw, read_space, single_values
from recbole_adarec.studies.tuning.trials import OnRecord, TuningStudy, params_digest

TOOLS = ("hyperopt", "ray")
ALGOS = ("exhaustive", "random", "bayes")
SCHEDULERS = ("asha", "fifo")


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
    told: OnRecord = lambda record: None,
) -> dict[str, Any]:
    """Tune a run, and write the best values as a file that ``--config_files=`` takes.

    Parameters
    ----------
    config_files, overrides
        As in `recbole_adarec.config.resolve_user_config.resolve_user_config`: what all trials have in common.
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
    values = resolve_user_config(None, config_files, overrides)
    for key, value in single_values(space):
        resolve_user_config(None, [], values | {key: value})
    _check_installed(tool)
    study = TuningStudy(values, Path(output) / values["dataset"])
    if tool == "hyperopt":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # hyperopt's use of pkg_resources
            logging.getLogger("hyperopt").setLevel(logging.WARNING)
            ContinuedTuning(study, space, algo, max_evals, early_stop, told).run()
    else:
        seed = stage_config(values, "student")["seed"]
        trials = {params_digest(params): params for params in draw(space, algo, max_evals, seed)}
        run_ray(study, list(trials.values()), workers, scheduler, ray_address, told)
    return study.finish()


def _check_installed(tool: str) -> None:
    """Refuse in one line what an import deep inside would say in many."""
    needed = ("hyperopt",) if tool == "hyperopt" else ("ray", "pyarrow")
    for module in needed:
        try:
            import_module(module)
        except ImportError as error:
            raise AdaRecError(f'tune: {tool} needs {module} ({error}); pip install "recbole-adarec[tune]"') from error
    if tool == "hyperopt" and version("hyperopt") != HYPEROPT_VERSION:
        raise AdaRecError(
            f"tune: RecBole's HyperTuning works with hyperopt {HYPEROPT_VERSION}, not {version('hyperopt')}; "
            f"pip install hyperopt=={HYPEROPT_VERSION}"
        )
