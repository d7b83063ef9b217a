"""The choice of an architecture: the smallest that is not worse than the best."""

from __future__ import annotations

import json

import pytest
import torch

from recbole_adarec.evaluation.significance import worse_p_value
from recbole_adarec.model.search_space.architecture import Architecture
from recbole_adarec.runs.choice import TrainedCandidate, choose_architecture

SMALL, MIDDLE, LARGE = (Architecture(size, (("skip",),)) for size in (16, 32, 64))


def train(behind):
    """Trainings in which each hidden size is behind the best by so much, give or take 1 for each user."""

    def trained(architecture, epochs):
        noise = torch.randn(400, generator=torch.Generator().manual_seed(architecture.hidden_size))
        noise -= noise.mean()
        return TrainedCandidate(noise - behind[architecture.hidden_size], 100 * architecture.hidden_size)

    return trained


@pytest.mark.parametrize(
    ("behind", "level", "chosen"),
    [
        ({16: 1.0, 32: 0.05, 64: 0.0}, 0.05, MIDDLE),
        ({16: 1.0, 32: 0.05, 64: 0.0}, 0.5, LARGE),
        ({16: 0.02, 32: 0.05, 64: 0.0}, 0.05, SMALL),
        ({16: 1.0, 32: 0.0, 64: 0.05}, 0.05, MIDDLE),
        ({16: 1.0, 32: 1.0, 64: 0.0}, 0.05, LARGE),
    ],
)
def test_the_smallest_that_is_not_worse_than_the_best(tmp_path, behind, level, chosen):
    path = tmp_path / "candidates.json"
    candidates = [LARGE, SMALL, MIDDLE]
    assert choose_architecture(candidates, train(behind), 1, 2, path, level) == chosen
    rows = json.loads(path.read_text())["candidates"]
    assert [row["weights_bytes"] for row in rows] == [6400, 1600, 3200]
    assert not (tmp_path / ".candidates.pth").exists()
    assert choose_architecture(candidates, None, 1, 2, path, level) == chosen, "a finished choice is read"


def test_a_choice_of_0_1_0_is_read_as_it_was(tmp_path):
    rows = [
        {**architecture.to_dict(), "valid_log_likelihood": -2.0, "final_log_likelihood": final}
        for architecture, final in ((SMALL, -1.9), (MIDDLE, -1.7), (LARGE, -1.8))
    ]
    content = {"format": "recbole-adarec-candidates/1", "seconds": 1.0, "candidates": rows}
    (tmp_path / "candidates.json").write_text(json.dumps(content))
    assert choose_architecture([SMALL, MIDDLE, LARGE], None, 1, 2, tmp_path / "candidates.json", 0.5) == MIDDLE


def test_the_p_value_says_which_is_lower():
    low, high = torch.randn(50), torch.randn(50) + 2
    assert worse_p_value(low, high) < 0.01 < 0.99 < worse_p_value(high, low)
    assert worse_p_value(low, low) == 1 and worse_p_value(low - 1, low) < 0.5 <= worse_p_value(low + 1, low)
