"""Runs one RecBole model: trained as RecBole trains it, with the report of this package."""

from __future__ import annotations

from typing import Any

from recbole_adarec import distributed
from recbole_adarec.config.recbole_models import check_sequential
from recbole_adarec.config.run_config import RunConfig
from recbole_adarec.data.loading import load_data
from recbole_adarec.errors import AdaRecError
from recbole_adarec.interop.patches import recbole_patches
from recbole_adarec.runs.recbole_models import trained_baseline
from recbole_adarec.runs.run_folder import RECBOLE_LOGS, RunFolder, default_folder
from recbole_adarec.runs.summary import REPORT_FORMAT, model_rows, stage_rows, write_report


class RecBoleRun:
    """A run of one model of RecBole, without distillation.

    Parameters
    ----------
    config : RunConfig
        ``model`` is the name of a sequential model of RecBole.

    Raises
    ------
    AdaRecError
        If RecBole has no sequential model of that name, or there are several processes.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config, values = config, config.values
        self.name: str = values["model"]
        if distributed.world_size() > 1:
            raise AdaRecError(f"model: RecBole's {self.name} is trained in one process; leave nproc out")
        check_sequential(self.name, "model")
        model_config = config.baseline(self.name)
        self.data = load_data(model_config)
        folder = values["run_dir"] or default_folder(values["dataset"], model_config["checkpoint_dir"])
        self.folder = RunFolder(folder, config.full(), log=None if values["run_dir"] else RECBOLE_LOGS)

    @recbole_patches()
    def execute(self) -> dict[str, Any]:
        """The content of report.json; the model is trained first, unless its file exists."""
        with self.folder.recording():
            model, content = trained_baseline(self.config, self.data, self.folder, self.name)
            values = self.config.values
            report = {
                "format": REPORT_FORMAT,
                "dataset": values["dataset"],
                "seed": content["config"]["seed"],
                "stages": stage_rows({self.name: content}),
                "models": model_rows(
                    {self.name: model}, {}, {self.name: content}, self.data, values["latency_repeats"]
                ),
            }
            write_report(self.folder, report)
        return report
