"""RecBole's checkpoints are read without running anything that is in them; what RecBole does not write is refused."""

from __future__ import annotations

import collections
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recbole_adarec.errors import AdaRecError
from recbole_adarec.storage.recbole_checkpoint import read_checkpoint
from tests.helpers import OLD_NUMPY, RECBOLE_MODELS


def write(path: Path, **content: object) -> Path:
    """A file as RecBole writes it: torch's zip format, protocol 4."""
    torch.save(content, path, pickle_protocol=4)
    return path


def test_a_checkpoint_that_recbole_wrote(stock):
    """Written by RecBole in a process that did not import this package; torch refuses it."""
    path = stock["STAMP"]
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    checkpoint = read_checkpoint(path)
    assert checkpoint.model == "STAMP" and checkpoint.epochs == 1 and 0 < checkpoint.best_valid_score < 1
    assert checkpoint.config["embedding_size"] == RECBOLE_MODELS["STAMP"]["embedding_size"]
    assert checkpoint.config["device"] == "cpu"
    assert checkpoint.state_dict["item_embedding.weight"].shape == (21, 8)
    assert all(tensor.isfinite().all() for tensor in checkpoint.state_dict.values())
    json.dumps(checkpoint.config)  # plain values, whatever it held


def test_tensors_come_back_as_they_were(tmp_path):
    whole = torch.arange(24.0).view(4, 6)
    weights = collections.OrderedDict(
        a=whole, b=whole.T, c=whole[1:3, 2:], d=torch.tensor(3), e=torch.rand(5).half(), f=torch.empty(0), g=whole > 3
    )
    path = write(tmp_path / "x.pth", config={"model": "X"}, state_dict=weights, epoch=4)
    checkpoint = read_checkpoint(path)
    assert list(checkpoint.state_dict) == list(weights) and checkpoint.epochs == 5
    for name, tensor in weights.items():
        assert torch.equal(checkpoint.state_dict[name], tensor) and checkpoint.state_dict[name].dtype == tensor.dtype


def test_a_checkpoint_of_plain_values_is_read_too(tmp_path):
    """As RecBole's trainers write them with the patches of this package."""
    torch.save({"config": {"model": "X"}, "state_dict": {"w": torch.ones(2)}, "epoch": 0}, tmp_path / "x.pth")
    assert torch.equal(read_checkpoint(tmp_path / "x.pth").state_dict["w"], torch.ones(2))


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> object:
        return self.call


@pytest.mark.parametrize("inside", ["file", "config", "weights", "key"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_malicious_pickle_is_refused_by_name_and_not_run(tmp_path, inside, protocol):
    trap = tmp_path / "executed"
    evil = Call(os.mkdir, str(trap))
    content = {"config": {"model": "SASRec"}, "state_dict": {"w": torch.ones(2)}}
    if inside == "file":
        content["epoch"] = evil
    elif inside == "key":
        content = {Call(os.mkdir, str(trap)): 1}
    else:
        content["config" if inside == "config" else "state_dict"]["x"] = evil
    torch.save(content, tmp_path / "evil.pth", pickle_protocol=protocol)
    with pytest.raises(AdaRecError, match=r"names (posix|nt)\.mkdir, which RecBole does not write") as error:
        read_checkpoint(tmp_path / "evil.pth")
    assert not trap.exists() and "\n" not in str(error.value)


def test_a_plain_unpickler_would_run_the_call(tmp_path):
    """So that the tests above can fail."""
    trap = tmp_path / "executed"
    pickle.loads(pickle.dumps(Call(os.mkdir, str(trap)), protocol=4))
    assert trap.exists()


def test_a_call_inside_recboles_config_is_refused(tmp_path, stock):
    """A real Config object, pickled as RecBole does it, with a call among its values."""
    code = OLD_NUMPY + (
        "import sys, os, torch; sys.argv = sys.argv[:3]\n"
        "from recbole.config import Config\n"
        "path, trap = sys.argv[1:3]; sys.argv = ['x']\n"
        "class Evil:\n"
        "    def __reduce__(self): return (os.mkdir, (trap,))\n"
        "config = Config(model='STAMP', dataset='ml-100k', config_dict={'train_neg_sample_args': None})\n"
        "config.final_config_dict['x'] = Evil()\n"
        "torch.save({'config': config, 'state_dict': {}}, path, pickle_protocol=4)\n"
    )
    path, trap = tmp_path / "evil.pth", tmp_path / "executed"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, path, trap], check=True, cwd=tmp_path)
    with pytest.raises(AdaRecError, match=r"\.mkdir"):
        read_checkpoint(path)
    assert not trap.exists()


@pytest.mark.parametrize(
    "value", [eval, Path("/"), torch.nn.Linear(1, 1), getattr, {1: b"bytes"}, torch.nn.Parameter(torch.ones(1))]
)
def test_what_recbole_does_not_write_is_refused(tmp_path, value):
    path = write(tmp_path / "x.pth", config={"model": "X"}, state_dict={}, other=value)
    with pytest.raises(AdaRecError, match="which RecBole does not write|damaged"):
        read_checkpoint(path)


def test_admitted_names_are_not_called(tmp_path):
    """A name that RecBole writes stands for itself; no instance of it is made."""
    import recbole.model.loss

    path = write(tmp_path / "x.pth", config={"model": "X", "c": recbole.model.loss.BPRLoss}, state_dict={})
    assert read_checkpoint(path).config["c"] == "recbole.model.loss.BPRLoss"
    path = write(tmp_path / "y.pth", config={"model": "X", "c": recbole.model.loss.BPRLoss()}, state_dict={})
    with pytest.raises(AdaRecError):
        read_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_named(tmp_path, stock, share):
    whole = Path(stock["STAMP"]).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(AdaRecError, match=r"cut\.pth is damaged, or no checkpoint of RecBole"):
        read_checkpoint(tmp_path / "cut.pth")


def test_files_of_another_kind_are_named(tmp_path):
    with pytest.raises(AdaRecError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "nowhere.pth")
    torch.save({"weights": torch.ones(1)}, tmp_path / "x.pth")
    with pytest.raises(AdaRecError, match="no configuration and weights"):
        read_checkpoint(tmp_path / "x.pth")
