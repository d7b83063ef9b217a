"""What a model costs: parameters, multiply-accumulates, latency and throughput."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from recbole_adarec.model.base import SequenceRecommender
from recbole_adarec.model.search_space.cost import counted_macs


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Trainable parameters: total, those of the item table (see `ItemTable.parameter_count`), and of the layers."""
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if isinstance(model, SequenceRecommender):
        table = sum(p.numel() for p in model.item_table.parameters() if p.requires_grad)
        stored = model.item_table.parameter_count()
        return {"total": stored + total - table, "item_table": stored, "layers": total - table}
    n_items = getattr(model, "n_items", None)  # a RecBole model names its parts as it likes
    table = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings in (n_items, (n_items or 0) + 1)
    )
    return {"total": total, "item_table": table, "layers": total - table}


@torch.no_grad()
def count_macs(model: Any, interaction: Any) -> int:
    """Multiply-accumulates of scoring all items for the given batch: matrix products and convolutions.

    The figure grows with the histories: give one of full length to compare models.
    """
    return counted_macs(lambda: model.full_sort_predict(interaction))


def timing_rows(dataset: Any, device: torch.device | str) -> tuple[Any, Any]:
    """Rows of an evaluation dataset for `measure_speed`, 256 at most, and the one of them with the longest history,
    for `count_macs`."""
    rows = dataset[torch.arange(min(len(dataset), 256))].to(device)
    return rows, rows[rows[dataset.item_list_length_field].argmax().reshape(1)]


@torch.inference_mode()  # as `Recommender.recommend` serves: students take a fifth less than with no_grad
def measure_speed(
    models: Mapping[str, Any], interaction: Any, repeats: int = 200, batch: int = 256
) -> dict[str, dict[str, Any]]:
    """Latency of single requests and throughput of batches, the models in turn in one process.

    A machine's speed drifts: the models take turns request by request, so that drift meets all of them.

    Parameters
    ----------
    models : mapping of str to model
        In evaluation mode.
    interaction : Interaction
        Rows to score, as RecBole's evaluation loader gives them.
    repeats : int
        Single requests, for each model.
    batch : int
        Rows of a batch.

    Returns
    -------
    dict
        For each model ``latency_ms`` with ``batch_1_p50`` and ``batch_1_p99``, and ``sequences_per_second``.
    """
    device = next(next(iter(models.values())).parameters()).device
    rows = interaction.to(device)
    singles = [rows[i : i + 1] for i in range(min(len(rows), 64))]
    many = rows[torch.arange(batch) % len(rows)]

    def timed(model: Any, request: Any) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        model.full_sort_predict(request)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    for model in models.values():  # warm-up
        for request in singles[:10]:
            timed(model, request)
    single = {name: np.empty(repeats) for name in models}
    for k in range(repeats):
        for name, model in models.items():
            single[name][k] = timed(model, singles[k % len(singles)])
    batches = {name: np.empty(7) for name in models}
    for k in range(-1, 7):
        for name, model in models.items():
            batches[name][max(k, 0)] = timed(model, many)
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
