"""Costs of operations, cells and models: parameters, bytes, multiply-accumulates per position, or latency here."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from recbole_adarec.model.flops import counted_macs
from recbole_adarec.model.search_space.architecture import Architecture, edges
from recbole_adarec.model.search_space.cell import Cell, live_edges
from recbole_adarec.model.search_space.operations import OPERATIONS
from recbole_adarec.storage.weights import packed, stored_bytes

COSTS = ("params", "macs", "latency")  # of layers alone; a budget of the whole student may be of bytes too
REQUEST_LENGTH = 50  # positions L of the sequence that costs are measured on


@lru_cache(None)
@torch.random.fork_rng(devices=[])  # building a module to measure it does not change the random numbers of the run
def operation_cost(name: str, size: int, cost: str, stored: str = "float32") -> float:
    """Cost of an operation, in the unit that `cost` names.

    Parameters
    ----------
    name : str
        A name in `OPERATIONS`.
    size : int
        Channels C.
    cost : str
        ``params``: number of trainable parameters. ``bytes``: of the weights in a file. ``macs``: multiply-accumulates
        per position. ``latency``: microseconds for one sequence of 50 positions on this machine's CPU.
    stored : str
        Form of the weights in the file, ``stored_weights``.
    """
    operation = OPERATIONS[name]
    if cost == "bytes":
        return stored_bytes(packed(operation.build(size).state_dict(), stored))
    if cost == "params":
        return operation.parameters(size)
    if cost == "macs":
        return operation.macs(size)
    module, x = operation.build(size), torch.rand(1, REQUEST_LENGTH, size)
    return 0.0 if name in ("skip", "none") else microseconds(lambda: module(x))


@lru_cache(None)
@torch.random.fork_rng(devices=[])
def cell_cost(size: int, nodes: int, cost: str, stored: str = "float32") -> float:
    """Cost of a cell without its operations: its LayerNorm and its node weights; in the unit of `operation_cost`.

    Parameters
    ----------
    size : int
        Channels C.
    nodes : int
        Number of computed nodes.
    cost, stored : str
        As of `operation_cost`.
    """
    cell = Cell(size, [["skip"]] * len(edges(nodes)), nodes)
    if cost == "bytes":
        return stored_bytes(packed(cell.state_dict(), stored))
    if cost == "params":
        return sum(p.numel() for p in cell.parameters())
    if cost == "macs":
        return nodes * size
    x = torch.rand(1, REQUEST_LENGTH, size)
    return microseconds(lambda: cell(x, lambda _, source: source))


def architecture_cost(architecture: Architecture, cost: str, stored: str = "float32") -> float:
    """Cost of all cells of an architecture, see `operation_cost`; edges that are not live cost nothing."""
    size, nodes, repeats = architecture.hidden_size, architecture.nodes, architecture.repeats
    operations = 0.0
    for cell in architecture.cells:
        live = live_edges(cell, nodes)
        operations += sum(
            operation_cost(name, size, cost, stored) for name, alive in zip(cell, live, strict=True) if alive
        )
    cells = repeats * len(architecture.cells) * cell_cost(size, nodes, cost, stored)
    return cells + paid(repeats, cost) * operations


def paid(repeats: int, cost: str) -> int:
    """How many times the operations of cells that are repeated are paid: their weights once."""
    return 1 if cost in ("params", "bytes") else repeats


@torch.no_grad()
@torch.random.fork_rng(devices=[])
def layers_cost(model: Any, cost: str) -> float:
    """Cost of the layers of a model, without its item table, in the unit of `operation_cost`.

    Parameters
    ----------
    model : SequenceRecommender
        A teacher or a student.
    cost : str
        ``params``, ``macs`` or ``latency``.
    """
    if cost == "params":
        table = sum(p.numel() for p in model.item_table.parameters())
        return sum(p.numel() for p in model.parameters()) - table
    model, sequence = _ready(model)
    if cost == "latency":
        return microseconds(lambda: model.encode(sequence))
    return counted_macs(lambda: model.encode(sequence)) / sequence.shape[1]


@torch.no_grad()
@torch.random.fork_rng(devices=[])
def model_cost(model: Any, cost: str, stored: str = "float32") -> float:
    """Cost of a whole model, with its item table, in the unit of `operation_cost`.

    A request scores all items after a sequence of 50 items.

    Parameters
    ----------
    model : SequenceRecommender
        A teacher or a student.
    cost, stored : str
        As of `operation_cost`.
    """
    if cost == "params":
        return sum(p.numel() for p in model.parameters())
    if cost == "bytes":
        return stored_bytes(packed(model.state_dict(), stored))
    model, sequence = _ready(model)
    lengths = torch.tensor([sequence.shape[1]])
    if cost == "latency":
        return microseconds(lambda: model.scores(sequence, lengths))
    return counted_macs(lambda: model.scores(sequence, lengths)) / sequence.shape[1]


def _ready(model: Any) -> tuple[Any, Tensor]:
    """A copy of a model that answers requests on the CPU, and a sequence of items, ``[1, L]``."""
    length = min(REQUEST_LENGTH, model.max_seq_length)
    return copy.deepcopy(model).cpu().eval(), torch.randint(1, model.n_items, (1, length))


@torch.no_grad()
def microseconds(run: Callable[[], Any], repeats: int = 60) -> float:
    """Median duration of a call in microseconds; the first third of the calls is a warm-up."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e6 * float(torch.tensor(times[repeats // 3 :]).median())
