"""Tunes any configuration keys, with RecBole's HyperTuning (hyperopt) or with Ray Tune, in a folder.

A trial is a run, and its record is written when it ends. A study that is killed and started again draws the same trials
and reads the records of those that ended; an interrupted trial continues with the stage that it was in.
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
from recbole_adarec.studies.tuning.space import draw, read_space, values_to_check
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
    on_record: OnRecord = lambda record: None,
) -> dict[str, Any]:
    """Tune keys of a run by the validation metric of its student, and write the best values as best.yaml.

    Parameters
    ----------
    config_files, overrides
        As in `recbole_adarec.config.resolve.resolve_user_config`: values that all trials share.
    params_file : str
        File of the search space, as `recbole_adarec.studies.tuning.space.read_space` reads it.
    tool : str
        ``hyperopt``: RecBole's HyperTuning, one trial at a time. ``ray``: Ray Tune.
    algo : str, optional
        ``exhaustive``, ``random`` or, with hyperopt, ``bayes``. The default is exhaustive for a space of choices, else
        bayes with hyperopt and random with Ray.
    max_evals : int
        Trials at most.
    early_stop : int
        Trials without a better one after which hyperopt stops.
    workers : int
        Trials at a time, with Ray.
    scheduler : str
        ``asha`` or ``fifo``, with Ray.
    ray_address : str, optional
        Address of a Ray cluster, with Ray; this machine by default.
    output : str
        The folder; each dataset has a folder in it. The same command continues a study.
    on_record : callable
        Called with the record of each trial when it has ended.

    Returns
    -------
    dict
        Content of study.json.

    Raises
    ------
    AdaRecError
        For input that cannot be used.
    """
    tool = tool.lower()
    options = {"tool": (tool, TOOLS), "algo": (algo or ALGOS[0], ALGOS), "scheduler": (scheduler, SCHEDULERS)}
    for name, (value, known) in options.items():
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
    only_choices = set(space) == {"choice"}
    algo = algo or ("exhaustive" if only_choices else "bayes" if tool == "hyperopt" else "random")
    if algo == "exhaustive" and not only_choices:
        raise AdaRecError(f"tune: exhaustive takes choices alone, {params_file} has others; random draws from all")
    if algo == "bayes" and tool == "ray":
        raise AdaRecError("tune: bayes is hyperopt's, one trial after the other; ray takes random and exhaustive")
    values = resolve_user_config(None, config_files, overrides)
    for key, value in values_to_check(space):
        resolve_user_config(None, [], values | {key: value})
    _check_installed(tool)
    study = TuningStudy(values, Path(output) / values["dataset"])
    if tool == "hyperopt":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # hyperopt imports pkg_resources
            logging.getLogger("hyperopt").setLevel(logging.WARNING)
            ContinuedTuning(study, space, algo, max_evals, early_stop, on_record).run()
    else:
        seed = stage_config(values, "student")["seed"]
        trials = {params_digest(params): params for params in draw(space, algo, max_evals, seed)}
        run_ray(study, list(trials.values()), workers, scheduler, ray_address, on_record)
    return study.write_results()


def _check_installed(tool: str) -> None:
    """Raise an error of one line if a package of the tool is missing or has another version."""
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
