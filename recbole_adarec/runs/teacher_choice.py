"""Chooses the teacher among several candidates: the best of them, or their mean, by validation.

All candidates are trained for a part of the epochs. Those that a mean needs are trained on, the others are dropped
(successive halving, Jamieson and Talwalkar, AISTATS 2016, arXiv 1502.07943, in two rounds). Each round has a whole
learning rate schedule, so that what is compared has settled. A place in the mean that none of them earns goes to
another seed of one that has a place.
"""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from typing import Any, NamedTuple

from recbole_adarec.config.run_config import RunConfig
from recbole_adarec.data.loading import Loaders
from recbole_adarec.evaluation.kept_states import KeptStates
from recbole_adarec.evaluation.mean_weights import Choice, choose_members
from recbole_adarec.runs.candidate_training import CandidateTraining, Trained, figures
from recbole_adarec.runs.epochs import has_second_seeds, mean_members, teacher_epochs, trial_training
from recbole_adarec.runs.run_folder import RunFolder
from recbole_adarec.runs.stages import item_tokens
from recbole_adarec.storage.files import plain
from recbole_adarec.trainer.teacher import evaluate_mean, evaluate_model


class Outcome(NamedTuple):
    """What the rounds gave.

    Attributes
    ----------
    trials : dict of str to Trained
        All candidates after the first round.
    kept : Choice
        Those that were trained on.
    trained : dict of str to Trained
        These after all their epochs, and second seeds.
    choice : Choice
        The members of the mean.
    """

    trials: dict[str, Trained]
    kept: Choice
    trained: dict[str, Trained]
    choice: Choice


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
        given: int | None = config.values["trial_epochs"]
        trial = (min(given, self.epochs), 1.0) if given else trial_training(self.epochs, targets)
        self.trial_epochs, self.trial_share = trial
        self.has_second_seeds = has_second_seeds(targets)

    def teacher(self, stage_config: Any) -> tuple[Any, dict[str, Any]]:
        """The teacher and what its model file holds besides the weights.

        Parameters
        ----------
        stage_config : recbole.config.Config
            Of the stage ``teacher``; it is given the members.
        """
        outcome = self.train()
        model = self.mean(stage_config, outcome.trained, outcome.choice.weights)
        with KeptStates().of(dict(zip(outcome.choice.weights, model.members, strict=True))):
            results = self.evaluated(stage_config, model)
            records = self._records(outcome, model)
        return model, {
            **results,
            "epochs": sum(record["epochs"] for record in records),
            "history": [],
            "n_users": self.data.dataset.user_num,
            "item_tokens": item_tokens(self.data),
            "candidates": records,
        }

    def train(self, dropped_too: bool = False) -> Outcome:
        """Train the candidates and choose the members.

        Parameters
        ----------
        dropped_too : bool
            Train those that are dropped after the first round to their end as well, for comparison.
        """
        names = [name for name in self.candidates if name not in self.training.second_seeds.values()]
        with self.training.processes():
            trials = self.training.round(names, self.trial_epochs, share=self.trial_share)
            kept = self._choose("first round", trials, least=self.most)
            trained = self._finished({name: trials[name] for name in (names if dropped_too else kept.weights)})
        eligible = {name: trained[name] for name in kept.weights}
        choice = self._choose("last round", eligible)  # without the memory of the processes
        if more := self._second_seeds(choice):
            with self.training.processes():
                seeds = self.training.round(more, self.epochs)
            choice = self._choose("second seeds", eligible | seeds)
            trained |= seeds
        return Outcome(trials, kept, trained, choice)

    def _second_seeds(self, choice: Choice) -> list[str]:
        """Second seeds of members, the most likely first, for the places that are left."""
        again = [self.training.second_seeds[name] for name in choice.weights if name in self.training.second_seeds]
        return again[: self.most - len(choice.weights)] if self.has_second_seeds else []

    def _finished(self, trials: Mapping[str, Trained]) -> dict[str, Trained]:
        """Candidates after the rest of their epochs; each as before only if it was likelier and ranked better.

        Likelihood and ranking part in a long training: on Beauty, from 2 epochs to 13, the log-likelihood fell from
        -8.225 to -8.250, and NDCG@10 rose from 0.0562 to 0.0712.
        """
        ours = [name for name in trials if "teacher" not in self.candidates[name]]
        finished = dict(trials)
        if self.epochs > self.trial_epochs:
            # The longest first: side by side they then end at about the same time.
            longest_first = sorted(ours, key=lambda name: -trials[name].content["seconds"])
            finished |= self.training.round(longest_first, self.epochs, self.trial_epochs)
        for name in ours:
            old, new = trials[name].result, finished[name].result
            likelier = bool(old.log_likelihood.mean() > new.log_likelihood.mean())
            if likelier and bool(old.ndcg.mean() > new.ndcg.mean()):
                finished[name] = trials[name]
        return finished

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

    def _choose(self, title: str, trained: Mapping[str, Trained], least: int = 1) -> Choice:
        """The members of a mean of candidates, with a line in the log for each step."""
        states = {name: candidate.states for name, candidate in trained.items()}
        alone = {name: candidate.result for name, candidate in trained.items()}
        choice = choose_members(states, self.most, least, alone)
        for step in choice.steps:
            getLogger().info(f"{title}: {step}")
        weights = ", ".join(f"{name} {weight:.3f}" for name, weight in choice.weights.items())
        getLogger().info(f"{title}: of {', '.join(trained)}: {weights}; {figures(choice.mean)}")
        return choice

    def _records(self, outcome: Outcome, mean: Any) -> list[dict[str, Any]]:
        """A row for each candidate: how long it was trained, how likely, and what became of it."""
        weights = outcome.choice.weights
        members = dict(zip(weights, mean.members, strict=True))
        rows = []
        for name, candidate in (outcome.trials | outcome.trained).items():
            row: dict[str, Any] = {
                "name": name,
                "values": self.candidates[name],
                "epochs": candidate.content["epochs"],
                "seconds": round(candidate.content["seconds"], 1),
                "log_likelihood": float(candidate.result.log_likelihood.mean()),
                "temperature": 1 / candidate.result.scale,
                "weight": weights.get(name),
                "dropped": None if name in members else _why(name, outcome),
            }
            if name in members:
                config = self.config.candidate(self.candidates[name])
                row |= evaluate_model(config, members[name].eval(), self.data)
            rows.append(row)
        return rows


def _why(name: str, outcome: Outcome) -> str:
    """When a candidate was dropped, and why."""
    if name in outcome.kept.left_out:
        return f"after first round: {outcome.kept.left_out[name]}"
    return f"after last round: {outcome.choice.left_out[name]}"
