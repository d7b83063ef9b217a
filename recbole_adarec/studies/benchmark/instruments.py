"""Instruments of the benchmark: clock and stopwatch, memory, single steps of a trainer, synthetic data."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil  # type: ignore[import-untyped]
import torch

from recbole_adarec.studies.benchmark.tables import Measurements
from recbole_adarec.trainer import base


def clock() -> float:
    """Seconds of a clock, read when an accelerator has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of measurements, with four significant digits, and how many there are."""
    q1, median, q3 = (float(f"{value:.4g}") for value in np.percentile(values, (25, 50, 75)))
    return {"median": median, "q1": q1, "q3": q3, "n": len(values)}


def ratio_quartiles(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """`quartiles` of the ratios of measurements that were made in pairs."""
    return quartiles([a / b for a, b in zip(numerators, denominators, strict=True)])


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute of an object, class or module within the block; it is restored afterwards."""
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:  # a method: the attribute of the class is visible again
            delattr(owner, name)
        else:
            setattr(owner, name, before)


class Stopwatch:
    """Measures the time of named parts of the code without a change of that code.

    The time of a part does not include the parts that it calls.

    Attributes
    ----------
    ms : dict of str to float
        Milliseconds of each part.
    """

    def __init__(self) -> None:
        self.ms: defaultdict[str, float] = defaultdict(float)
        self._inner_ms = [0.0]  # for each part that is running: milliseconds of the parts that it called

    @contextmanager
    def timing(self, parts: Sequence[tuple[str, Any, str]]) -> Iterator[None]:
        """Time functions within the block; they are restored afterwards.

        Parameters
        ----------
        parts : sequence of (str, object, str)
            Name of the part, and the object and attribute that hold a function; a part can have several.
        """
        with ExitStack() as stack:
            for part, owner, name in parts:
                stack.enter_context(replaced(owner, name, self._timed(part, getattr(owner, name))))
            yield

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner_ms.append(0.0)
            start = clock()
            try:
                return function(*args, **kwargs)
            finally:
                ms = 1e3 * (clock() - start)
                self.ms[part] += ms - self._inner_ms.pop()
                self._inner_ms[-1] += ms

        return timed


class PeakMemory:
    """Context manager that samples the resident memory of this process every 20 ms.

    Attributes
    ----------
    mb : float
        The largest sample so far, in MB.
    """

    def __enter__(self) -> PeakMemory:
        self.mb, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        process = psutil.Process()
        while True:
            self.mb = max(self.mb, process.memory_info().rss / 1e6)
            if self._done.wait(0.02):
                return

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def release_memory() -> None:
    """Return freed memory to the system, so that the next peak does not include memory of earlier measurements."""
    gc.collect()
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


class Stepper:
    """Takes the steps of a trainer one at a time, with the batches of its epochs.

    Parameters
    ----------
    trainer : StageTrainer
        After `fit` has prepared it.
    loader : DataLoader
        The training data.

    Attributes
    ----------
    begin_s : float
        Seconds from the beginning of an epoch to its first batch.
    targets, batch_targets : int
        Targets of an epoch, and of the last batch; of the search those of w.
    """

    def __init__(self, trainer: Any, loader: Any) -> None:
        self.trainer, self.loader = trainer, loader
        self.batch_targets = 0
        trainer.model.train()
        trainer._set_learning_rate(0.5)
        self._begin()

    def _begin(self) -> None:
        start = clock()
        windows = self.trainer.windows(self.loader)
        self.targets = int(self.loader._dataset.windows.length[windows].sum())
        batches = self.trainer.batches(self.loader, windows)
        self._batches = chain([next(batches)], batches)
        self.begin_s = clock() - start

    def step(self) -> float:
        """Take the next step; returns its seconds, including those of its batch."""
        start = clock()
        batch = next(self._batches, None)
        if batch is None:
            self._begin()
            start, batch = clock(), next(self._batches)
        self.batch_targets = batch.targets
        self.trainer._step(batch)
        return clock() - start

    def estimate_epoch_s(self) -> float:
        """Take the next step; returns the seconds of an epoch, estimated from it."""
        seconds = self.step()
        return self.begin_s + seconds / self.batch_targets * self.targets


def synthetic_interactions(interactions: int, items: int, seed: int = 0) -> pd.DataFrame:
    """Synthetic interactions whose items follow Zipf's law, about 50 for each user.

    Parameters
    ----------
    interactions, items : int
        How many. Every item occurs once, as far as there are interactions; the others are drawn by Zipf's law.
    seed : int
        Seed of the draws.

    Returns
    -------
    DataFrame
        Columns ``user_id:token``, ``item_id:token`` and ``timestamp:float``.
    """
    rng = np.random.default_rng(seed)
    weight = 1 / np.arange(1, items + 1)
    drawn = rng.choice(items, max(interactions - items, 0), p=weight / weight.sum())
    item = np.concatenate([rng.permutation(items)[:interactions], drawn])
    user = rng.integers(max(interactions // 50, 1), size=interactions)
    columns = {"user_id:token": user, "item_id:token": rng.permutation(item)}
    return pd.DataFrame({**columns, "timestamp:float": np.arange(interactions)})


def search_parts(stepper: Stepper) -> list[tuple[str, Any, str]]:
    """The parts of a search step, for `Stopwatch.timing`.

    Parameters
    ----------
    stepper : Stepper
        The steps of a search.
    """
    trainer, distiller = stepper.trainer, stepper.trainer.distiller
    distillation = [] if distiller is None else [
        ("teacher outputs", trainer.outputs, "targets_of"),
        ("projections, layer distances", distiller, "forward"),
        ("layer transport", distiller.mapping, "forward"),
        ("layer transport", distiller.mapping, "update"),
    ]  # fmt: skip
    return [
        ("building the batch", stepper.loader, "collate_fn"),
        ("draw of a path", trainer.model, "sample"),
        ("encode", trainer.model, "encode_path"),
        ("encode", trainer.model, "encode_traced"),
        *distillation,
        ("item losses, with gradient", trainer, "item_loss"),
        ("backward", torch.Tensor, "backward"),
        ("backward", torch.autograd, "grad"),
        ("gradient of the gates", trainer.model, "alpha_gradient"),
        ("gradient clipping", base, "clip_gradients"),
        ("optimizer", trainer.optimizer, "step"),
        ("optimizer", trainer.optimizer, "zero_grad"),
        ("alpha optimizer", trainer.alpha_optimizer, "step"),
    ]


def describe_machine(device: Any) -> Measurements:
    """The machine of the measurements: CPU, cores, threads, device, versions of torch and Python."""
    cpu = platform.processor() or platform.machine()
    with suppress(OSError):  # on Linux this file has the full name
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    if torch.device(device).type == "cuda":
        device = f"{device}, {torch.cuda.get_device_name(device)}"
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "device": str(device), **versions}
