"""Time of the k best items of a large catalog, on a synthetic adaptive item table with popularity by Zipf's law."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from recbole_adarec.model.item_table.adaptive import AdaptiveItemTable
from recbole_adarec.model.item_table.budget import Blocks, cut_blocks

_TURN = 10  # requests of a turn
_SPREAD = 1.0  # standard deviation of a logit about the logarithm of the item's popularity


@torch.no_grad()
def skewed_table(blocks: Blocks, size: int, generator: torch.Generator) -> AdaptiveItemTable:
    """An untrained item table whose logits follow the popularity of the items, by Zipf's law, with random deviations.

    The first channel of a state is 1; that of an item is the logarithm of its popularity. The other channels are
    random: they change the order of items of similar popularity from state to state. A block with d channels has d - 1
    random ones. The logit of a block is the logarithm of the popularity of its items together.

    Parameters
    ----------
    blocks : Blocks
        Blocks of items and their widths.
    size : int
        Channels of a state, C.
    generator : Generator
        Source of the random channels.
    """
    items = sum(blocks.sizes)
    table = AdaptiveItemTable(items + 1, size, blocks)
    popularity = -torch.arange(1, items + 1).double().log()
    for j, (block, start) in enumerate(zip(table.blocks, table.starts, strict=False)):
        rows = block.embedding.weight
        log_popularity = popularity[start : start + len(rows)]
        rows.normal_(std=_SPREAD / max(rows.shape[1] - 1, 1) ** 0.5, generator=generator)
        rows[:, 0] = log_popularity
        if block.projection is not None:
            block.projection.weight.copy_(torch.eye(size)[:, : rows.shape[1]])
        if j:
            table.entries.weight[j - 1] = 0
            table.entries.bias[j - 1] = log_popularity.logsumexp(0)
    return table.eval()


@torch.no_grad()
def time_top_k(table: AdaptiveItemTable, k: int, requests: int, generator: torch.Generator) -> dict[str, list[float]]:
    """Time of single requests for the k best items: with all items scored, and with blocks skipped by their bounds.

    The two ways take turns of ten requests, since a server answers requests of one kind with warm caches.

    Parameters
    ----------
    table : AdaptiveItemTable
        What `skewed_table` returned.
    k, requests : int
        Items of a request, and how many requests; rounded up to whole turns.
    generator : Generator
        Source of the states.

    Returns
    -------
    dict of str to list of float
        ``full_ms`` and ``bounded_ms``: milliseconds of each request; ``scored``: share of the items that the second way
        scored.

    Raises
    ------
    RuntimeError
        If the two ways return different items.
    """
    ways: dict[str, Callable[[Tensor], Any]] = {
        "full_ms": lambda state: table.scores(state).topk(k), "bounded_ms": lambda state: table.top_k(state, k),
    }  # fmt: skip
    results: dict[str, list[float]] = {"full_ms": [], "bounded_ms": [], "scored": []}
    for _ in range(-(-requests // _TURN)):
        states = torch.randn(_TURN, table.size, generator=generator)
        states[:, 0] = 1
        answers: dict[str, list[Any]] = {name: [] for name in ways}
        for name, way in ways.items():
            way(states[:1])
            for state in states.split(1):
                start = time.perf_counter()
                answers[name].append(way(state))
                results[name].append(1e3 * (time.perf_counter() - start))
        for full, bounded in zip(*answers.values(), strict=True):
            if not torch.equal(full.indices, bounded.items):
                raise RuntimeError("the items of the bounded ranking are not the best ones")
            results["scored"].append(bounded.scored)
    return results


def measure_ranking(config: Any, items: int, requests: int, k: int = 10) -> dict[str, list[float]]:
    """`time_top_k` over a catalog whose blocks are those of a configuration.

    Parameters
    ----------
    config : Config
        Gives ``item_blocks`` and the other keys of the item table, ``hidden_size`` and ``seed``.
    items, requests, k : int
        Items of the catalog, requests, and items of a request.
    """
    generator = torch.Generator().manual_seed(config["seed"])
    table = skewed_table(cut_blocks(config, items, config["hidden_size"]), config["hidden_size"], generator)
    return time_top_k(table, k, requests, generator)
