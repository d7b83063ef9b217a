"""How fast the best k of a large catalog are found, on a synthetic item table with popularity by Zipf's law."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from recbole_adarec.model.item_table.adaptive import AdaptiveItemTable
from recbole_adarec.model.item_table.budget import Blocks, cut_blocks

_TURN = 10  # requests
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
    """Milliseconds of single requests, and shares scored: the k best by full scoring and by bounds.

    Both ways take turns of ten requests, for a server has its caches from requests of the same kind.

    Raises
    ------
    AssertionError
        If they differ.
    """
    ways: dict[str, Callable[[Tensor], Any]] = {
        "full_ms": lambda state: table.scores(state).topk(k), "bounded_ms": lambda state: table.top_k(state, k),
    }  # fmt: skip
    found: dict[str, list[float]] = {"full_ms": [], "bounded_ms": [], "scored": []}
    for _ in range(-(-requests // _TURN)):
        states = torch.randn(_TURN, table.size, generator=generator)
        states[:, 0] = 1
        answers: dict[str, list[Any]] = {name: [] for name in ways}
        for name, way in ways.items():
            way(states[:1])
            for state in states.split(1):
                start = time.perf_counter()
                answers[name].append(way(state))
                found[name].append(1e3 * (time.perf_counter() - start))
        for full, bounded in zip(*answers.values(), strict=True):
            assert torch.equal(full.indices, bounded.items), "the k best differ"
            found["scored"].append(bounded.scored)
    return found


def measure_ranking(config: Any, items: int, requests: int, k: int = 10) -> dict[str, list[float]]:
    """`time_top_k` over a catalog of `items` that is cut as ``item_blocks`` and its kin say."""
    generator = torch.Generator().manual_seed(config["seed"])
    table = skewed_table(cut_blocks(config, items, config["hidden_size"]), config["hidden_size"], generator)
    return time_top_k(table, k, requests, generator)
