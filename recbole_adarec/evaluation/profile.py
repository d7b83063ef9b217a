"""Size and speed of a model: parameters, multiply-accumulates, latency and throughput."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from recbole.model.abstract_recommender import AbstractRecommender
from torch import nn

from recbole_adarec.model.base import SequenceRecommender
from recbole_adarec.model.flops import counted_macs
from recbole_adarec.storage.weights import packed, stored_bytes


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Numbers of trainable parameters.

    Parameters
    ----------
    model : Module
        Of this package; or a model of RecBole, whose embeddings of all items count as its item table.

    Returns
    -------
    dict
        ``total``, ``item_table`` (see `ItemTable.parameter_count`) and ``layers``, which is the difference.
    """
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if isinstance(model, SequenceRecommender):
        table = sum(p.numel() for p in model.item_table.parameters() if p.requires_grad)
        stored = model.item_table.parameter_count()
        return {"total": stored + total - table, "item_table": stored, "layers": total - table}
    n_items = getattr(model, "n_items", None)  # names of parts differ between RecBole's models
    table = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings in (n_items, (n_items or 0) + 1)
    )
    return {"total": total, "item_table": table, "layers": total - table}


def weights_bytes(model: nn.Module, stored: str | None = None) -> int:
    """Bytes of a model's weights in a file.

    Parameters
    ----------
    model : Module
        Of this package or of RecBole.
    stored : str, optional
        The form in the file, ``stored_weights``; ``float32`` by default.
    """
    return stored_bytes(packed(model.state_dict(), stored or "float32"))


@torch.no_grad()
def count_macs(model: Any, interaction: Any) -> int:
    """Multiply-accumulates of the matrix products and convolutions in scoring all items for a batch.

    Parameters
    ----------
    model : SequenceRecommender
        Or a model of RecBole; in evaluation mode.
    interaction : Interaction
        Rows to score. The figure grows with the length of the histories: to compare models, use full length.
    """
    return counted_macs(lambda: model.full_sort_predict(interaction))


def scores_all_items(model_class: type[Any]) -> bool:
    """Whether models of a class score all items at once; RecBole's DIN and DIEN score one item at a time."""
    return model_class.full_sort_predict is not AbstractRecommender.full_sort_predict


def timing_rows(dataset: Any, device: torch.device | str) -> tuple[Any, Any]:
    """Rows of an evaluation dataset for `measure_speed`, and one for `count_macs`.

    Parameters
    ----------
    dataset : SequenceDataset
        The test part.
    device : torch.device or str
        Device of the rows.

    Returns
    -------
    tuple of Interaction
        The first rows, 256 at most, and the one of them with the longest history.
    """
    rows = dataset[torch.arange(min(len(dataset), 256))].to(device)
    return rows, rows[rows[dataset.item_list_length_field].argmax().reshape(1)]


@torch.inference_mode()  # as in `Recommender.recommend`: measured, students take a fifth less time than with no_grad
def measure_speed(
    models: Mapping[str, Any], interaction: Any, repeats: int = 200, batch: int = 256
) -> dict[str, dict[str, Any]]:
    """Latency of single requests and throughput of batches, measured in one process.

    The speed of a machine drifts: the models take turns request by request, so that drift affects all alike.

    Parameters
    ----------
    models : mapping of str to model
        In evaluation mode.
    interaction : Interaction
        Rows to score, as RecBole's evaluation loader yields them.
    repeats : int
        Number of single requests for each model.
    batch : int
        Rows of a batch.

    Returns
    -------
    dict
        By model: ``latency_ms`` with the median ``batch_1_p50`` and the 99th percentile ``batch_1_p99`` of single
        requests, in milliseconds, and ``sequences_per_second`` of batches (median of 7).
    """
    device = next(next(iter(models.values())).parameters()).device
    rows = interaction.to(device)
    singles = [rows[i : i + 1] for i in range(min(len(rows), 64))]
    full_batch = rows[torch.arange(batch) % len(rows)]

    def seconds(model: Any, request: Any) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        model.full_sort_predict(request)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for model in models.values():  # warm-up
        for request in singles[:10]:
            seconds(model, request)
    single = {name: np.empty(repeats) for name in models}
    for k in range(repeats):
        for name, model in models.items():
            single[name][k] = seconds(model, singles[k % len(singles)])
    batches = {name: np.empty(7) for name in models}
    for k in range(-1, 7):  # the first one, k = -1, is warm-up and overwritten
        for name, model in models.items():
            batches[name][max(k, 0)] = seconds(model, full_batch)
    return {
        name: {
            "latency_ms": {
                "batch_1_p50": float(np.percentile(single[name], 50) * 1e3),
                "batch_1_p99": float(np.percentile(single[name], 99) * 1e3),
            },
            "sequences_per_second": float(batch / np.median(batches[name])),
        }
        for name in models
    }
