"""Costs of operations, cells and models: parameters, multiply-accumulates per position, or latency on this machine."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from recbole_adarec.model.flops import counted_macs
from recbole_adarec.model.search_space.architecture import Architecture, edges
from recbole_adarec.model.search_space.cell import Cell, live_edges
from recbole_adarec.model.search_space.operations import OPERATIONS

COSTS = ("params", "macs", "latency")
_LENGTH = 50  # positions L of the sequence that latency is measured on


@lru_cache(None)
@torch.random.fork_rng(devices=[])  # building a module to measure it does not change the random numbers of the run
def operation_cost(name: str, size: int, cost: str) -> float:
    """Cost of an operation, in the unit that `cost` names.

    Parameters
    ----------
    name : str
        A name in `OPERATIONS`.
    size : int
        Channels C.
    cost : str
        ``params``: number of trainable parameters. ``macs``: multiply-accumulates per position. ``latency``:
        microseconds for one sequence of 50 positions on this machine's CPU.
    """
    operation = OPERATIONS[name]
    if cost == "params":
        return operation.parameters(size)
    if cost == "macs":
        return operation.macs(size)
    module, x = operation.build(size), torch.rand(1, _LENGTH, size)
    return 0.0 if name in ("skip", "none") else _microseconds(lambda: module(x))


@lru_cache(None)
@torch.random.fork_rng(devices=[])
def cell_cost(size: int, nodes: int, cost: str) -> float:
    """Cost of a cell without its operations: its LayerNorm and its node weights; in the unit of `operation_cost`.

    Parameters
    ----------
    size : int
        Channels C.
    nodes : int
        Number of computed nodes.
    cost : str
        ``params``, ``macs`` or ``latency``.
    """
    cell = Cell(size, [["skip"]] * len(edges(nodes)), nodes)
    if cost == "params":
        return sum(p.numel() for p in cell.parameters())
    if cost == "macs":
        return nodes * size
    x = torch.rand(1, _LENGTH, size)
    return _microseconds(lambda: cell(x, lambda _, source: source))


def architecture_cost(architecture: Architecture, cost: str) -> float:
    """Cost of all cells of an architecture, in the unit of `operation_cost`; edges that are not live cost nothing."""
    size, nodes, repeats = architecture.hidden_size, architecture.nodes, architecture.repeats
    operations = 0.0
    for cell in architecture.cells:
        live = live_edges(cell, nodes)
        operations += sum(operation_cost(name, size, cost) for name, alive in zip(cell, live, strict=True) if alive)
    return repeats * len(architecture.cells) * cell_cost(size, nodes, cost) + paid(repeats, cost) * operations


def paid(repeats: int, cost: str) -> int:
    """How many times the operations of cells that are repeated are paid: their parameters once."""
    return 1 if cost == "params" else repeats


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
    model = copy.deepcopy(model).cpu().eval()
    length = min(_LENGTH, model.max_seq_length)
    sequence = torch.randint(1, model.n_items, (1, length))
    if cost == "latency":
        return _microseconds(lambda: model.encode(sequence))
    return counted_macs(lambda: model.encode(sequence)) / length


@torch.no_grad()
def _microseconds(run: Callable[[], Any], repeats: int = 60) -> float:
    """Median duration of a call in microseconds; the first third of the calls is a warm-up."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e6 * float(torch.tensor(times[repeats // 3 :]).median())
