"""Tuning with RecBole's `HyperTuning`, which uses hyperopt."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from recbole.trainer.hyper_tuning import HyperTuning

from recbole_adarec.config.stages import stage_config
from recbole_adarec.studies.tuning.space import Params, Space, as_params
from recbole_adarec.studies.tuning.trials import OnRecord, TuningStudy

HYPEROPT_VERSION = "0.2.5"


class ContinuedTuning(HyperTuning):
    """RecBole's `HyperTuning` over a `TuningStudy`, seeded so that a continued study draws the same trials.

    Parameters
    ----------
    study : TuningStudy
        Runs the trials, and reads the records of those that have ended.
    space : dict
        What `recbole_adarec.studies.tuning.space.read_space` returned.
    algo : str
        ``exhaustive``, ``random`` or ``bayes``.
    number : int
        Trials at most.
    early_stop : int
        Trials without a better one after which tuning stops.
    on_record : callable
        Called with the record of each trial when it has ended.
    """

    def __init__(
        self, study: TuningStudy, space: Space, algo: str, number: int, early_stop: int, on_record: OnRecord
    ) -> None:  # fmt: skip
        self.max_evals: int
        super().__init__(None, params_dict=space, algo=algo, max_evals=number, early_stop=early_stop)
        self.max_evals = min(int(self.max_evals), number)  # RecBole's exhaustive search sets the size of the grid
        self.study, self.space_by_type, self.on_record = study, space, on_record

    def trial(self, params: Params) -> dict[str, Any]:
        """Run a trial; returns its status and its loss, as hyperopt takes them."""
        record = self.study.trial(as_params(self.space_by_type, params))
        self.on_record(record)
        if record["status"] == "failed":
            return {"status": "fail", "loss": sys.float_info.max}  # early stopping reads the loss of a failed trial too
        return {"status": "ok", "loss": -record["score"] if self.study.bigger else record["score"]}

    def run(self) -> None:
        """Run all trials; RecBole's `run`, with the seed of the study."""
        from hyperopt import fmin

        rng = np.random.RandomState(stage_config(self.study.values, "student")["seed"])
        fmin(
            self.trial, self.space, algo=self.algo, max_evals=self.max_evals, early_stop_fn=self.early_stop_fn,
            rstate=rng, show_progressbar=False, return_argmin=False, verbose=False,
        )  # fmt: skip
