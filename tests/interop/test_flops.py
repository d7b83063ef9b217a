"""RecBole's ``get_flops`` of our models is what they multiply."""

from __future__ import annotations

from logging import getLogger

import pytest
import torch
from recbole.data import create_dataset, data_preparation
from recbole.data.transform import construct_transform
from recbole.utils import get_flops, get_model

from recbole_adarec.evaluation.profile import count_macs

PLAIN = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "cost_budget": None, "hidden_size": 16}
OURS = [
    ("AdaRecStudent", {}),
    ("AdaRecStudent", {"item_table": "adaptive"}),
    ("AdaRecSupernet", {}),
    ("AdaRecTeacher", {"backbone": "NextItNet"}),
    ("AdaRecTeacher", {"backbone": "SASRec"}),
    ("AdaRecTeacher", {"backbone": "BERT4Rec"}),
    ("CpRec", {}),
]


def flops_and_macs(config):
    """What ``get_flops`` says, and multiply-accumulates of scoring all items after a history of full length."""
    dataset = create_dataset(config)
    train, _, test = data_preparation(config, dataset)
    model = get_model(config["model"])(config, train._dataset)
    before = {name for name, _ in model.named_buffers()}
    flops = get_flops(model, dataset, config["device"], getLogger(), construct_transform(config))
    assert {name for name, _ in model.named_buffers()} == before
    length = config["MAX_ITEM_LIST_LENGTH"]
    longest = next(iter(test))[0][:1].interaction
    longest |= {"item_id_list": torch.ones(1, length, dtype=torch.long), "item_length": torch.tensor([length])}
    return flops, count_macs(model.eval(), longest), model


@pytest.mark.parametrize(("name", "values"), OURS)
def test_our_models_are_counted(name, values, recbole_config):
    flops, macs, model = flops_and_macs(recbole_config(name, **PLAIN, **values))
    if values.get("item_table") == "adaptive":
        assert 0.5 * macs < flops < 1.1 * macs  # one item more is embedded
    else:  # all items against one
        assert flops == macs - (model.n_items - 1) * model.hidden_size


def test_as_recbole_counts_its_own(recbole_config):
    """SASRec without attention's own products, with embeddings and norms: still the same figure within a half."""
    flops, macs, _ = flops_and_macs(recbole_config("SASRec", train_neg_sample_args=None))
    assert 0.5 < flops / macs < 2


def test_an_encoder_of_the_users_own_is_counted():
    from thop.profile import register_hooks

    from recbole_adarec.model.base import SequenceRecommender

    class Mine(SequenceRecommender):
        pass

    class RanksItsOwnWay(SequenceRecommender):
        def predict(self, interaction):
            return torch.zeros(1)

    assert Mine in register_hooks and RanksItsOwnWay not in register_hooks
