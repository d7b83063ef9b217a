"""Tracing by torch.export and torch.compile, whose tensors hold no values, does not change eager mode afterwards."""

from __future__ import annotations

import pytest
import torch
from recbole.utils import get_model
from torch import nn
from torch.export import Dim

from recbole_adarec.model.search_space.modules import Attention, _cached_attention_bias
from recbole_adarec.model.search_space.operations import OPERATIONS
from tests.helpers import make_config


@pytest.fixture(autouse=True)
def empty_cache():
    """Each test is the first to use Attention in its process."""
    _cached_attention_bias.cache_clear()
    yield
    _cached_attention_bias.cache_clear()


@torch.no_grad()
@pytest.mark.parametrize("first", ["eager", "traced"])
@pytest.mark.parametrize("method", ["export", "compile"])
def test_tracing_attention_does_not_change_eager_mode(method, first):
    module, x = Attention(8).eval(), torch.rand(1, 12, 8)
    expected = module(x)
    if first == "traced":
        _cached_attention_bias.cache_clear()
    if method == "export":
        traced = torch.export.export(module, (x,), strict=False).module()
    else:
        traced = torch.compile(module, backend="eager")
    torch.testing.assert_close(traced(x), expected)
    result = module(x)
    assert type(result) is torch.Tensor and torch.equal(result, expected)
    assert all(type(tensor) is torch.Tensor for tensor in _cached_attention_bias(12, x.device))


@torch.no_grad()
def test_attention_is_exported_for_every_length():
    module = Attention(8).eval()
    program = torch.export.export(
        module, (torch.rand(2, 12, 8),), strict=False, dynamic_shapes=({1: Dim("length", min=2, max=50)},)
    )
    for length in (5, 50):
        x = torch.rand(2, length, 8)
        torch.testing.assert_close(program.module()(x), module(x))


def test_attention_is_trained_after_an_export():
    module, x = Attention(8), torch.rand(2, 12, 8)
    torch.export.export(module, (x,), strict=False)
    module(x).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


class Encoder(nn.Module):
    """The output of a student's encoder, as a module that can be exported."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, item_seq: torch.Tensor) -> torch.Tensor:
        return self.student.encode(item_seq).output


@torch.no_grad()
def test_exporting_a_student_does_not_change_eager_mode(ml100k):
    names = [name for name in OPERATIONS if name != "none"]
    cells = [[[name], ["attention", "skip"]] for name in names]
    architecture = {"format": "recbole-adarec-architecture/1", "hidden_size": 16, "cells": cells}
    config = make_config("student", architecture=architecture)
    encoder = Encoder(get_model("AdaRecStudent")(config, ml100k.train._dataset)).eval()
    sequence = torch.randint(1, 1000, (1, 20))
    expected = encoder(sequence)
    _cached_attention_bias.cache_clear()
    program = torch.export.export(encoder, (sequence,), strict=False)
    result = encoder(sequence)
    assert type(result) is torch.Tensor and torch.equal(result, expected)
    torch.testing.assert_close(program.module()(sequence), expected)
