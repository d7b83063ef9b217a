"""The state after one sequence, for which a student computes no position that it does not need."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.utils import get_model

from recbole_adarec.model.search_space.architecture import CELL_FORMS, Architecture
from recbole_adarec.model.search_space.last_positions import last_outputs, wanted_positions
from recbole_adarec.model.search_space.operations import OPERATIONS
from tests.helpers import make_config

NAMES = list(OPERATIONS)


def built(ml100k, architecture):
    config = make_config("student", architecture=architecture.to_dict())
    student = get_model("AdaRecStudent")(config, ml100k.train._dataset).eval()
    with torch.no_grad():
        for parameter in student.cells.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        student.item_table.embedding.weight.mul_(20)
    return student


@settings(max_examples=60, deadline=None)
@given(
    cells=st.lists(st.lists(st.sampled_from(NAMES), min_size=3, max_size=3), min_size=1, max_size=3),
    form=st.sampled_from(CELL_FORMS),
    repeats=st.integers(1, 2),
    length=st.integers(1, 30),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_it_is_that_of_the_whole_encoding(ml100k, cells, form, repeats, length, seed):
    torch.manual_seed(seed)
    student = built(ml100k, Architecture(12, tuple(map(tuple, cells)), form, repeats))
    sequence = torch.zeros(1, 30, dtype=torch.long)
    sequence[0, :length] = torch.randint(1, 1000, (length,))
    actual = student.last_state(sequence, torch.tensor([length]))
    torch.testing.assert_close(actual, student.encode(sequence).output[:, length - 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_window_of_an_operation_is_all_that_its_output_depends_on(name):
    operation, x = OPERATIONS[name].build(8).eval(), torch.randn(1, 40, 8)
    whole = operation(x)
    for wanted in (1, 3, 39, 40, 50):
        torch.testing.assert_close(last_outputs(operation, x, wanted), whole[:, -wanted:], rtol=1e-4, atol=1e-5)


def test_cells_of_short_windows_need_few_positions(ml100k):
    cells = (("filter", "none", "feed_forward"), ("sep_conv_5", "none", "none"))
    student = built(ml100k, Architecture(12, cells, "residual", 2))
    assert [wanted.of_output for wanted in wanted_positions(student.cells)] == [17, 13, 5, 1]
    attending = built(ml100k, Architecture(12, (("attention", "none", "none"), *cells[1:]), "residual", 1))
    assert [wanted.of_output for wanted in wanted_positions(attending.cells)] == [5, 1]
    assert wanted_positions(attending.cells)[0].of_edges[0] == 5
