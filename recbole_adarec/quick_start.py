"""One call from a dataset to a report, like RecBole's module of this name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.config.run_config import RunConfig
from recbole_adarec.interop.patches import recbole_patches
from recbole_adarec.runs.pipeline import Run
from recbole_adarec.runs.recbole_run import RecBoleRun


@recbole_patches()
def run_adarec(
    dataset: str | None = None,
    config_file_list: list[str] | None = None,
    config_dict: dict[str, Any] | None = None,
    run_dir: str | Path | None = None,
    model: str | None = None,
) -> dict[str, Any]:
    """Train a teacher, search an architecture, distil a student of it, and report on both models.

    Parameters
    ----------
    dataset : str, optional
        Name of a RecBole dataset; ml-100k by default.
    config_file_list : list of str, optional
        YAML files, looked for in the current folder and then in properties/.
    config_dict : dict, optional
        Values by key; they override the files.
    run_dir : path-like, optional
        Folder of the run, a new one below saved/ by default. Stages that are finished in it are not repeated.
    model : str, optional
        A model of RecBole, to train and report it alone; by default AdaRecStudent, the whole run.

    Returns
    -------
    dict
        The content of report.json.

    Raises
    ------
    AdaRecError
        If a value, a file or the dataset cannot be used; nothing is overwritten.
    """
    overrides = dict(config_dict or {})
    if run_dir is not None:
        overrides["run_dir"] = str(run_dir)
    if model is not None:
        overrides["model"] = model
    return make_run(resolve_user_config(dataset, config_file_list, overrides)).execute()


@recbole_patches()
def make_run(values: dict[str, Any]) -> Run | RecBoleRun:
    """The run of a configuration: a distillation, or a RecBole model alone.

    Parameters
    ----------
    values : dict
        What `resolve_user_config` returned.
    """
    config = RunConfig(values)
    return RecBoleRun(config) if values["model"] else Run(config)
