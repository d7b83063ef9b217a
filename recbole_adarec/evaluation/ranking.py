"""How fast the best k of a large catalog are found, on a synthetic item table with popularity by Zipf's law."""

from __future__ import annotations

import time
from typing import Any

import torch

from recbole_adarec.model.item_table import AdaptiveItemTable, Blocks, cut_blocks

_SPREAD = 1.0  # standard deviation of what a state adds to the logarithm of an item's popularity


@torch.no_grad()
def skewed_table(blocks: Blocks, size: int, generator: torch.Generator) -> AdaptiveItemTable:
    """An untrained table that says of an item what its popularity says, and of each state something else besides.

    The first channel of a state is 1; that of an item is the logarithm of its popularity, by Zipf's law. The other
    channels are random, and so is, by them, the order of items of similar popularity. A block has the mass of its
    items, and for one of d channels d - 1 are random.
    """
    items = sum(blocks.sizes)
    table = AdaptiveItemTable(items + 1, size, blocks)
    popularity = -torch.arange(1, items + 1).double().log()
    for j, (block, start) in enumerate(zip(table.blocks, table.starts, strict=False)):
        rows = block.embedding.weight
        own = popularity[start : start + len(rows)]
        rows.normal_(std=_SPREAD / max(rows.shape[1] - 1, 1) ** 0.5, generator=generator)
        rows[:, 0] = own
        if block.projection is not None:
            block.projection.weight.copy_(torch.eye(size)[:, : rows.shape[1]])
        if j:
            table.entries.weight[j - 1] = 0
            table.entries.bias[j - 1] = own.logsumexp(0)
    return table.eval()


@torch.no_grad()
def time_top_k(table: AdaptiveItemTable, k: int, requests: int, generator: torch.Generator) -> dict[str, list[float]]:
    """Milliseconds of single requests, and shares scored: the k best by full scoring and by bounds, in turn.

    Raises
    ------
    AssertionError
        If they differ.
    """
    found: dict[str, list[float]] = {"full_ms": [], "bounded_ms": [], "scored": []}
    for number in range(-3, requests):  # the first ones warm up
        state = torch.randn(1, table.size, generator=generator)
        state[0, 0] = 1
        start = time.perf_counter()
        full = table.scores(state).topk(k)
        between = time.perf_counter()
        bounded = table.top_k(state, k)
        end = time.perf_counter()
        assert torch.equal(full.indices, bounded.items), "the k best differ"
        if number >= 0:
            times = (1e3 * (between - start), 1e3 * (end - between), bounded.scored)
            for name, value in zip(found, times, strict=True):
                found[name].append(value)
    return found


def measure_ranking(config: Any, items: int, requests: int, k: int = 10) -> dict[str, list[float]]:
    """`time_top_k` over a catalog of `items` that is cut as ``item_blocks`` and its kin say."""
    generator = torch.Generator().manual_seed(config["seed"])
    table = skewed_table(cut_blocks(config, items, config["hidden_size"]), config["hidden_size"], generator)
    return time_top_k(table, k, requests, generator)
