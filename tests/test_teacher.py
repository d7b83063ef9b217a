"""The three backbones: what each is trained with, and teachers that older versions stored."""

from __future__ import annotations

import pytest
import torch
from recbole.config import Config
from recbole.utils import get_model

from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.config.stages import stage_config
from recbole_adarec.model.stored import load_model
from recbole_adarec.model.teachers.base import backbones
from recbole_adarec.storage.files import load_checkpoint, save_checkpoint
from recbole_adarec.storage.model_files import save_model
from recbole_adarec.storage.properties import backbone_defaults, model_defaults
from tests.conftest import make_config


def built(ml100k, backbone, **given):
    config = make_config("teacher", backbone=backbone, **given)
    return get_model("AdaRecTeacher")(config, ml100k.train._dataset).eval(), config


@pytest.mark.parametrize("backbone", backbones())
def test_a_backbone_is_trained_with_its_own_defaults_under_what_the_user_gives(backbone, monkeypatch):
    monkeypatch.setattr("sys.argv", ["test"])
    own = {**model_defaults("AdaRecTeacher"), "backbone": backbone, **backbone_defaults(backbone)}
    ours = stage_config(resolve_user_config("ml-100k", [], {"backbone": backbone}), "teacher")
    recbole = Config(model="AdaRecTeacher", dataset="ml-100k", config_dict={"backbone": backbone})
    for key in ("dropout_prob", "learning_rate", "epochs", "norm_first", "mask_ratio"):
        assert ours[key] == recbole[key] == own[key], key
    given = {"backbone": backbone, "dropout_prob": 0.07, "teacher_epochs": 5, "learning_rate": 0.1}
    config = stage_config(resolve_user_config("ml-100k", [], given), "teacher")
    assert (config["dropout_prob"], config["epochs"], config["learning_rate"]) == (0.07, 5, 0.1)
    resolve_user_config("ml-100k", [f"backbone/{backbone}.yaml"] if backbone != "NextItNet" else [])  # only known keys


def test_the_backbones_of_transformers_do_not_have_the_defaults_of_nextitnet():
    assert not backbone_defaults("NextItNet")
    common = model_defaults("AdaRecTeacher")
    for backbone in ("SASRec", "BERT4Rec"):
        own = backbone_defaults(backbone)
        assert own and all(common[key] != value for key, value in own.items())


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["SASRec", "BERT4Rec"])
def test_a_teacher_that_was_stored_before_norm_first_reads_as_it_was(ml100k, backbone, tmp_path):
    model, config = built(ml100k, backbone, norm_first=False)
    save_model(tmp_path / "new.pth", model, config)
    content = load_checkpoint(tmp_path / "new.pth")
    del content["config"]["norm_first"]
    assert not any("last_norm" in name for name in content["state_dict"])
    save_checkpoint(tmp_path / "old.pth", content)
    stored = load_model(tmp_path / "old.pth", expected="AdaRecTeacher")
    sequence = torch.randint(1, 1000, (3, 10))
    assert torch.equal(stored.encode(sequence).output, model.encode(sequence).output)


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["SASRec", "BERT4Rec"])
def test_a_layer_that_is_normalised_first_adds_to_what_enters_it(ml100k, backbone):
    """Silenced layers are the identity, up to the last LayerNorm; without the key each normalises what it gets."""
    sequence = torch.randint(1, 1000, (3, 10))
    for norm_first in (True, False):
        model, _ = built(ml100k, backbone, norm_first=norm_first)
        for layer in model.layers:
            for silenced in (layer.self_attn.out_proj, layer.linear2):
                silenced.weight.zero_()
                silenced.bias.zero_()
        model.norm.weight.mul_(3)
        encoding = model.encode(sequence)
        for hidden in encoding.layers:
            assert torch.equal(hidden, encoding.embedding) == norm_first
        spread = encoding.output.std(-1, unbiased=False)
        torch.testing.assert_close(spread, torch.ones_like(spread), rtol=1e-3, atol=1e-3)
