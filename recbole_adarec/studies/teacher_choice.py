"""The experiment on the choice of the teacher: the mean, each candidate, what is left out, and RecBole's models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recbole_adarec.config.run_config import RunConfig
from recbole_adarec.data.dataset import AUTO_LENGTH, item_counts
from recbole_adarec.data.loading import Loaders
from recbole_adarec.errors import AdaRecError
from recbole_adarec.evaluation.kept_states import KeptStates
from recbole_adarec.evaluation.mean_weights import choose_members
from recbole_adarec.evaluation.per_user import user_scores
from recbole_adarec.evaluation.profile import count_parameters
from recbole_adarec.interop.baselines import build_baseline, train_baseline
from recbole_adarec.interop.every_position import EVERY_POSITION_MODELS
from recbole_adarec.interop.patches import recbole_patches
from recbole_adarec.model.seen_items import SeenItems, deduplicated
from recbole_adarec.model.stored import load_model
from recbole_adarec.runs.pipeline import Run
from recbole_adarec.runs.teacher_choice import TeacherChoice
from recbole_adarec.storage.files import load_checkpoint, save_checkpoint
from recbole_adarec.studies.arms import (
    USERS_FORMAT,
    Arm,
    ArmResult,
    ArmStudy,
    compare_arms,
    mean_and_error,
    paired_scores,
    stacked_scores,
)
from recbole_adarec.studies.compression import size_result
from recbole_adarec.trainer.calibration import fit_repeat_bias, repeat_share

CHOICE = "auto"  # the arm that trains the candidates, and the row of the teacher that is chosen of them
ALONE = "teacher"  # the row of an arm with one model
POPULARITY = "popularity"
RECBOLE_LENGTH = 50  # RecBole's own ``MAX_ITEM_LIST_LENGTH``


class TeacherStudy(ArmStudy):
    """Runs arms that train teachers alone; an arm has a row for each model that it gives.

    Parameters as of `ArmStudy`. An arm whose value ``every_position`` is the name of a RecBole model trains it on every
    position of windows.
    """

    @staticmethod
    @recbole_patches()
    def run_job(values: dict[str, Any], reused: Sequence[tuple[str, str]] = ()) -> None:
        """Train the teachers of an arm, and write the scores of each user by each, as ``users.pth``.

        Parameters as of `ArmStudy.run_job`; these arms reuse nothing.
        """
        fast = values.get("every_position")
        run = Run(RunConfig({key: value for key, value in values.items() if key != "every_position"}))
        models: Iterator[tuple[str, Any, dict[str, float]]]
        if fast is not None:
            models = iter([(ALONE, _on_every_position(run, fast), {})])
        elif run.config.candidates:
            models = _means(run)
        else:
            run.train(until="teacher")
            device = run.config.stage("teacher")["device"]
            models = iter([(ALONE, load_model(run.folder / "teacher.pth", device, expected="AdaRecTeacher"), {})])
        content: dict[str, Any] = {"format": USERS_FORMAT, "values": values, "rows": {}}
        with run.folder.recording(), run.folder.part("teacher"):
            for name, model, weights in models:
                scores = {"valid": user_scores(model, run.data.valid), "test": user_scores(model, run.data.test)}
                content["test_user"] = scores["test"].user
                content["rows"][name] = {
                    **{part: paired_scores(part_scores) for part, part_scores in scores.items()},
                    "recall": scores["test"].recall,
                    "parameters": count_parameters(model),
                    "weights": weights,
                }
        save_checkpoint(run.folder / "users.pth", content)

    def rows(self, arm: str) -> dict[str, ArmResult]:
        """The result of each model of an arm."""
        contents = self.contents(arm)
        return {
            name: size_result(
                stacked_scores([content["rows"][name] for content in contents]),
                [content["rows"][name]["parameters"] for content in contents],
            )
            for name in contents[0]["rows"]
        }

    def _result(self, arm: str) -> ArmResult:
        return next(iter(self.rows(arm).values()))


def teacher_choice(study: ArmStudy, every_position: bool = False) -> dict[str, Any]:
    """Compare the chosen teacher with its candidates, with choices without a part, and with models of RecBole.

    Parameters
    ----------
    study : ArmStudy
        Values, seeds and workers. Its value ``baselines`` names the models of RecBole, each of which has a
        `repeat_bias` that is fitted after its training, as RecBole knows none. They read RecBole's 50 items, unless
        ``MAX_ITEM_LIST_LENGTH`` is given.
    every_position : bool
        Train the causal ones of them on every position of windows.

    Returns
    -------
    dict
        What `compare_arms` returns, with ``recall`` in each row: Recall@10 of the test data; and ``members``: those of
        each seed with their weights.

    Raises
    ------
    AdaRecError
        If ``backbone`` names no candidates.
    """
    named = study.values["baselines"]
    values = {**study.values, "baselines": []}
    if not isinstance(values["backbone"], list):
        raise AdaRecError("experiment teacher-choice: give several candidates, --backbone=auto or a list")
    length = {"MAX_ITEM_LIST_LENGTH": RECBOLE_LENGTH} if values["MAX_ITEM_LIST_LENGTH"] == AUTO_LENGTH else {}
    teachers = TeacherStudy(values, study.seeds, study.folder.with_name("teachers"), study.workers)
    arms = [Arm(CHOICE, {})]
    for name in named:
        fast = every_position and name in EVERY_POSITION_MODELS
        arms.append(Arm(name, length | ({"every_position": name} if fast else {"teacher": name})))
    teachers.run(arms)
    results = teachers.rows(CHOICE) | {name: teachers.rows(name)[ALONE] for name in named}
    comparison = compare_arms(results, CHOICE)
    contents = {arm.name: teachers.contents(arm.name) for arm in arms}
    comparison["members"] = [content["rows"][CHOICE]["weights"] for content in contents[CHOICE]]
    for name, row in comparison["arms"].items():
        arm, key = (name, ALONE) if name in named else (CHOICE, name)
        row["recall"] = mean_and_error(torch.stack([content["rows"][key]["recall"] for content in contents[arm]]))
    return comparison


def _means(run: Run) -> Iterator[tuple[str, Any, dict[str, float]]]:
    """The chosen teacher, each candidate, what is chosen without a part, and popularity; with the members' weights.

    Every candidate is trained to its end.
    """
    choice = TeacherChoice(run.config, run.data, run.folder)
    outcome = choice.train(dropped_too=True)
    trained, chosen = outcome.trained, outcome.choice.weights
    states = {name: candidate.states for name, candidate in trained.items()}
    first = {name: states[name] for name in outcome.trials}
    rows = {CHOICE: chosen, **{name: {name: 1.0} for name in first}}
    rows["no temperatures"] = dict.fromkeys(chosen, 1 / len(chosen))
    rows["no second seeds"] = choose_members({name: first[name] for name in outcome.kept.weights}, choice.most).weights
    rows["mean of all"] = choose_members(first, len(first), least=len(first)).weights
    kinds = {name: str(row.get("backbone", row.get("teacher"))) for name, row in choice.candidates.items()}
    for kind in dict.fromkeys(kinds.values()):
        others = {name: states[name] for name in states if kinds[name] != kind}
        if others:
            rows[f"without {kind}"] = choose_members(others, choice.most).weights
    kept = KeptStates()
    for name, weights in rows.items():
        stage_config = run.config.stage("teacher")
        model = choice.mean(stage_config, trained, weights)
        with kept.of(dict(zip(weights, model.members, strict=True))):
            choice.evaluated(stage_config, model)
            yield name, model, weights
    yield POPULARITY, _Popularity(run.data), {}


def _on_every_position(run: Run, name: str) -> Any:
    """A model of RecBole that is trained on every position of windows, with a fitted `repeat_bias`."""
    config = run.config.baseline(name, every_position=True)
    path = run.folder / f"{name}.pth"
    with run.folder.recording(), run.folder.part(name):
        if not path.is_file():
            train_baseline(path, config, run.data)
    model = build_baseline(config, run.data, every_position=True)
    model.load_state_dict(load_checkpoint(path)["state_dict"])
    model.eval()
    fit_repeat_bias(model, run.data.valid, repeat_share(run.data.valid))
    return model


class _Popularity(nn.Module):
    """Scores items by the logarithm of their interactions in the training data, with a fitted `repeat_bias`.

    Parameters
    ----------
    data : Loaders
        Of a run.
    """

    def __init__(self, data: Loaders) -> None:
        super().__init__()
        dataset = data.train._dataset
        self.ITEM_SEQ: str = getattr(dataset, f"{dataset.iid_field}_list_field")
        self.logits = nn.Parameter((item_counts(dataset, data.dataset.item_num) + 1.0).log(), requires_grad=False)
        self.register_buffer("repeat_bias", torch.zeros(()))
        self.repeat_bias: Tensor
        fit_repeat_bias(self, data.valid, repeat_share(data.valid))

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """Scores of all items after the sequences of a batch, ``[B, I]``."""
        seen = SeenItems(deduplicated(interaction[self.ITEM_SEQ]), float(self.repeat_bias))
        return seen.add_to(self.logits.repeat(len(seen.items), 1))
