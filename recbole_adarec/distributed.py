"""Several processes: each trains on its share of every batch, and all of them hold the same weights.

The process group is torch's own (``torchrun``, or ``--nproc``): gloo on CPUs, NCCL on GPUs. RecBole is not told: its
own way needs NCCL and wraps the model, and a supernet's unused operations have no gradient. Everything here is the
identity where there is one process.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from recbole_adarec.errors import AdaRecError

T = TypeVar("T")
_TIMEOUT = timedelta(days=7)  # the others wait while the first process trains a baseline
_joined = False


def world_size() -> int:
    """Number of processes; known from the environment before the group is there."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdigit():
        raise AdaRecError(f"environment: WORLD_SIZE is {text!r}, expected a number; torchrun sets it")
    return int(text)


def rank() -> int:
    """Number of this process, from 0."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def local_rank() -> int:
    """Number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world_size() > 1 else 0


def local_world_size() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks to the user."""
    return rank() == 0


def start(device: torch.device) -> None:
    """Join the process group, if the environment names one and it is not joined yet.

    Raises
    ------
    AdaRecError
        If the environment names only a part of it.
    """
    global _joined
    if world_size() > 1 and not dist.is_initialized():
        _joined = True
        try:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise AdaRecError(
                f"environment: WORLD_SIZE is {world_size()}, but there is no group of that many processes to join "
                f"({reason}); start them with torchrun or --nproc"
            ) from error


def stop() -> None:
    """Leave the process group."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End this process with an exit code.

    One that was in a process group ends at once: a thread of gloo that gives up its last tensor while Python takes
    itself apart aborts the process ("terminate called without an active exception"), now and then.
    """
    if _joined:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


def from_first(value: T) -> T:
    """The first process's value, in every process."""
    if world_size() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box)
    return box[0]


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors by those of the first process."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


@torch.no_grad()
def total(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


@torch.no_grad()
def add_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum the gradients of all processes, which have them at the same parameters: dense ones in one message."""
    if world_size() == 1:
        return
    dense: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = _add_sparse(parameter.grad)
        else:
            dense.append(parameter.grad)
    if dense:
        flat = total(torch.cat([gradient.flatten() for gradient in dense]))
        for gradient, summed in zip(dense, flat.split([g.numel() for g in dense]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def _add_sparse(gradient: Tensor) -> Tensor:
    """Sum of sparse gradients ``[I, C]``: rows and values of all processes side by side."""
    gradient = gradient.coalesce()
    rows, values = gather(gradient.indices()[0]), gather(gradient.values())
    return torch.sparse_coo_tensor(rows[None], values, gradient.shape, check_invariants=False).coalesce()


@torch.no_grad()
def gather(tensor: Tensor) -> Tensor:
    """The tensors of all processes along the first dimension, in order; their lengths may differ."""
    if world_size() == 1:
        return tensor
    lengths = [torch.zeros(1, dtype=torch.long, device=tensor.device) for _ in range(world_size())]
    dist.all_gather(lengths, torch.tensor([len(tensor)], device=tensor.device))
    longest = int(max(lengths))
    padded = tensor.new_zeros(longest, *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(length)] for part, length in zip(parts, lengths, strict=True)])


def launch(
    function: Callable[..., int], arguments: Sequence[str], nproc: int, *, ip: str, port: int, world: int, offset: int
) -> int:
    """Run ``function(arguments)`` in `nproc` processes of this machine, as RecBole's ``--nproc`` does.

    Parameters
    ----------
    function : callable
        Gives an exit code.
    arguments : sequence of str
        What each of them is called with.
    nproc : int
        Processes here.
    ip, port : str, int
        Where the first process of all listens; port 0 takes a free one.
    world : int
        Processes on all machines.
    offset : int
        Number of the first process here.

    Returns
    -------
    int
        0, or the exit code of the process that failed first; the others are ended then.
    """
    if port == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
    environment = {
        "MASTER_ADDR": ip, "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(nproc)
    }  # fmt: skip
    # Processes that share the cores must not each start as many threads as there are cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // nproc, 1)))
    try:
        mp.start_processes(_worker, (function, list(arguments), environment, offset), nproc, start_method="spawn")
    except mp.ProcessExitedException as error:
        return error.exit_code
    return 0


def _worker(
    number: int, function: Callable[..., int], arguments: list[str], environment: dict[str, str], offset: int
) -> None:
    os.environ.update(environment, RANK=str(offset + number), LOCAL_RANK=str(number))
    leave(function(arguments))
