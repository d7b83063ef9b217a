"""Default epochs: fewer on large data, and never over what the user gave."""

import pytest

from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.config.run_config import RunConfig
from recbole_adarec.runs import epochs
from recbole_adarec.runs.pipeline import Run
from recbole_adarec.trainer.base import StageTrainer
from tests.helpers import SMALL, WITH_CHOICE


@pytest.mark.parametrize(
    ("targets", "expected"), [(500, 8), (97_000, 8), (131_000, 11), (280_000, 24), (1_000_000, 4), (20_000_000, 2)]
)
def test_teachers(targets, expected):
    assert epochs.teacher_epochs(targets) == expected


@pytest.mark.parametrize(
    ("of_one", "targets", "expected"),
    [(8, 97_000, (1, 1.0)), (3, 97_000, (1, 1.0)), (24, 280_000, (3, 1.0)), (4, 10**6, (1, 0.5)), (2, 10**7, (1, 0.25)),
     (1, 10**7, (1, 1.0))],
)  # fmt: skip
def test_the_trial_of_several_teachers_is_a_part_of_an_epoch_only_on_large_data(of_one, targets, expected):
    assert epochs.trial_training(of_one, targets) == expected


@pytest.mark.parametrize(
    ("targets", "of_one", "members"), [(500, 8, 3), (97_000, 8, 3), (131_000, 11, 5), (280_000, 24, 4), (10**6, 5, 3)]
)
def test_members(targets, of_one, members):
    assert epochs.mean_members(targets, of_one) == members


@pytest.mark.parametrize(("targets", "expected"), [(97_000, False), (131_000, True), (279_000, True), (10**6, False)])
def test_second_seeds(targets, expected):
    assert epochs.has_second_seeds(targets) == expected


def test_a_stage_of_more_data_is_not_trained_on_more_of_it():
    targets = [10**4, 10**5, 3 * 10**5, 10**6, 10**7, 10**8]
    trained = [epochs.stage_epochs(24, count) for count in targets]
    assert trained == sorted(trained, reverse=True)
    assert trained[0] == 24 and trained[-1] == 1
    assert all(number == 1 or number * count <= 24 * 300_000 for number, count in zip(trained, targets, strict=True))


@pytest.mark.parametrize(
    ("targets", "expected"), [(50_000, (6, 1.0)), (200_000, (3, 1.0)), (700_000, (1, 6 / 7)), (6_000_000, (1, 0.1))]
)
def test_architectures_are_compared_after_as_many_targets(targets, expected):
    assert epochs.candidate_training(6, targets) == pytest.approx(expected)


def test_the_choice_on_large_data_trains_a_part_of_it_and_the_student_all(tiny, monkeypatch):
    monkeypatch.setattr(epochs, "_CANDIDATE_TARGETS", 20)
    trained, windows = [], StageTrainer.windows

    def recorded(self, train_data):
        index = windows(self, train_data)
        assert len(index.unique()) == len(index) > 0
        trained.append((self.window_share, len(index) / len(train_data._dataset), index))
        return index

    monkeypatch.setattr(StageTrainer, "windows", recorded)
    values = {**WITH_CHOICE, "data_path": str(tiny), "run_dir": "run"}
    Run(RunConfig(resolve_user_config("tiny", None, values))).train()
    parts = [(share, index) for share, count, index in trained if share < 1 and count < 1]
    assert parts and len(trained) > len(parts)
    first = dict(reversed(parts))
    assert all(index.equal(first[share]) for share, index in parts), "all candidates have the same windows"
    assert trained[-1][:2] == (1, 1)


@pytest.mark.parametrize("given", [{}, {"epochs": 3}, {"student_epochs": 3}])
def test_a_run_on_large_data_has_fewer_epochs_unless_they_are_given(tiny, monkeypatch, given):
    monkeypatch.setattr(epochs, "_LARGE", 1)
    values = {key: value for key, value in SMALL.items() if not key.endswith("epochs")}
    values |= {"data_path": str(tiny), "backbone": "SASRec", "run_dir": "run"} | given
    run = Run(RunConfig(resolve_user_config("tiny", None, values)))
    trained = {stage: run.config.stage(stage)["epochs"] for stage in ("teacher", "search", "student")}
    expected = {"teacher": 1, "search": 1, "student": 1}
    if "epochs" in given:
        expected = dict.fromkeys(expected, 3)
    elif given:
        expected["student"] = 3
    assert trained == expected
