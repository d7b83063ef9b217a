"""Chooses the teacher among several candidates: the best of them, or their mean, by validation.

All candidates are trained for a part of the epochs. Those that a mean needs are trained on, the others are dropped
(successive halving, Jamieson and Talwalkar, AISTATS 2016, arXiv 1502.07943, in two rounds). Each round has a whole
learning rate schedule, so that what is compared has settled.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from logging import getLogger
from typing import Any, NamedTuple

from recbole.utils import init_seed

from recbole_adarec import distributed
from recbole_adarec.config.candidates import candidate_names
from recbole_adarec.config.run_config import RunConfig
from recbole_adarec.data.loading import Loaders
from recbole_adarec.evaluation.mean_weights import (
    Calibrated,
    Choice,
    HeldOut,
    calibrate,
    choose_members,
    held_out,
)
from recbole_adarec.model.registry import get_model
from recbole_adarec.model.stored import build_model
from recbole_adarec.runs.recbole_models import recbole_teacher
from recbole_adarec.runs.run_folder import RunFolder
from recbole_adarec.runs.stages import item_tokens
from recbole_adarec.storage.files import plain
from recbole_adarec.storage.model_files import load_state, save_model
from recbole_adarec.trainer.registry import get_trainer
from recbole_adarec.trainer.teacher import evaluate_mean, evaluate_model

_EPOCHS, _TARGETS_OF_AN_EPOCH = (8, 24), 10_000  # an epoch for each 10,000 targets of one, within these bounds ...
_MOST_TARGETS = 8_000_000  # ... and at most as many epochs as have so many targets
_TRIAL_SHARE = 1 / 8  # of the epochs


class Trained(NamedTuple):
    """A candidate after a round.

    Attributes
    ----------
    content : dict
        Of its model file.
    states : HeldOut
        What its logits on validation rows are computed from.
    result : Calibrated
        Its likelihood and ranking on these rows.
    """

    content: dict[str, Any]
    states: HeldOut
    result: Calibrated


def epochs_by_data(targets: int) -> int:
    """The epochs of a candidate where none are given: the more data, the later a model has learned it by heart.

    Parameters
    ----------
    targets : int
        Targets of an epoch.
    """
    least, most = _EPOCHS
    return max(min(max(targets // _TARGETS_OF_AN_EPOCH, least), most, _MOST_TARGETS // targets), 1)


class TeacherChoice:
    """Trains the candidates for the teacher, and makes the mean of those that validation chooses.

    Parameters
    ----------
    config : RunConfig
        Of the run; its ``backbone`` names several candidates.
    data : Loaders
        Of the run.
    folder : RunFolder
        Of the run. Each training is kept in a file, from which an interrupted choice continues, until the teacher's own
        file is there.
    """

    def __init__(self, config: RunConfig, data: Loaders, folder: RunFolder) -> None:
        self.config, self.data, self.folder = config, data, folder
        self.candidates = dict(zip(candidate_names(config.candidates), config.candidates, strict=True))
        targets = int(data.train._dataset.windows.length.sum())
        self.epochs: int = config.given("teacher", "epochs") or epochs_by_data(targets)
        trial = config.values["trial_epochs"] or max(1, round(_TRIAL_SHARE * self.epochs))
        self.trial_epochs: int = min(trial, self.epochs)

    def teacher(self, stage_config: Any) -> tuple[Any, dict[str, Any]]:
        """The teacher and what its model file holds besides the weights.

        Parameters
        ----------
        stage_config : recbole.config.Config
            Of the stage ``teacher``; it is given the members.
        """
        most = self.config.values["most_members"]
        first = {name: self._train(name, self.trial_epochs) for name in self.candidates}
        kept = choose_members({name: trained.states for name, trained in first.items()}, most, least=most)
        self._log("first round", first, kept)
        last = {name: self._finish(name, first[name]) for name in kept.weights}
        choice = choose_members({name: trained.states for name, trained in last.items()}, most)
        self._log("last round", last, choice)
        stage_config["members"] = [
            {"config": plain(last[name].content["config"]), "weight": weight} for name, weight in choice.weights.items()
        ]
        stage_config["backbone"] = " + ".join(choice.weights)
        model = self._model(stage_config)
        for member, name in zip(model.members, choice.weights, strict=True):
            member.load_state_dict(last[name].content["state_dict"])
        model.eval().weigh()
        results = evaluate_mean(stage_config, model, self.data.for_stage(stage_config))
        trained = first | last
        return model, {
            **results,
            "epochs": sum(candidate.content["epochs"] for candidate in trained.values()),
            "history": [],
            "n_users": self.data.dataset.user_num,
            "item_tokens": item_tokens(self.data),
            "candidates": self._records(trained, kept, choice, model),
        }

    def _model(self, config: Any) -> Any:
        """An untrained model on its device."""
        return get_model(config["model"])(config, self.data.train._dataset).to(config["device"])

    def _finish(self, name: str, trial: Trained) -> Trained:
        """Train a candidate for the rest of its epochs; as it was before only if it was likelier and ranked better.

        Likelihood and ranking part in a long training: on Beauty, from 2 epochs to 13, the log-likelihood fell from
        -8.225 to -8.250, and NDCG@10 rose from 0.0562 to 0.0712.
        """
        if self.epochs == self.trial_epochs or "teacher" in self.candidates[name]:
            return trial
        finished = self._train(name, self.epochs - self.trial_epochs, trial)
        old, new = trial.result, finished.result
        likelier = bool(old.log_likelihood.mean() > new.log_likelihood.mean())
        return trial if likelier and bool(old.ndcg.mean() > new.ndcg.mean()) else finished

    def _train(self, name: str, epochs: int, before: Trained | None = None) -> Trained:
        """Train a candidate for some epochs, on from an earlier round; from its file if that is there."""
        done = len(before.content["history"]) if before else 0
        path = self.folder / f".{name}-{done + epochs}.pth"
        row = self.candidates[name]
        seed = self.config.stage("teacher")["seed"] + list(self.candidates).index(name)
        own = {} if "teacher" in row else {"epochs": epochs, "seed": seed}
        config = self.config.candidate(row, **own, checkpoint_dir=str(self.folder.path))
        if not distributed.from_first(path.is_file()):
            start = time.perf_counter()
            init_seed(seed + done, config["reproducibility"])
            data = self.data.for_stage(config)
            if "teacher" in row:
                model, results = recbole_teacher(row["teacher"], self.config, config, data, self.folder)
            else:
                getLogger().info(f"{name}: epochs {done + 1} to {done + epochs}")
                model, results = self._trained_on(config, data, before)
            seconds = time.perf_counter() - start + (before.content["seconds"] if before else 0.0)
            if distributed.is_first():
                save_model(path, model, config, **results, seconds=seconds)
            distributed.barrier()
        content = load_state(path, expected=config["model"])
        states = held_out(build_model(content, config["device"]), self.data.valid)
        trained = Trained(content, states, calibrate(states))
        getLogger().info(f"{name}: {content['epochs']} epochs, {content['seconds']:.0f} s, {_figures(trained.result)}")
        return trained

    def _trained_on(self, config: Any, data: Loaders, before: Trained | None) -> tuple[Any, dict[str, Any]]:
        """A model after a round, from new weights or from those of the round before, and its records of epochs."""
        trainer = get_trainer(config)(config, self._model(config))
        if before is not None:
            trainer.model.load_state_dict(before.content["state_dict"])
            trainer.training_log = list(before.content["history"])
            trainer.restart(config["epochs"])
        trainer.start_repeat_bias(self.data.valid)
        trainer.fit(data.train, saved=False, verbose=False, show_progress=config["show_progress"])
        trainer.fit_repeat_bias(self.data.valid)
        return trainer.model, {"history": trainer.training_log, "epochs": len(trainer.training_log)}

    def _log(self, title: str, trained: Mapping[str, Trained], choice: Choice) -> None:
        for step in choice.steps:
            getLogger().info(f"{title}: {step}")
        weights = ", ".join(f"{name} {weight:.3f}" for name, weight in choice.weights.items())
        getLogger().info(f"{title}: of {', '.join(trained)}: {weights}; {_figures(choice.mean)}")

    def _records(self, trained: Mapping[str, Trained], kept: Choice, choice: Choice, mean: Any) -> list[dict[str, Any]]:
        """A row for each candidate: how long it was trained, how likely, and what became of it."""
        members = dict(zip(choice.weights, mean.members, strict=True))
        rows = []
        for name, candidate in trained.items():
            row: dict[str, Any] = {
                "name": name,
                "values": self.candidates[name],
                "epochs": candidate.content["epochs"],
                "seconds": round(candidate.content["seconds"], 1),
                "log_likelihood": float(candidate.result.log_likelihood.mean()),
                "temperature": 1 / candidate.result.scale,
                "weight": choice.weights.get(name),
                "dropped": None if name in members else f"after {'last' if name in kept.weights else 'first'} round",
            }
            if name in members:
                config = self.config.candidate(self.candidates[name])
                row |= evaluate_model(config, members[name].eval(), self.data)
            rows.append(row)
        return rows

    def clear(self) -> None:
        """Remove the files of the trainings; the teacher holds what is needed."""
        if distributed.is_first():
            for name in self.candidates:
                for path in self.folder.path.glob(f".{name}-*.pth"):
                    path.unlink()


def _figures(result: Calibrated) -> str:
    likelihood, ndcg = float(result.log_likelihood.mean()), float(result.ndcg.mean())
    return f"log-likelihood {likelihood:.4f} at temperature {1 / result.scale:.2f}, NDCG@10 {ndcg:.4f}"
