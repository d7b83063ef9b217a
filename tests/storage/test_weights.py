"""Weights in fewer bits: small errors, the same again and again, and files that give them back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.utils import get_model

from recbole_adarec import run_adarec
from recbole_adarec.config.schema import STAGES
from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.stored import load_model
from recbole_adarec.storage.files import load_checkpoint, save_checkpoint
from recbole_adarec.storage.model_files import FORMAT, FORMAT_3, save_model
from recbole_adarec.storage.weights import packed, stored_bytes, unpacked
from tests.helpers import SMALL, make_config

ARCHITECTURE = {
    "format": "recbole-adarec-architecture/2", "hidden_size": 32, "cell_form": "residual", "repeats": 2,
    "cells": [[["multi_head_attention"], ["filter", "none"]], [["feed_forward"], ["none", "skip"]]],
}  # fmt: skip


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 9), st.integers(1, 40), st.floats(-30, 4), st.sampled_from(["float16", "int8"]))
def test_rounding_is_close_and_done_once(rows, columns, exponent, kind):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * 41 + columns)) * 2.0**exponent
    weight[0] = 0
    state = {"a.weight": weight, "a.again": weight, "b.bias": weight[:, 0].clone(), "steps": torch.arange(rows)}
    file = packed(state, kind)
    result = unpacked(file)
    assert result.keys() == state.keys() and torch.equal(result["steps"], state["steps"])
    assert torch.equal(result["a.weight"], result["a.again"])
    step = weight.abs().amax(1, keepdim=True) / 127 if kind == "int8" and columns >= 16 else weight.abs() / 2**10
    assert ((result["a.weight"] - weight).abs() <= 0.51 * step + 2.0**-25).all()
    again = packed(result, kind)
    assert all(torch.equal(again[name], tensor) for name, tensor in file.items())
    if kind == "int8" and columns >= 16:
        assert stored_bytes(file) == rows * columns + 2 * rows + 2 * rows + 8 * rows


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_a_file_gives_back_what_was_rounded(ml100k, tmp_path, kind):
    config = make_config("student", architecture=ARCHITECTURE)
    model = get_model("AdaRecStudent")(config, ml100k.train._dataset).eval()
    model.load_state_dict(unpacked(packed(model.state_dict(), kind)))
    save_model(tmp_path / "student.pth", model, config, kind)
    loaded = load_model(tmp_path / "student.pth", expected="AdaRecStudent")
    sequences, lengths = torch.randint(1, 1000, (4, 9)), torch.tensor([9, 9, 3, 1])
    assert torch.equal(model.scores(sequences, lengths), loaded.scores(sequences, lengths))
    content = load_checkpoint(tmp_path / "student.pth")
    assert content["format"] == (FORMAT if kind == "float32" else FORMAT_3)
    size = stored_bytes(content["state_dict"])
    parameters = sum(p.numel() for p in model.parameters())
    assert size < {"float32": 4.2, "float16": 2.2, "int8": 1.2}[kind] * parameters


def test_a_matrix_without_its_scales_is_refused(ml100k, tmp_path):
    config = make_config("student", architecture=ARCHITECTURE)
    save_model(tmp_path / "student.pth", get_model("AdaRecStudent")(config, ml100k.train._dataset), config, "int8")
    content = load_checkpoint(tmp_path / "student.pth")
    del content["state_dict"]["item_table.embedding.weight.scale"]
    save_checkpoint(tmp_path / "student.pth", content)
    with pytest.raises(AdaRecError, match="the weights of this AdaRecStudent do not fit its configuration"):
        load_model(tmp_path / "student.pth", expected="AdaRecStudent")


def test_teachers_are_not_rounded(tiny, tmp_path):
    values = {**SMALL, "data_path": str(tiny), "stored_weights": "float16"}
    report = run_adarec("tiny", config_dict=values, run_dir=tmp_path / "run")
    formats = {stage: load_checkpoint(tmp_path / "run" / f"{stage}.pth")["format"] for stage in STAGES}
    assert formats == {"teacher": FORMAT, "search": FORMAT, "student": FORMAT_3}
    teacher = load_checkpoint(tmp_path / "run" / "teacher.pth")["state_dict"]
    assert not all(torch.equal(t, t.half().float()) for t in teacher.values() if t.is_floating_point())
    for model in report["models"]:
        state = load_checkpoint(tmp_path / "run" / f"{model['name']}.pth")["state_dict"]
        assert model["weights_bytes"] == stored_bytes(state)
