"""A checkpoint written under the patch opens with RecBole's own functions, and holds names that run nothing."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path

import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import ModelType, get_model, get_trainer, init_seed

from recbole_adarec import patch_recbole, recbole_patches, unpatch_recbole
from recbole_adarec.storage.recbole_checkpoint import read_checkpoint
from recbole_adarec.storage.recbole_writer import admitted_names

LOAD = """
import sys; sys.argv = sys.argv[:1]
{patch}
import torch
from recbole.config import Config
from recbole.quick_start import load_data_and_model
from recbole.utils import get_trainer
# numpy's old names, which RecBole sets when it makes a Config and not when it reads one.
Config.compatibility_settings(None)
config, model, dataset, train, valid, test = load_data_and_model("saved.pth")
assert type(config) is Config and config["device"] == torch.device("cpu")
trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
print(dict(trainer.evaluate(test, load_best_model=False)))
"""


@pytest.fixture
def trained(recbole_config, tmp_path):
    """RecBole's own flow under the patch: the trainer and its test results."""

    def train(name, **values):
        config = recbole_config(name, **values)
        init_seed(config["seed"], config["reproducibility"])
        train_data, valid_data, test_data = data_preparation(config, create_dataset(config))
        trainer = get_trainer(config["MODEL_TYPE"], name)(config, get_model(name)(config, train_data._dataset))
        trainer.saved_model_file = str(tmp_path / "saved.pth")
        trainer.fit(train_data, valid_data, verbose=False)
        return trainer, dict(trainer.evaluate(test_data, load_best_model=True)), test_data

    return train


def global_names(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("data.pkl"))
        operations = list(pickletools.genops(archive.read(pickled)))
    assert ("PROTO", 2) in {(operation.name, argument) for operation, argument, _ in operations}
    return {argument for operation, argument, _ in operations if "GLOBAL" in operation.name}


@pytest.mark.parametrize("patched", [True, False], ids=["under the patch", "without this package, before torch 2.6"])
def test_load_data_and_model_gives_the_same_results(patched, trained, python, tmp_path):
    pytest.importorskip("recbole.quick_start")
    with recbole_patches():
        _, result, _ = trained("SASRec", train_neg_sample_args=None, epochs=2)
    if patched:
        found = python(LOAD.format(patch="import recbole_adarec; recbole_adarec.patch_recbole()"))
    else:
        code = LOAD.format(patch="") + "\nassert 'recbole_adarec' not in sys.modules"
        found = python(code, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1", PYTHONPATH="")
    assert str(result) in found


def test_our_own_model_trains_under_stock_recbole_and_opens_with_the_patch(trained, python, tmp_path):
    """Without the patch; torch then refuses the file, and opens it once the names are admitted."""
    pytest.importorskip("recbole.quick_start")
    _, result, _ = trained(
        "AdaRecStudent", cost_budget=None, epochs=2, load_col={"inter": ["user_id", "item_id", "timestamp"]}
    )
    found = python(LOAD.format(patch="import recbole_adarec; recbole_adarec.patch_recbole()"))
    assert str(result) in found


def test_names_in_a_checkpoint_run_nothing(trained, tmp_path):
    with recbole_patches():
        trained("SASRecF", train_neg_sample_args=None)
    path = tmp_path / "saved.pth"
    enums = {"ModelType", "InputType", "EvaluatorType"}
    assert global_names(path) == {
        "recbole.config.configurator Config",
        *(f"recbole.utils.enum_type {name}" for name in enums),
        "torch device", "torch._utils _rebuild_tensor_v2", "torch FloatStorage", "collections OrderedDict",
    }  # fmt: skip
    with admitted_names():
        content = torch.load(path, weights_only=True)
    assert type(content["config"]) is Config and content["config"]["MODEL_TYPE"] is ModelType.SEQUENTIAL
    assert content["other_parameter"] == {}  # its module is among the weights
    assert any(name.startswith("feature_embed_layer.") for name in content["state_dict"])
    with pytest.raises(Exception, match="[Ww]eights"):
        torch.load(path, weights_only=True)
    ours = read_checkpoint(path)
    assert ours.model == "SASRecF" and ours.epochs == 1 and ours.config["hidden_size"] == 8
    assert ours.config["device"] == "cpu" and ours.config["MODEL_TYPE"] == "ModelType(2)"
    assert torch.equal(ours.state_dict["position_embedding.weight"], content["state_dict"]["position_embedding.weight"])


@pytest.mark.parametrize("name", ["SASRec", "GRU4RecF"])
def test_training_resumes(name, trained, recbole_config, tmp_path):
    patch_recbole()
    try:
        trainer, result, test_data = trained(name, train_neg_sample_args=None)
        model = get_model(name)(trainer.config, test_data._dataset)
        other = get_trainer(trainer.config["MODEL_TYPE"], name)(trainer.config, model)
        other.resume_checkpoint(tmp_path / "saved.pth")
        assert other.start_epoch == 1 and dict(other.evaluate(test_data, load_best_model=False)) == result
    finally:
        unpatch_recbole()


def test_what_is_no_plain_value_is_left_to_recbole(trained, tmp_path):
    """EASE keeps scipy matrices: RecBole writes the file, a torch that trusts it reads it."""
    with recbole_patches(), pytest.raises(Exception, match="[Ww]eights"):
        trained("EASE")
    assert torch.load(tmp_path / "saved.pth", weights_only=False)["config"]["model"] == "EASE"


def test_values_of_a_configuration_come_back_in_their_types(trained, tmp_path):
    with recbole_patches():
        trainer, _, _ = trained("STAMP", train_neg_sample_args=None, topk=[10, 5])
    with admitted_names():
        stored = torch.load(tmp_path / "saved.pth", weights_only=True)["config"]
    for key, value in trainer.config.final_config_dict.items():
        assert stored[key] == value and type(stored[key]) is type(value), key
    assert str(stored) == str(trainer.config) and stored.parameters == trainer.config.parameters
