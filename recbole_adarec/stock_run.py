"""A RecBole model alone in a run folder: trained as RecBole trains it, and reported as ours are."""

from __future__ import annotations

import json
from typing import Any

import torch

from recbole_adarec import distributed
from recbole_adarec.baselines import baseline_config
from recbole_adarec.config import resolved
from recbole_adarec.data.loading import load_data
from recbole_adarec.errors import AdaRecError
from recbole_adarec.evaluation import report as pages
from recbole_adarec.files import plain, write_text
from recbole_adarec.interop.patches import recbole_patches
from recbole_adarec.pipeline import REPORT_FORMAT, Run
from recbole_adarec.plugins import load_plugins
from recbole_adarec.run_folder import RECBOLE_LOGS, RunFolder, default_folder
from recbole_adarec.stock import check_sequential


class StockRun(Run):
    """The run of ``model``; nothing is distilled in it.

    Parameters
    ----------
    values : dict
        What `recbole_adarec.config.resolve` returned.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        if values["threads"]:
            torch.set_num_threads(values["threads"])
        if distributed.world_size() > 1:
            raise AdaRecError(f"model: RecBole's {values['model']} is trained in one process; leave nproc out")
        load_plugins(values["plugins"])
        check_sequential(values["model"], "model")
        self.values = values
        config = baseline_config(values, values["model"])
        self.data = load_data(config)
        folder = values["run_dir"] or default_folder(values["dataset"], config["checkpoint_dir"])
        self.folder = RunFolder(folder, resolved(values), log=None if values["run_dir"] else RECBOLE_LOGS)

    @recbole_patches()
    def execute(self) -> dict[str, Any]:
        """Train the model unless it is trained, then write its report."""
        name = self.values["model"]
        with self.folder.recording():
            model, content = self._baseline(name)
            report = {
                "format": REPORT_FORMAT,
                "dataset": self.values["dataset"],
                "seed": content["config"]["seed"],
                "stages": {name: {"seconds": round(content["seconds"], 2), "epochs": content["epochs"]}},
                "models": self._measured({name: model}, {}, {name: content}),
            }
            write_text(self.folder / "report.json", json.dumps(plain(report), indent=1) + "\n")
            write_text(self.folder / "report.md", pages.markdown(report, {}))
            write_text(self.folder / "report.html", pages.html(report, {}, []))
        return report
