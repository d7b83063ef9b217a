"""The mean of teachers: one factor model, whose logits are the weighted sum of its members' logits."""

from __future__ import annotations

import pytest
import torch
from recbole.utils import get_model

from recbole_adarec.errors import AdaRecError
from recbole_adarec.evaluation.per_user import unserved_prior
from recbole_adarec.evaluation.profile import count_parameters
from recbole_adarec.model.stored import load_model
from recbole_adarec.model.teachers.base import AdaRecTeacher, backbones
from recbole_adarec.model.teachers.mean import TeacherMean
from recbole_adarec.storage.files import plain
from recbole_adarec.storage.model_files import save_model
from tests.helpers import make_config, with_random_weights

WEIGHTS = {"NextItNet": 0.4, "SASRec": 0.7}


def build_mean(data, weights=WEIGHTS, **values):
    """A mean with random weights, and its configuration."""
    small = {"n_layers": 2, "block_num": 1, "inner_size": 16, **values}
    sizes = dict(zip(weights, (16, 24, 32), strict=False))
    members = [
        {"config": plain(make_config("teacher", backbone=name, hidden_size=sizes[name], **small).final_config_dict),
         "weight": weight}
        for name, weight in weights.items()
    ]  # fmt: skip
    config = make_config("teacher")
    config["members"] = members
    mean = get_model("AdaRecTeacher")(config, data.train._dataset)
    for number, member in enumerate(mean.members):
        with_random_weights(member)
        member.repeat_bias.fill_(-1.0 - number)
    mean.eval().weigh()
    return mean, config


@pytest.mark.parametrize("normalized", [False, True])
@torch.no_grad()
def test_its_logits_are_the_weighted_sum_of_its_members_logits(ml100k, normalized):
    mean, _ = build_mean(ml100k, normalize_items=normalized)
    assert isinstance(mean, TeacherMean)
    rows = ml100k.test._dataset[torch.arange(20)]
    expected = sum(
        weight * (member.full_sort_predict(rows) + unserved_prior(member))
        for weight, member in zip(WEIGHTS.values(), mean.members, strict=True)
    )
    actual = mean.full_sort_predict(rows) + unserved_prior(mean)
    torch.testing.assert_close(actual[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-3)
    items = rows["item_id"]
    torch.testing.assert_close(mean.predict(rows), mean.full_sort_predict(rows).gather(1, items[:, None])[:, 0])


@torch.no_grad()
def test_a_stored_mean_scores_the_same(ml100k, tmp_path):
    mean, config = build_mean(ml100k)
    save_model(tmp_path / "teacher.pth", mean, config)
    stored = load_model(tmp_path / "teacher.pth", expected="AdaRecTeacher")
    rows = ml100k.test._dataset[torch.arange(20)]
    assert torch.equal(stored.full_sort_predict(rows), mean.full_sort_predict(rows))
    assert count_parameters(stored) == count_parameters(mean)
    parts = [count_parameters(member) for member in mean.members]
    assert count_parameters(mean) == {key: sum(part[key] for part in parts) for key in parts[0]}


@torch.no_grad()
def test_it_teaches_with_the_layers_of_all_members(ml100k):
    mean, _ = build_mean(ml100k)
    batch = ml100k.train._dataset[torch.arange(8)]
    encoding, mask = mean.distillation_targets_in(batch)
    assert mean.layer_shapes == tuple((member.distilled_layers, member.hidden_size) for member in mean.members)
    assert len(encoding.layers) == mean.distilled_layers == sum(member.distilled_layers for member in mean.members)
    assert torch.equal(mask, batch[mean.ITEM_SEQ] != 0)
    scores = encoding.output @ mean.item_table.items.T
    ends = batch[mean.ITEM_SEQ_LEN].cumsum(0) - 1
    direct = mean.item_table.scores(mean.states_of(batch)) - mean.item_table.prior
    torch.testing.assert_close(scores[ends], direct, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_with_a_member_that_is_not_causal_it_teaches_where_that_one_does(ml100k):
    mean, _ = build_mean(ml100k, {"NextItNet": 0.5, "BERT4Rec": 0.5}, taught_positions=3)
    batch = ml100k.train._dataset[torch.arange(8)]
    encoding, mask = mean.distillation_targets_in(batch)
    _, expected = mean.members[1].distillation_targets_in(batch)
    assert torch.equal(mask, expected) and len(encoding.output) == int(mask.sum())
    causal, everywhere = mean.members[0].distillation_targets_in(batch)
    assert torch.equal(encoding.layers[0], causal.layers[0][mask[everywhere]])


def test_a_weight_that_is_not_above_0_is_refused(ml100k):
    with pytest.raises(AdaRecError, match="every weight of a mean is above 0"):
        build_mean(ml100k, {"NextItNet": 0.5, "SASRec": -0.1})


def test_no_backbone_has_the_name_of_a_mean():
    assert "mean" not in backbones() and issubclass(TeacherMean, AdaRecTeacher)
