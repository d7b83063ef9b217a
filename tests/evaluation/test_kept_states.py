"""States that are kept: computed once, for the scores that they had without."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from recbole.utils import get_model

from recbole_adarec.evaluation import kept_states
from recbole_adarec.evaluation.kept_states import KeptStates
from tests.helpers import make_config, with_random_weights


@pytest.fixture
def student(ml100k):
    return with_random_weights(get_model("AdaRecStudent")(make_config("student"), ml100k.train._dataset)).eval()


def batches(ml100k):
    return [ml100k.test._dataset[torch.arange(start, start + 7)] for start in (0, 7, 14)]


@torch.no_grad()
def scores_and_passes(model, rows) -> tuple[list[torch.Tensor], int]:
    with patch.object(model, "last_state", wraps=model.last_state) as passes:
        return [model.full_sort_predict(batch) for batch in rows], passes.call_count


def test_a_batch_is_computed_once_and_scored_anew(ml100k, student):
    rows = batches(ml100k)
    kept = KeptStates()
    with kept.of({"student": student}):
        first, passes = scores_and_passes(student, rows)
        assert passes == 3
        student.repeat_bias.fill_(-5.0)
        with kept.of({"student": student}):  # of an evaluation inside another
            second, passes = scores_and_passes(student, rows[::-1])
        assert passes == 0
        assert scores_and_passes(student, rows)[1] == 0
    expected, passes = scores_and_passes(student, rows)
    assert passes == 3
    assert not torch.equal(first[0], expected[0])
    for ours, plain in zip(second[::-1], expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=0)


def test_models_of_one_name_share_and_others_do_not(ml100k, student):
    rows, kept = batches(ml100k), KeptStates()
    for name, expected in (("a", 3), ("b", 3), ("a", 0)):
        with kept.of({name: student}):
            assert scores_and_passes(student, rows)[1] == expected


def test_what_has_no_room_is_computed_each_time(ml100k, student, monkeypatch):
    monkeypatch.setattr(kept_states, "_MOST_BYTES", 7 * student.hidden_size * 4)
    rows, kept = batches(ml100k), KeptStates()
    with kept.of({"": student}):
        assert scores_and_passes(student, rows)[1] == 3
        assert scores_and_passes(student, rows)[1] == 2
