"""Runs one stage alone: the teacher, or CpRec."""

from __future__ import annotations

from typing import Any

from recbole_adarec import distributed
from recbole_adarec.config.run_config import RunConfig
from recbole_adarec.data.loading import Loaders, load_data
from recbole_adarec.interop.patches import recbole_patches
from recbole_adarec.model.registry import get_model
from recbole_adarec.runs.run_folder import RunFolder
from recbole_adarec.runs.stages import build_trainer, run_stage, train_model
from recbole_adarec.storage.properties import model_defaults


class ModelRun:
    """A run of one stage alone, without report.

    Parameters
    ----------
    config : RunConfig
        Of the run; with a ``run_dir``.
    stage : str
        ``teacher`` or ``cprec``.

    Raises
    ------
    AdaRecError
        If the configuration cannot be run; nothing is written then.
    """

    def __init__(self, config: RunConfig, stage: str) -> None:
        self.config, self.stage = config, stage
        stage_config = config.stage(stage)
        distributed.start(stage_config["device"])
        self.data = load_data(stage_config)
        config.set_history_length(stage_config)
        # Built once, so that what the model refuses is refused before anything is written.
        get_model(stage_config["model"])(stage_config, self.data.train._dataset)
        keys = set(model_defaults(stage_config["model"])) - {"train_neg_sample_args"}
        stage_values = {f"{stage}_{key}": stage_config[key] for key in keys}
        self.folder = RunFolder(config.values["run_dir"], config.values | stage_values)

    @recbole_patches()
    def execute(self) -> dict[str, Any]:
        """The content of the model's file; the model is trained first, unless the file exists."""

        def train(config: Any, data: Loaders) -> tuple[Any, dict[str, Any]]:
            return train_model(build_trainer(config, data, self.folder), data)

        with self.folder.recording():
            return run_stage(self.folder, self.stage, self._stage_config, self.data, train)

    def _stage_config(self) -> Any:
        """The configuration of the stage, with the teacher's file for `CpRec`."""
        extra: dict[str, Any] = {"checkpoint_dir": str(self.folder.path)}
        if self.stage != "teacher":
            extra["teacher_path"] = str(self.folder / "teacher.pth")
        return self.config.stage(self.stage, **extra)
