"""Data-parallel training: each process trains on its share of every batch, and all of them hold the same weights.

The process group is torch's (started by ``torchrun`` or ``--nproc``): gloo on CPUs, NCCL on GPUs. RecBole's distributed
mode is not used. It needs NCCL and wraps the model in ``DistributedDataParallel``, which expects a gradient for every
parameter; in a supernet the operations that are not drawn have none. With one process every function of this module
returns its input unchanged.
"""

from __future__ import annotations

import ast
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from recbole_adarec.errors import AdaRecError

T = TypeVar("T")
_TIMEOUT = timedelta(days=7)  # the other processes wait while the first one trains a baseline
_joined = False


def world_size() -> int:
    """Number of processes, read from the environment before the process group exists.

    Raises
    ------
    AdaRecError
        If the environment variable WORLD_SIZE is not a number.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdigit():
        raise AdaRecError(f"environment: WORLD_SIZE is {text!r}, expected a number; torchrun sets it")
    return int(text)


def rank() -> int:
    """Index of this process among all processes, from 0."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def local_rank() -> int:
    """Index of this process among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world_size() > 1 else 0


def local_world_size() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1


def is_first() -> bool:
    """Whether this is process 0, which writes the files and the log."""
    return rank() == 0


def start(device: torch.device) -> None:
    """Join the process group that the environment names. Does nothing with one process, or when called again.

    Parameters
    ----------
    device : torch.device
        Device of this process; it decides between NCCL and gloo.

    Raises
    ------
    AdaRecError
        If the environment describes the group incompletely.
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
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End this process with an exit code.

    A process that was in a process group exits without Python's clean-up. During the clean-up a thread of gloo that
    frees its last tensor sometimes aborts the process ("terminate called without an active exception").
    """
    if _joined:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def barrier() -> None:
    """Wait until every process has called this function."""
    if world_size() > 1:
        dist.barrier()


def from_first(value: T) -> T:
    """Value of process 0, in every process. It must be picklable."""
    if world_size() == 1:
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values)
    return values[0]


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors, in place, by those of process 0."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


@torch.no_grad()
def total(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all processes; `tensor` is overwritten by it and returned."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


@torch.no_grad()
def add_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum the gradients of `parameters` over all processes, in place.

    The same parameters must have a gradient in every process. All dense gradients travel in one message.
    """
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
    """Sum of sparse gradients ``[I, C]``: rows and values of all processes are concatenated, then coalesced."""
    gradient = gradient.coalesce()
    rows, values = gather(gradient.indices()[0]), gather(gradient.values())
    return torch.sparse_coo_tensor(rows[None], values, gradient.shape, check_invariants=False).coalesce()


@torch.no_grad()
def gather(tensor: Tensor) -> Tensor:
    """Concatenation of the tensors of all processes along the first dimension, in the order of the processes.

    Lengths along the first dimension may differ between processes; the other dimensions must agree.
    """
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
        Is called with `arguments` and returns an exit code.
    arguments : sequence of str
        Arguments of `function`, the same in every process.
    nproc : int
        Number of processes on this machine.
    ip, port : str, int
        Address at which process 0 listens; port 0 selects a free port.
    world : int
        Number of processes on all machines.
    offset : int
        Index of the first process of this machine among all processes.

    Returns
    -------
    int
        0, or the exit code of the process that failed first; the others are terminated then.
    """
    if port == 0:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
    environment = {
        "MASTER_ADDR": ip, "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(nproc)
    }  # fmt: skip
    # Without this every process starts as many threads as the machine has cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // nproc, 1)))
    try:
        mp.start_processes(_worker, (function, list(arguments), environment, offset), nproc, start_method="spawn")
    except mp.ProcessExitedException as error:
        return error.exit_code
    return 0


def _worker(
    index: int, function: Callable[..., int], arguments: list[str], environment: dict[str, str], offset: int
) -> None:
    """Run `function` in a new process, whose environment names its place in the process group."""
    os.environ.update(environment, RANK=str(offset + index), LOCAL_RANK=str(index))
    leave(function(arguments))


def main_is_guarded() -> bool:
    """Whether a new process, which imports the script that is run, does not run it once more.

    It does where what the script runs is not under ``if __name__ == "__main__":``. A session without a script, a
    notebook's for example, has nothing to import.
    """
    path = getattr(sys.modules["__main__"], "__file__", None)
    if path is None:
        return True
    try:
        statements = ast.parse(Path(path).read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return False  # a script on the standard input, for example, which cannot be imported
    tests = [statement.test for statement in statements if isinstance(statement, ast.If)]
    return any(isinstance(name, ast.Name) and name.id == "__name__" for test in tests for name in ast.walk(test))


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes for work that is not shared by batches.

    They end with this process, even if it is killed, and at once where an error or Ctrl-C leaves the context.

    Parameters
    ----------
    workers : int
        Number of processes.

    Raises
    ------
    AdaRecError
        If they would run the user's script once more, see `main_is_guarded`.
    """
    if not main_is_guarded():
        raise AdaRecError(
            f"{getattr(sys.modules['__main__'], '__file__', '')}: several processes need what it runs to be under "
            'if __name__ == "__main__":, as each of them imports it'
        )
    others = set(multiprocessing.active_children())
    # Spawned, not forked: torch's threads do not survive a fork.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        yield pool
    except BaseException:
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)  # waits for the thread that joins the workers; to join them here too, races


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it ends: a killed parent would leave this worker running."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if parent := multiprocessing.parent_process():

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
