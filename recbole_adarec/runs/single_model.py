"""A run of one model by itself: the teacher, or CpRec."""

from __future__ import annotations

from typing import Any

import torch
from recbole.utils import get_model

from recbole_adarec import distributed
from recbole_adarec.data.loading import load_data
from recbole_adarec.runs.pipeline import Run
from recbole_adarec.runs.run_folder import RunFolder
from recbole_adarec.storage.properties import model_defaults


class ModelRun(Run):
    """A run of one model by itself: ``teacher`` or ``cprec``.

    Parameters
    ----------
    values : dict
        What `recbole_adarec.config.resolve.resolve_user_config` returned, with a ``run_dir``.
    stage : str
        A key of `recbole_adarec.config.schema.MODELS`.
    """

    def __init__(self, values: dict[str, Any], stage: str) -> None:
        if values["threads"]:
            torch.set_num_threads(values["threads"])
        self.values, self.stage, self.architecture = values, stage, None
        config = self.config(stage)
        distributed.start(config["device"])
        self.data = load_data(config)
        get_model(config["model"])(config, self.data.train._dataset)  # what it refuses is refused before all else
        defaults = set(model_defaults(config["model"])) - {"train_neg_sample_args"}
        self.folder = RunFolder(values["run_dir"], values | {f"{stage}_{key}": config[key] for key in defaults})

    def finish(self) -> dict[str, Any]:
        """Train the model unless it is there; what its file holds."""
        with self.folder.recording():
            return self._stage(self.stage, self._train)
