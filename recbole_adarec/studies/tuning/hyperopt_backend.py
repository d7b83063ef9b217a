"""Tuning with RecBole's HyperTuning (hyperopt)."""

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
    """RecBole's `HyperTuning` over a `TuningStudy`; it is seeded, so that a continued study asks for the same trials.

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
        self, study: TuningStudy, space: Space, algo: str, number: int, early_stop: int, told: OnRecord
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
