"""Training in n processes equals training in one process with n times the batch size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recbole_adarec import AdaRecError, run_adarec
from recbole_adarec.storage.files import load_checkpoint

SCRIPT = Path(__file__).parent.parent / "run_adarec.py"
SETTINGS = {
    "dataset": "tiny", "backbone": "NextItNet", "hidden_size": 16, "teacher_block_num": 2,
    "teacher_distilled_layers": 4, "cells": 2, "cost_budget": 0.5, "candidate_sizes": [16], "candidates": 6,
    "cost_floor": 0.9, "teacher_epochs": 2, "search_epochs": 2, "student_epochs": 2, "alpha_warmup": 0,
    "dropout_prob": 0.0, "latency_repeats": 2, "show_progress": False, "threads": 1,
}  # fmt: skip


def command(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    keys = [f"--{key}={value}" for key, value in settings.items()]
    # RecBole's Config, run in this process, hides all GPUs but the first.
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    return subprocess.run(
        [*arguments, str(SCRIPT), *keys], capture_output=True, text=True, timeout=120, env=environment
    )


def assert_same_training(one: Path, two: Path) -> None:
    """Losses, α, layer weights, flows and metrics of every epoch, and the architecture.

    Sums over several processes are rounded differently, and Adam magnifies gradients near 0: α differs by 0.002 to
    0.004 here, and by 0.024 to 0.036 if its gradient is not summed.
    """
    for stage in ("teacher", "search", "student"):
        expected, actual = (load_checkpoint(folder / f"{stage}.pth") for folder in (one, two))
        assert len(expected["history"]) == len(actual["history"]) > 0
        for record, other in zip(expected["history"], actual["history"], strict=True):
            assert record.keys() == other.keys()
            for name, value in record.items():
                if value is not None:
                    tolerance = 8e-3 if name == "alpha" else 1e-3
                    torch.testing.assert_close(
                        torch.tensor(other[name]), torch.tensor(value), rtol=2e-3, atol=tolerance, msg=f"{stage} {name}"
                    )
    assert (one / "architecture.yaml").read_text() == (two / "architecture.yaml").read_text()
    reports = [json.loads((folder / "report.json").read_text()) for folder in (one, two)]
    for model, other in zip(reports[0]["models"], reports[1]["models"], strict=True):
        assert other["test"] == pytest.approx(model["test"], abs=2e-3)
        assert other["parameters"] == model["parameters"]


@pytest.mark.parametrize(
    "values",
    [
        {"item_loss": "chunked"},
        {"item_loss": "sampled", "sampled_items": 30},
        # Codes magnify what is rounded differently, and the more so the more layers there are.
        {"item_table": "adaptive", "item_blocks": 2, "student_item_codes": 3, "student_item_code_epochs": 2,
         "search_repeats": 1, "search_cell_form": "relu"},
    ],
)  # fmt: skip
def test_two_processes_train_as_one_with_the_doubled_batch(
    tiny: Path, tmp_path: Path, values: dict[str, object]
) -> None:
    settings = SETTINGS | {"data_path": str(tiny)} | values
    result = command(sys.executable, nproc=2, train_batch_size=60, run_dir=tmp_path / "two", **settings)
    assert result.returncode == 0, result.stderr
    run_adarec(config_dict=settings | {"train_batch_size": 120}, run_dir=tmp_path / "one")
    assert_same_training(tmp_path / "one", tmp_path / "two")
    assert result.stdout.count("run folder") == 1, "one process writes the log"
    assert not list(Path.cwd().glob("log_tensorboard*")), "one process writes files"


def test_torchrun_starts_a_run_that_another_number_of_processes_cannot_continue(tiny: Path, tmp_path: Path) -> None:
    settings = SETTINGS | {"data_path": str(tiny), "run_dir": tmp_path / "run", "train_batch_size": 60}
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    result = command(*torchrun, **settings)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "report.json").is_file()
    again = command(sys.executable, **settings)
    assert again.returncode == 2 and "world_size" in again.stderr and again.stderr.count("adarec:") == 1


def test_bad_input_is_reported_in_one_line_by_one_process(tmp_path: Path) -> None:
    result = command(sys.executable, nproc=2, dataset="no-such", data_path=tmp_path)
    assert result.returncode == 2 and result.stderr.count("adarec:") == 1 and "Traceback" not in result.stderr


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "2"), ("WORLD_SIZE", "two")])
def test_an_incomplete_environment_is_refused_by_name(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(AdaRecError, match=name):
        run_adarec(config_dict=SETTINGS | {"data_path": str(tiny)}, run_dir="never")
    assert not Path("never").exists()
