"""No output depends on a later item, or on the amount of padding."""

from __future__ import annotations

import pytest
import torch
from recbole.utils import get_model

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.search_space.operations import OPERATIONS, Operation, check_operations, is_causal
from recbole_adarec.model.teachers.base import backbones
from tests.helpers import make_config, with_random_weights

CAUSAL = [name for name in backbones() if name != "BERT4Rec"]


def teacher(ml100k, backbone, **values):
    config = make_config("teacher", backbone=backbone, teacher_n_layers=2, teacher_distilled_layers=2, **values)
    model = get_model("AdaRecTeacher")(config, ml100k.train._dataset)
    return with_random_weights(model)


def supernet(ml100k):
    return with_random_weights(get_model("AdaRecSupernet")(make_config("search"), ml100k.train._dataset))


def student(ml100k, **form):
    operations = list(OPERATIONS)
    node = [operations[:1], operations[1:3], operations[3:6]]
    architecture = {
        "format": f"recbole-adarec-architecture/{2 if form else 1}",
        "hidden_size": 32,
        **form,
        "cells": [node, [operations[6:7]] + node[1:]],
    }
    config = make_config("student", architecture=architecture)
    return with_random_weights(get_model("AdaRecStudent")(config, ml100k.train._dataset))


def tensors(encoding):
    return [encoding.embedding, *encoding.layers, encoding.output]


def models(ml100k):
    teachers = {name: teacher(ml100k, name) for name in CAUSAL}
    teachers["filters alone"] = teacher(ml100k, "CausalBSARec", filter_weight=1.0, norm_first=False)
    teachers["with positions"] = teacher(ml100k, "CausalBSARec", position_embeddings=True)
    teachers["without positions"] = teacher(ml100k, "SASRec", position_embeddings=False)
    students = {"student": student(ml100k), "residual student": student(ml100k, cell_form="residual")}
    return teachers | students | {"supernet": supernet(ml100k)}


@pytest.mark.parametrize("name", OPERATIONS)
def test_one_sequence_gives_the_same_alone_and_in_a_batch(name):
    operation, x = OPERATIONS[name].build(8), torch.rand(3, 20, 8)
    with torch.inference_mode():  # first, so that training uses what inference cached
        alone = torch.cat([operation(row) for row in x.split(1)])
    together = operation(x.requires_grad_())
    torch.testing.assert_close(alone.clone(), together.detach())
    if together.requires_grad:
        together.sum().backward()


@torch.no_grad()
def test_no_state_depends_on_later_items(ml100k):
    sequence = torch.randint(1, 1000, (3, 30))
    for name, model in models(ml100k).items():
        before = tensors(model.encode(sequence))
        for cut in (1, 7, 29):
            changed = sequence.clone()
            changed[:, cut:] = torch.randint(1, 1000, (3, 30 - cut))
            after = tensors(model.encode(changed))
            for x, y in zip(before, after, strict=True):
                assert torch.equal(x[:, :cut], y[:, :cut]), (name, cut)
            assert not torch.equal(before[-1][:, cut:], after[-1][:, cut:])


@torch.no_grad()
@pytest.mark.parametrize("name", [*CAUSAL, "BERT4Rec", "supernet", "student"])
def test_no_score_depends_on_padding(ml100k, name):
    model = teacher(ml100k, name) if name in (*CAUSAL, "BERT4Rec") else models(ml100k)[name]
    sequence, lengths = torch.randint(1, 1000, (4, 12)), torch.tensor([12, 12, 12, 12])
    short = model.item_table.scores(model(sequence, lengths))
    padded = model.item_table.scores(model(torch.nn.functional.pad(sequence, (0, 38)), lengths))
    alone = model.item_table.scores(model(sequence[:1], lengths[:1]))
    torch.testing.assert_close(short, padded, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(short[:1], alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_sequences_score_the_same_together_and_alone(ml100k):
    rows = ml100k.test._dataset[torch.arange(150)]
    for model in (*models(ml100k).values(), teacher(ml100k, "BERT4Rec")):
        together = model.full_sort_predict(rows)
        for k in (0, 77, 149):
            alone = model.full_sort_predict(rows[k : k + 1])
            torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_distillation_targets_of_bert4rec_do_not_depend_on_later_items(ml100k):
    """Although the model is bidirectional."""
    model = teacher(ml100k, "BERT4Rec")
    sequence = torch.randint(1, 1000, (3, 16))
    before, positions = model.distillation_targets(sequence)
    assert positions.sum(1).tolist() == [8, 8, 8] and positions[:, -1].all()
    changed = sequence.clone()
    changed[:, 10:] = torch.randint(1, 1000, (3, 6))
    after, _ = model.distillation_targets(changed)
    early = positions.nonzero()[:, 1] < 10
    torch.testing.assert_close(before.output[early], after.output[early], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before.output[~early], after.output[~early], rtol=1e-4, atol=1e-5)
    # A bidirectional state in the middle of its input does depend on later items.
    assert not torch.allclose(model.encode(sequence).output[:, :10], model.encode(changed).output[:, :10])


@torch.no_grad()
def test_last_state_of_bert4rec_is_its_last_distillation_target(ml100k):
    model = teacher(ml100k, "BERT4Rec")
    sequence, lengths = torch.randint(1, 1000, (3, 16)), torch.tensor([16, 5, 1])
    sequence = sequence * (torch.arange(16) < lengths[:, None])
    targets, positions = model.distillation_targets(sequence)
    row, column = positions.nonzero(as_tuple=True)
    torch.testing.assert_close(targets.output[column == lengths[row] - 1], model.last_state(sequence, lengths))


def test_every_operation_of_the_table_is_causal():
    for name, operation in OPERATIONS.items():
        assert is_causal(operation.build(4)), name


def test_an_operation_that_is_not_causal_is_refused_by_name(monkeypatch):
    class Both(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.avg_pool1d(x.transpose(1, 2), 3, 1, 1).transpose(1, 2)

    monkeypatch.setitem(OPERATIONS, "pool_both_sides", Operation(lambda size: Both(), lambda size: 0))
    with pytest.raises(AdaRecError, match="'pool_both_sides' is not causal"):
        check_operations(["skip", "pool_both_sides"])
