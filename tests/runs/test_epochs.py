"""Default epochs: fewer on large data, and never over what the user gave."""

import pytest

from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.config.run_config import RunConfig
from recbole_adarec.runs import epochs
from recbole_adarec.runs.pipeline import Run

from ..helpers import SMALL


@pytest.mark.parametrize(
    ("targets", "expected"), [(500, 8), (97_000, 8), (131_000, 11), (280_000, 24), (1_000_000, 8), (20_000_000, 1)]
)
def test_teachers(targets, expected):
    assert epochs.teacher_epochs(targets) == expected


@pytest.mark.parametrize(
    ("targets", "of_one", "members"), [(500, 8, 3), (97_000, 8, 3), (131_000, 11, 5), (280_000, 24, 4), (10**6, 8, 4)]
)
def test_members(targets, of_one, members):
    assert epochs.mean_members(targets, of_one) == members


@pytest.mark.parametrize("stage", ["teacher", "search", "student"])
def test_a_stage_of_more_data_is_not_trained_on_much_more_of_it(stage):
    targets = [10**4, 10**5, 3 * 10**5, 10**6, 10**7, 10**8]
    trained = [epochs.stage_epochs(stage, 24, count) for count in targets]
    assert trained == sorted(trained, reverse=True)
    assert trained[0] == 24 and trained[-1] == 1
    assert all(number == 1 or number * count <= 12_000_000 for number, count in zip(trained, targets, strict=True))


@pytest.mark.parametrize("given", [{}, {"epochs": 3}, {"student_epochs": 3}])
def test_a_run_on_large_data_has_fewer_epochs_unless_they_are_given(tiny, monkeypatch, given):
    monkeypatch.setattr(epochs, "_MOST_TARGETS", dict.fromkeys(epochs._MOST_TARGETS, 1))
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
