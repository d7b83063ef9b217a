"""Instruments of the benchmark: clocks, memory, steps of a trainer, synthetic data."""

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

from recbole_adarec.studies.benchmark.tables import Measured
from recbole_adarec.trainer import base


def clock() -> float:
    """Seconds, once an accelerator has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and number of measurements, in four digits."""
    q1, median, q3 = (float(f"{value:.4g}") for value in np.percentile(values, (25, 50, 75)))
    return {"median": median, "q1": q1, "q3": q3, "n": len(values)}


def ratio_quartiles(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Ratios of measurements that were made together."""
    return quartiles([a / b for a, b in zip(above, below, strict=True)])


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Put `value` in the place of an attribute of an object, class or module for a while."""
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:  # a method, found on the class again
            delattr(owner, name)
        else:
            setattr(owner, name, before)


class Stopwatch:
    """Milliseconds of named parts of the code, without a line in that code; a part within another counts alone."""

    def __init__(self) -> None:
        self.ms: defaultdict[str, float] = defaultdict(float)
        self._within = [0.0]  # time of the parts inside each part that is under way

    @contextmanager
    def on(self, parts: Sequence[tuple[str, Any, str]]) -> Iterator[None]:
        """Time attributes, each given as name of its part, owner and name; they are as before afterwards."""
        with ExitStack() as stack:
            for part, owner, name in parts:
                stack.enter_context(replaced(owner, name, self._timed(part, getattr(owner, name))))
            yield

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._within.append(0.0)
            start = clock()
            try:
                return function(*args, **kwargs)
            finally:
                ms = 1e3 * (clock() - start)
                self.ms[part] += ms - self._within.pop()
                self._within[-1] += ms

        return timed


class PeakMemory:
    """The largest resident memory of this process while the block runs, sampled every 20 ms, in MB."""

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
    """Give freed memory back to the system, so that a peak holds nothing that an earlier measurement left."""
    gc.collect()
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


class Stepper:
    """A trainer's steps one at a time, in the batches of its own epochs.

    Attributes
    ----------
    begin_s : float
        Seconds until the first batch of an epoch is there.
    targets, batch_targets : int
        Targets of an epoch and of the last batch, those that train the weights.
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
        """Seconds of the next step, its batch included."""
        start = clock()
        batch = next(self._batches, None)
        if batch is None:
            self._begin()
            start, batch = clock(), next(self._batches)
        self.batch_targets = batch.targets
        self.trainer._step(batch)
        return clock() - start

    def epoch_s(self) -> float:
        """Seconds of an epoch, estimated from the next step."""
        seconds = self.step()
        return self.begin_s + seconds / self.batch_targets * self.targets


def synthetic_interactions(interactions: int, items: int, seed: int = 0) -> pd.DataFrame:
    """Interactions of users with about 50 each, in which every one of `items` occurs and the others follow Zipf's law.

    With no more interactions than items an item occurs once at most, and none is popular.
    """
    rng = np.random.default_rng(seed)
    weight = 1 / np.arange(1, items + 1)
    drawn = rng.choice(items, max(interactions - items, 0), p=weight / weight.sum())
    item = np.concatenate([rng.permutation(items)[:interactions], drawn])
    user = rng.integers(max(interactions // 50, 1), size=interactions)
    columns = {"user_id:token": user, "item_id:token": rng.permutation(item)}
    return pd.DataFrame({**columns, "timestamp:float": np.arange(interactions)})


def search_parts(stepper: Stepper) -> list[tuple[str, Any, str]]:
    """The parts of a search step for `Stopwatch.on`; what none of them names is the rest."""
    trainer, distiller = stepper.trainer, stepper.trainer.distiller
    taught = [] if distiller is None else [
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
        *taught,
        ("item losses, with gradient", trainer, "item_loss"),
        ("backward", torch.Tensor, "backward"),
        ("backward", torch.autograd, "grad"),
        ("gradient of the gates", trainer.model, "alpha_gradient"),
        ("gradient clipping", base, "clip_gradients"),
        ("optimizer", trainer.optimizer, "step"),
        ("optimizer", trainer.optimizer, "zero_grad"),
        ("alpha optimizer", trainer.alpha_optimizer, "step"),
    ]


def machine(device: Any) -> Measured:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    with suppress(OSError):  # Linux knows better
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    if torch.device(device).type == "cuda":
        device = f"{device}, {torch.cuda.get_device_name(device)}"
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "device": str(device), **versions}
