"""Chooses the teacher among several candidates: the best of them, or their mean, by validation.

All candidates are trained for a part of the epochs. Those that a mean needs are trained on, the others are dropped
(successive halving, Jamieson and Talwalkar, AISTATS 2016, arXiv 1502.07943, in two rounds). Each round has a whole
learning rate schedule, so that what is compared has settled.
"""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from typing import Any

from recbole_adarec.config.run_config import RunConfig
from recbole_adarec.data.loading import Loaders
from recbole_adarec.evaluation.kept_states import KeptStates
from recbole_adarec.evaluation.mean_weights import Choice, choose_members
from recbole_adarec.runs.candidate_training import CandidateTraining, Trained, figures
from recbole_adarec.runs.epochs import mean_members, teacher_epochs
from recbole_adarec.runs.run_folder import RunFolder
from recbole_adarec.runs.stages import item_tokens
from recbole_adarec.storage.files import plain
from recbole_adarec.trainer.teacher import evaluate_mean, evaluate_model

_TRIAL_SHARE = 1 / 8  # of the epochs


class TeacherChoice:
    """Trains the candidates for the teacher, and makes the mean of those that validation chooses.

    Parameters as of `CandidateTraining`, whose files the folder holds until the teacher's own file is there.
    """

    def __init__(self, config: RunConfig, data: Loaders, folder: RunFolder) -> None:
        self.config, self.data = config, data
        self.training = CandidateTraining(config, data, folder)
        self.candidates = self.training.candidates
        targets = int(data.train._dataset.windows.length.sum())
        self.epochs: int = config.given("teacher", "epochs") or teacher_epochs(targets)
        self.most: int = config.values["most_members"] or mean_members(targets, self.epochs)
        trial = config.values["trial_epochs"] or max(1, round(_TRIAL_SHARE * self.epochs))
        self.trial_epochs: int = min(trial, self.epochs)

    def teacher(self, stage_config: Any) -> tuple[Any, dict[str, Any]]:
        """The teacher and what its model file holds besides the weights.

        Parameters
        ----------
        stage_config : recbole.config.Config
            Of the stage ``teacher``; it is given the members.
        """
        with self.training.processes():
            first = self.trial()
            kept = self.kept(first)
            last = self.finished({name: first[name] for name in kept.weights})
        choice = self.chosen(last)
        model = self.mean(stage_config, last, choice.weights)
        trained = first | last
        with KeptStates().of(dict(zip(choice.weights, model.members, strict=True))):
            results = self.evaluated(stage_config, model)
            records = self._records(trained, kept, choice, model)
        return model, {
            **results,
            "epochs": sum(candidate.content["epochs"] for candidate in trained.values()),
            "history": [],
            "n_users": self.data.dataset.user_num,
            "item_tokens": item_tokens(self.data),
            "candidates": records,
        }

    def trial(self) -> dict[str, Trained]:
        """All candidates, trained for a part of the epochs."""
        return self.training.round(self.candidates, self.trial_epochs)

    def kept(self, trials: Mapping[str, Trained]) -> Choice:
        """The candidates that are trained on."""
        kept = self._choose(trials, least=self.most)
        self._log("first round", trials, kept)
        return kept

    def finished(self, trials: Mapping[str, Trained]) -> dict[str, Trained]:
        """Candidates after the rest of their epochs; each as before only if it was likelier and ranked better.

        Likelihood and ranking part in a long training: on Beauty, from 2 epochs to 13, the log-likelihood fell from
        -8.225 to -8.250, and NDCG@10 rose from 0.0562 to 0.0712.
        """
        ours = [name for name in trials if "teacher" not in self.candidates[name]]
        finished = dict(trials)
        if self.epochs > self.trial_epochs:
            finished |= self.training.round(ours, self.epochs, self.trial_epochs)
        for name in ours:
            old, new = trials[name].result, finished[name].result
            likelier = bool(old.log_likelihood.mean() > new.log_likelihood.mean())
            if likelier and bool(old.ndcg.mean() > new.ndcg.mean()):
                finished[name] = trials[name]
        return finished

    def chosen(self, trained: Mapping[str, Trained]) -> Choice:
        """The members of the mean."""
        choice = self._choose(trained)
        self._log("last round", trained, choice)
        return choice

    def mean(self, stage_config: Any, trained: Mapping[str, Trained], weights: Mapping[str, float]) -> Any:
        """The mean of candidates, in evaluation mode.

        Parameters
        ----------
        stage_config : recbole.config.Config
            Of the stage ``teacher``; it is given the members.
        trained : mapping
            The candidates by name.
        weights : mapping
            Factors of the members' logits.
        """
        stage_config["members"] = [
            {"config": plain(trained[name].content["config"]), "weight": weight} for name, weight in weights.items()
        ]
        stage_config["backbone"] = " + ".join(weights)
        model = self.training.model(stage_config)
        for member, name in zip(model.members, weights, strict=True):
            member.load_state_dict(trained[name].content["state_dict"])
        model.eval().weigh()
        return model

    def evaluated(self, stage_config: Any, mean: Any) -> dict[str, dict[str, float]]:
        """Metrics of a mean, whose repeat bias and prior scale are fitted; parameters as `evaluate_mean`."""
        return evaluate_mean(stage_config, mean, self.data.for_stage(stage_config))

    def _choose(self, trained: Mapping[str, Trained], least: int = 1) -> Choice:
        states = {name: candidate.states for name, candidate in trained.items()}
        alone = {name: candidate.result for name, candidate in trained.items()}
        return choose_members(states, self.most, least, alone)

    def _log(self, title: str, trained: Mapping[str, Trained], choice: Choice) -> None:
        for step in choice.steps:
            getLogger().info(f"{title}: {step}")
        weights = ", ".join(f"{name} {weight:.3f}" for name, weight in choice.weights.items())
        getLogger().info(f"{title}: of {', '.join(trained)}: {weights}; {figures(choice.mean)}")

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
                "dropped": None if name in members else _why(name, kept, choice),
            }
            if name in members:
                config = self.config.candidate(self.candidates[name])
                row |= evaluate_model(config, members[name].eval(), self.data)
            rows.append(row)
        return rows


def _why(name: str, kept: Choice, choice: Choice) -> str:
    """When a candidate was dropped, and why."""
    if name in kept.left_out:
        return f"after first round: {kept.left_out[name]}"
    return f"after last round: {choice.left_out[name]}"
