"""What tests of several rooms share: settings that train in seconds, datasets, and random weights."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from recbole_adarec.cli import main
from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.config.stages import stage_config

# A whole run in seconds on the dataset `tiny`.
SMALL: dict[str, Any] = {
    "backbone": "NextItNet", "epochs": 1, "hidden_size": 16, "search_hidden_size": 8, "block_num": 1, "n_layers": 2,
    "inner_size": 16, "distilled_layers": 2, "cost_budget": 0.5, "candidates": 1, "candidate_sizes": None,
    "train_batch_size": 200, "latency_repeats": 5, "show_progress": False,
}  # fmt: skip
# The same with a choice among candidates of two sizes.
WITH_CHOICE: dict[str, Any] = {
    "backbone": "NextItNet", "teacher_epochs": 2, "search_epochs": 3, "student_epochs": 2, "teacher_hidden_size": 16,
    "search_hidden_size": 8,
    "cost_budget": 0.5, "candidate_sizes": [8, 4], "candidate_epochs": 1, "finalist_epochs": 2,
    "block_num": 2, "distilled_layers": 3, "train_batch_size": 200, "latency_repeats": 3, "show_progress": False,
}  # fmt: skip
# Trained by RecBole for the tests of teachers; each value is one of RecBole's own keys.
RECBOLE_MODELS: dict[str, dict[str, Any]] = {
    "SASRec": {"hidden_size": 16, "inner_size": 16, "MAX_ITEM_LIST_LENGTH": 12},
    "STAMP": {"embedding_size": 8},
}
# Stock RecBole does not run on numpy 2, but what it wrote elsewhere is read there: tests make it run, by this first.
OLD_NUMPY = """
import numpy
for old, name in {"float_": "float64", "complex_": "complex128", "unicode_": "str_"}.items():
    if not hasattr(numpy, old):
        setattr(numpy, old, getattr(numpy, name))
"""


def as_arguments(values: Mapping[str, Any]) -> list[str]:
    """Values as arguments of the command line."""
    return [f"--{key}={'~' if value is None else value}" for key, value in values.items()]


def refused(*arguments: str) -> str:
    """The one line that a refused command prints; nothing is written."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(list(arguments))
    lines = err.getvalue().strip().splitlines()
    assert code == 2 and len(lines) == 1, err.getvalue()
    assert not Path("saved").exists() and not Path("run").exists()
    return lines[0]


def with_random_weights(model: Any) -> Any:
    """A model, in evaluation mode, all of whose weights are random: scalars that start at 0 would hide a leak."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for embedding in model.item_table.quantized_embeddings():
            if embedding.padding_idx is not None:
                embedding.weight[embedding.padding_idx] = 0
    return model.eval()


OLD_DEFAULTS = {"backbone": "NextItNet", "MAX_ITEM_LIST_LENGTH": 50}  # one backbone, and no look at the data


def make_config(stage: str, dataset: str = "ml-100k", **overrides: Any) -> Any:
    """RecBole's configuration of a stage, as a run makes it."""
    return stage_config(resolve_user_config(dataset, [], {"show_progress": False, **OLD_DEFAULTS, **overrides}), stage)


def write_dataset(folder: Path, name: str, histories: list[list[int]], header: str | None = None) -> Path:
    """Histories as a RecBole atomic file; the timestamp is the position."""
    (folder / name).mkdir(parents=True)
    header = header or "user_id:token\titem_id:token\ttimestamp:float"
    lines = [f"{u}\t{i}\t{t}" for u, items in enumerate(histories, 1) for t, i in enumerate(items, 1)]
    (folder / name / f"{name}.inter").write_text("\n".join([header, *lines]) + "\n")
    return folder
