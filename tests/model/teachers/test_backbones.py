"""The three backbones: their training defaults, teachers stored by older versions, and backbones of the user."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.config import Config
from recbole.utils import get_model
from torch import nn

from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.config.stages import stage_config
from recbole_adarec.data.loading import load_data
from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.base import Encoding
from recbole_adarec.model.item_table.build import full_table
from recbole_adarec.model.layers import CausalConv
from recbole_adarec.model.search_space.operations import OPERATIONS, check_operations, operation
from recbole_adarec.model.stored import load_model
from recbole_adarec.model.teachers import base
from recbole_adarec.model.teachers.adapters import TEACHER_ADAPTERS, TeacherAdapter, teacher_adapter
from recbole_adarec.model.teachers.base import TEACHERS, AdaRecTeacher, backbones, prefix_ends, teacher
from recbole_adarec.storage.files import load_checkpoint, save_checkpoint
from recbole_adarec.storage.model_files import save_model
from recbole_adarec.storage.properties import backbone_defaults, model_defaults
from tests.helpers import make_config


def build_teacher(ml100k, backbone, **overrides):
    config = make_config("teacher", backbone=backbone, **overrides)
    return get_model("AdaRecTeacher")(config, ml100k.train._dataset).eval(), config


@pytest.mark.parametrize("backbone", backbones())
def test_values_of_the_user_win_over_the_defaults_of_a_backbone(backbone, monkeypatch):
    monkeypatch.setattr("sys.argv", ["test"])
    expected = {**model_defaults("AdaRecTeacher"), "backbone": backbone, **backbone_defaults(backbone)}
    adarec = stage_config(resolve_user_config("ml-100k", [], {"backbone": backbone}), "teacher")
    recbole = Config(model="AdaRecTeacher", dataset="ml-100k", config_dict={"backbone": backbone})
    for key in ("dropout_prob", "learning_rate", "epochs", "norm_first", "mask_ratio"):
        assert adarec[key] == recbole[key] == expected[key], key
    overrides = {"backbone": backbone, "dropout_prob": 0.07, "teacher_epochs": 5, "learning_rate": 0.1}
    config = stage_config(resolve_user_config("ml-100k", [], overrides), "teacher")
    assert (config["dropout_prob"], config["epochs"], config["learning_rate"]) == (0.07, 5, 0.1)
    resolve_user_config("ml-100k", [f"backbone/{backbone}.yaml"] if backbone != "NextItNet" else [])  # only known keys


def test_transformer_backbones_have_other_defaults_than_nextitnet():
    assert not backbone_defaults("NextItNet")
    common = model_defaults("AdaRecTeacher")
    for backbone in ("SASRec", "BERT4Rec"):
        defaults = backbone_defaults(backbone)
        assert defaults and all(common[key] != value for key, value in defaults.items())


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["SASRec", "BERT4Rec"])
def test_a_teacher_stored_before_the_key_norm_first_computes_the_same(ml100k, backbone, tmp_path):
    model, config = build_teacher(ml100k, backbone, norm_first=False)
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
def test_a_pre_norm_layer_adds_to_its_input(ml100k, backbone):
    """Layers with zero weights are the identity, up to the last LayerNorm; post-norm layers normalise their input."""
    sequence = torch.randint(1, 1000, (3, 10))
    for norm_first in (True, False):
        model, _ = build_teacher(ml100k, backbone, norm_first=norm_first)
        for layer in model.layers:
            for linear in (layer.self_attn.out_proj, layer.linear2):
                linear.weight.zero_()
                linear.bias.zero_()
        model.norm.weight.mul_(3)
        encoding = model.encode(sequence)
        for hidden in encoding.layers:
            assert torch.equal(hidden, encoding.embedding) == norm_first
        spread = encoding.output.std(-1, unbiased=False)
        torch.testing.assert_close(spread, torch.ones_like(spread), rtol=1e-3, atol=1e-3)


def run_examples(documented: Any, **names: Any) -> dict[str, Any]:
    """Run the examples of a docstring, and return all names that are defined then."""
    for example in doctest.DocTestParser().get_examples(documented.__doc__):
        exec(example.source, names)
    return names


@torch.no_grad()
def test_the_documented_backbone_is_a_causal_teacher(ml100k, monkeypatch):
    monkeypatch.setattr(base, "TEACHERS", dict(TEACHERS))
    given = {"teacher": teacher, "AdaRecTeacher": AdaRecTeacher, "Encoding": Encoding}
    run_examples(AdaRecTeacher, full_table=full_table, nn=nn, **given)
    assert backbones()[-1] == "GRU"
    config = make_config("teacher", n_layers=4, distilled_layers=2)
    config["backbone"] = "GRU"
    model = AdaRecTeacher(config, ml100k.train._dataset).eval()
    sequence = torch.randint(1, 1000, (3, 10))
    encoding, mask = model.distillation_targets(sequence)
    assert mask.all() and len(encoding.layers) == 2 and encoding.output.shape == (30, model.hidden_size)
    prefix = model.encode(sequence[:, :4])
    torch.testing.assert_close(prefix.output, model.encode(sequence).output[:, :4])
    assert model.full_sort_predict(ml100k.test._dataset[torch.arange(5)]).shape == (5, model.n_items)


def test_the_documented_adapter_and_operation_are_registered():
    before = dict(TEACHER_ADAPTERS), dict(OPERATIONS)
    try:
        run_examples(TeacherAdapter, teacher_adapter=teacher_adapter, TeacherAdapter=TeacherAdapter)
        run_examples(operation, operation=operation, CausalConv=CausalConv)
        assert TEACHER_ADAPTERS["GCSAN"].layers == "self_attention.layer.*"
        check_operations(["conv_9"])
        assert OPERATIONS["conv_9"].parameters(8) == OPERATIONS["conv_9"].macs(8) == 9 * 8 * 8
    finally:
        for table, content in zip((TEACHER_ADAPTERS, OPERATIONS), before, strict=True):
            table.clear()
            table.update(content)


def test_a_backbone_that_cannot_be_registered_is_refused(monkeypatch):
    monkeypatch.setattr(base, "TEACHERS", dict(TEACHERS))
    with pytest.raises(AdaRecError, match="'X'.* Linear is no subclass of AdaRecTeacher"):
        teacher("X")(nn.Linear)
    with pytest.raises(AdaRecError, match="'SASRec' is one of ours"):
        teacher("SASRec")(type("Another", (AdaRecTeacher,), {}))
    first, second = (type(name, (AdaRecTeacher,), {}) for name in ("First", "Second"))
    assert teacher("Y")(first) and teacher("Y")(second) is base.teacher_class("Y")  # as when a notebook cell runs again
    with pytest.raises(AdaRecError, match="unknown backbone 'Z'; known are BERT4Rec, .* Y; .*--plugins="):
        base.teacher_class("Z")


def test_prefix_ends_are_spread_evenly_and_include_the_last_item():
    sequence = torch.tensor([[5, 6, 7, 8, 9, 1, 2, 3], [5, 6, 7, 0, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0, 0, 0]])
    positions = [row.nonzero()[:, 0].tolist() for row in prefix_ends(sequence, 4)]
    assert positions == [[1, 3, 5, 7], [0, 1, 2], [0]]


def test_a_model_that_sees_all_items_at_once_needs_positions(ml100k):
    with pytest.raises(AdaRecError, match="position_embeddings: BERT4Rec sees all items at once"):
        get_model("AdaRecTeacher")(
            make_config("teacher", backbone="BERT4Rec", position_embeddings=False), ml100k.train._dataset
        )


@pytest.mark.parametrize("given", [True, False])
def test_positions_are_embedded_as_the_user_says(tiny, given):
    config = make_config("teacher", "tiny", backbone="CausalBSARec", data_path=str(tiny), position_embeddings=given)
    model = get_model("AdaRecTeacher")(config, load_data(config).train._dataset).eval()
    assert (model.positions is not None) == given
    save_model(Path("teacher.pth"), model, config)
    assert (load_model("teacher.pth", expected="AdaRecTeacher").positions is not None) == given
