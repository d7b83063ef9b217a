"""What training, search and serving cost on this machine: medians and quartiles, measured in turn in one process."""

from __future__ import annotations

import copy
import ctypes
import gc
import json
import os
import platform
import sys
import tempfile
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property, wraps
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import psutil  # type: ignore[import-untyped]
import recbole.trainer.trainer
import torch
from recbole.utils import get_model, get_trainer, init_seed
from tabulate import tabulate
from tqdm import tqdm

from recbole_adarec.checkpoints import save_model
from recbole_adarec.config import make_config, resolve, stage_config, stage_values
from recbole_adarec.data.loading import Loaders, load_data
from recbole_adarec.data.windows import Windows
from recbole_adarec.errors import AdaRecError
from recbole_adarec.evaluation.profile import count_macs, count_parameters, measure_speed
from recbole_adarec.evaluation.ranking import measure_ranking
from recbole_adarec.files import write_text
from recbole_adarec.interop.patches import recbole_patches
from recbole_adarec.trainer import base

FORMAT = "recbole-adarec-benchmark/1"
PARTS = ("teacher", "search", "inference", "growth", "ranking")
_WARM_UP = 3  # steps that are not counted: the first ones take memory and make lazy state
_WINDOWS = 64  # full windows in a batch of the search step
_CELLS = (10**5, 10**4), (10**6, 10**4), (10**7, 10**4), (10**6, 10**3), (10**6, 10**5), (10**6, 10**6)

Result = dict[str, Any]


class Sizes(NamedTuple):
    """How much is measured."""

    turns: int = 5  # part "teacher": of ours and RecBole's
    recbole_rows: int = 2048  # RecBole's own train_batch_size
    our_batches: int = 16  # of a turn
    search_steps: int = 30  # timed as a whole, and as many by parts
    epoch_steps: int = 40  # behind the estimates of a search epoch
    rounds: int = 5  # part "inference"
    requests: int | None = None  # of a round; None: latency_repeats
    cells: tuple[tuple[int, int], ...] = _CELLS  # part "growth": interactions and items
    growth_steps: int = 30  # for each stage of a cell,
    growth_seconds: int = 60  # fewer if they take longer
    catalog: int = 10**6  # part "ranking": items,
    rankings: int = 50  # and requests


FULL = Sizes()
QUICK = Sizes(2, 64, 4, 3, 6, 2, 20, ((20_000, 1_000), (100_000, 1_000), (20_000, 10_000)), 5, 3, 10**5, 10)

# ---------------------------------------------------------------------- instruments


def clock() -> float:
    """Seconds, once an accelerator has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def figure(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and number of measurements, in four digits."""
    q1, median, q3 = (float(f"{value:.4g}") for value in np.percentile(values, (25, 50, 75)))
    return {"median": median, "q1": q1, "q3": q3, "n": len(values)}


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Ratios of measurements that were made together."""
    return figure([a / b for a, b in zip(above, below, strict=True)])


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


# ---------------------------------------------------------------------- measurements


class Benchmark:
    """The measurements of one configuration, a method for each of `PARTS`.

    Parameters
    ----------
    config_files, overrides
        As in `recbole_adarec.config.resolve`.
    sizes : Sizes
        How much is measured.
    folder : path-like
        For checkpoints and synthetic data.
    """

    def __init__(self, config_files: list[str], overrides: dict[str, Any], sizes: Sizes, folder: str | Path) -> None:
        self.files, self.sizes, self.folder = config_files, sizes, Path(folder)
        self.overrides = overrides | {"checkpoint_dir": str(folder)}
        self.values = resolve(None, config_files, self.overrides)
        self.config = stage_config(self.values, "teacher")
        if self.values["threads"]:
            torch.set_num_threads(self.values["threads"])

    @cached_property
    def data(self) -> Loaders:
        """The dataset that the keys name, loaded once."""
        return load_data(self.config)

    @recbole_patches()
    def measure(self, part: str) -> Any:
        """One part, from the seed, whatever was measured before."""
        init_seed(self.config["seed"], self.config["reproducibility"])
        # RecBole's trainers would open a TensorBoard folder where the user stands.
        quiet = replaced(recbole.trainer.trainer, "get_tensorboard", lambda _: None)
        with quiet, warnings.catch_warnings(), torch.autograd.set_detect_anomaly(False):
            warnings.simplefilter("ignore", FutureWarning)  # RecBole's own use of torch
            return getattr(self, part)()

    def _times(self, count: int, what: str) -> Iterator[int]:
        return iter(tqdm(range(count), desc=what, disable=not self.config["show_progress"]))

    @staticmethod
    def _trainer(config: Any, dataset: Any) -> Any:
        model = get_model(config["model"])(config, dataset).to(config["device"])
        return get_trainer(config["MODEL_TYPE"], config["model"])(config, model)

    def _stepper(self, config: Any, data: Loaders) -> Stepper:
        """A stage just before its first step: `fit` has prepared it, and trained nothing."""
        loader = data.for_stage(config).train
        trainer = self._trainer(config, loader._dataset)
        with replaced(recbole.trainer.Trainer, "fit", lambda *_, **__: (0.0, None)):
            trainer.fit(loader)
        return Stepper(trainer, loader)

    def _saved_teacher(self, values: dict[str, Any], dataset: Any) -> str:
        """An untrained teacher costs as much as a trained one."""
        config, path = stage_config(values, "teacher"), self.folder / "teacher.pth"
        save_model(path, get_model(config["model"])(config, dataset), config)
        return str(path)

    def teacher(self) -> Result:
        """Our teacher's training against that of RecBole's NextItNet of the same size, turn by turn.

        RecBole trains its sequential models with torch's anomaly detection on (its SINE switches it on for the whole
        process, see `recbole_adarec.interop.patches`). It is measured as it is by itself, and without that too, as it
        is here.
        """
        config, rows = stage_config(self.values, "teacher", backbone="NextItNet"), self.sizes.recbole_rows
        ours = self._stepper(config, self.data)
        stock = stage_values(self.values, "baseline")
        stock |= {key: config[key] for key in ("kernel_size", "block_num", "dilations")}
        stock |= {"embedding_size": config["hidden_size"], "loss_type": "CE", "train_batch_size": rows}
        data = load_data(stock_config := make_config("NextItNet", stock))
        trainer = self._trainer(stock_config, data.train._dataset)
        batches = chain.from_iterable(iter(lambda: data.train, None))  # epoch after epoch

        def our_turn() -> float:
            steps = [(ours.step(), ours.batch_targets) for _ in range(self.sizes.our_batches)]
            return sum(targets for _, targets in steps) / sum(seconds for seconds, _ in steps)

        def recbole_turn(count: int = rows) -> float:
            start = clock()
            batch = next(batches)[:count]
            trainer._train_epoch([batch], 0)  # RecBole's own epoch, of one batch
            return len(batch) / (clock() - start)

        turns = {"ours": our_turn, "recbole": recbole_turn, "recbole_without_anomaly_detection": recbole_turn}
        rates: dict[str, list[float]] = {name: [] for name in turns}
        our_turn()
        recbole_turn(min(rows, 64))
        for _ in self._times(self.sizes.turns, "teacher"):
            for name, turn in turns.items():
                with torch.autograd.set_detect_anomaly(name == "recbole"):
                    rates[name].append(turn())
        result: Result = {}
        for name, of_turns in rates.items():
            model, targets = (
                (ours.trainer.model, config["train_batch_size"]) if name == "ours" else (trainer.model, rows)
            )
            result[name] = {"parameters": count_parameters(model), "batch_targets": targets}
            result[name] |= {"targets_per_s": figure(of_turns), "ours_against_it": ratio(rates["ours"], of_turns)}
        result["ours"]["epoch_s"] = figure([ours.begin_s + ours.targets / rate for rate in rates["ours"]])
        return result

    def search(self) -> Result:
        """The search step with its parts, and a search epoch against one of the student's training."""
        path = self._saved_teacher(self.values, self.data.train._dataset)
        return {**self._search_step(path), "epoch": self._search_epoch(path)}

    def _search_step(self, teacher_path: str) -> Result:
        values = resolve(None, self.files, {"search_hidden_size": 32, "nodes": 3} | self.overrides)
        length = self.config["MAX_ITEM_LIST_LENGTH"]
        extra = {"teacher_path": teacher_path, "alpha_warmup": 0, "train_batch_size": _WINDOWS * length}
        config = stage_config(values, "search", **extra)
        loader = copy.copy(self.data.train)
        loader._dataset = dataset = copy.copy(loader._dataset)
        full = dataset.windows.length == length
        if not full.any():
            raise AdaRecError(f"the search step is measured on full windows, and none has {length} targets")
        dataset.windows = Windows(*(field[full] for field in dataset.windows))
        stepper = self._stepper(config, self.data._replace(train=loader))
        trainer, parts = stepper.trainer, search_parts(stepper)

        def weights_step() -> None:
            with replaced(trainer, "after_step", lambda: None):
                stepper.step()

        # Every other step runs without the stopwatch, which shows what the stopwatch itself costs.
        plain: list[dict[str, dict[str, float]]] = []
        watched: list[dict[str, dict[str, float]]] = []
        for k in self._times(2 * (self.sizes.search_steps + _WARM_UP), "search step"):
            sides = {}
            for side, act in (("weights", weights_step), ("alpha", trainer.after_step)):
                watch = Stopwatch()
                with watch.on(parts if k % 2 else []):
                    start = clock()
                    act()
                    whole = 1e3 * (clock() - start)
                sides[side] = {**watch.ms, "rest": whole - sum(watch.ms.values()), "step": whole}
            if k >= 2 * _WARM_UP:
                (watched if k % 2 else plain).append(sides)
        result: Result = {"batch_targets": stepper.batch_targets}
        for key, rows in (("batch_ms", plain), ("batch_with_stopwatch_ms", watched)):
            result[key] = figure([(row["weights"]["step"] + row["alpha"]["step"]) / 2 for row in rows])
        names = dict.fromkeys([part for part, _, _ in parts] + ["rest"])
        for side in ("weights", "alpha"):
            of_part = {name: [row[side].get(name, 0.0) for row in watched] for name in names}
            result[side] = {"step_ms": figure([row[side]["step"] for row in plain])}
            result[side]["parts_ms"] = {name: figure(values) for name, values in of_part.items() if any(values)}
        return result

    def _search_epoch(self, teacher_path: str) -> Result:
        config = stage_config(self.values, "search", teacher_path=teacher_path, alpha_warmup=0)
        search = self._stepper(config, self.data)
        # The student that this search would hand over, unless one is given.
        architecture = self.values["architecture"] or search.trainer.model.derive().to_dict()
        config = stage_config(self.values, "student", teacher_path=teacher_path, architecture=architecture)
        student = self._stepper(config, self.data)
        for _ in range(_WARM_UP):
            search.step(), student.step()
        pairs = [(search.epoch_s(), student.epoch_s()) for _ in self._times(self.sizes.epoch_steps, "search epoch")]
        of_search, of_student = zip(*pairs, strict=True)
        result: Result = {"search_s": figure(of_search), "student_s": figure(of_student)}
        return {**result, "ratio": ratio(of_search, of_student)}

    def inference(self) -> Result:
        """Latency and throughput of the student and its teacher, both untrained."""
        configs = {stage: stage_config(self.values, stage) for stage in ("teacher", "student")}
        test, device = self.data.test._dataset, self.config["device"]
        models = {
            stage: get_model(config["model"])(config, self.data.train._dataset).to(device).eval()
            for stage, config in configs.items()
        }
        rows = test[torch.arange(min(len(test), 256))].to(device)
        longest = rows[rows[test.item_list_length_field].argmax().reshape(1)]
        requests = self.sizes.requests or self.values["latency_repeats"]
        rounds = [measure_speed(models, rows, requests) for _ in self._times(self.sizes.rounds, "inference")]
        picks: dict[str, Callable[[Any], float]] = {
            "batch_1_p50_ms": lambda speed: speed["latency_ms"]["batch_1_p50"],
            "batch_1_p99_ms": lambda speed: speed["latency_ms"]["batch_1_p99"],
            "batch_256_ms": lambda speed: 256e3 / speed["sequences_per_second"],
            "sequences_per_s": lambda speed: speed["sequences_per_second"],
        }
        result: Result = {}
        for name, model in models.items():
            result[name] = {"parameters": count_parameters(model), "macs_per_sequence": count_macs(model, longest)}
            result[name] |= {key: figure([pick(speed[name]) for speed in rounds]) for key, pick in picks.items()}
        for key in ("batch_1_p50_ms", "batch_256_ms"):
            teacher, student = ([picks[key](speed[name]) for speed in rounds] for name in ("teacher", "student"))
            result[key.replace("_ms", "_ratio")] = ratio(teacher, student)
        return result

    def growth(self) -> list[Result]:
        """Time and memory of loading, teacher and search on synthetic data of several sizes."""
        self.__dict__.pop("data", None)  # its memory is not theirs
        cells = []
        for interactions, items in self.sizes.cells:
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                cells.append(self._cell(interactions, items, Path(folder)))
        return cells

    def ranking(self) -> Result:
        """The ten best of a large catalog, by scoring all of it and by what an adaptive item table leaves out."""
        config = stage_config(self.values, "cprec")
        found = measure_ranking(config, self.sizes.catalog, self.sizes.rankings)
        result: Result = {"catalog": self.sizes.catalog} | {key: figure(values) for key, values in found.items()}
        return {**result, "ratio": ratio(found["full_ms"], found["bounded_ms"])}

    def _cell(self, interactions: int, items: int, folder: Path) -> Result:
        name = "synthetic"
        (folder / name).mkdir()
        table = synthetic_interactions(interactions, items)
        table.to_csv(folder / name / f"{name}.inter", sep="\t", index=False)
        fields = {"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp"}
        own = {"dataset": name, "data_path": str(folder), "load_col": {"inter": list(fields.values())}, **fields}
        values = resolve(None, self.files, self.overrides | own)
        del table
        release_memory()
        with PeakMemory() as peak:
            start = clock()
            data = load_data(stage_config(values, "teacher"))
            load_s = clock() - start
        targets = int(data.train._dataset.windows.length.sum())
        cell: Result = {"interactions": interactions, "catalog": data.dataset.item_num - 1, "targets": targets}
        cell |= {"users": data.dataset.user_num - 1, "load_s": figure([load_s]), "peak_mb": {"load": round(peak.mb)}}
        path = self._saved_teacher(values, data.train._dataset)
        for stage in ("teacher", "search"):
            release_memory()
            extra: Result = {"teacher_path": path, "alpha_warmup": 0} if stage == "search" else {}
            with PeakMemory() as peak:
                start = clock()
                stepper = self._stepper(stage_config(values, stage, **extra), data)
                prepare_s = clock() - start
                seconds = self._epochs(stepper, f"{stage}, {interactions:,} x {items:,}")
            cell[stage] = {"item_loss": stepper.trainer.item_loss.mode, "prepare_s": figure([prepare_s])}
            cell[stage]["epoch_s"] = figure(seconds)
            cell[stage]["us_per_target"] = figure([1e6 * value / targets for value in seconds])
            cell["peak_mb"][stage] = round(peak.mb)
            del stepper
        return cell

    def _epochs(self, stepper: Stepper, what: str) -> list[float]:
        """Estimates of an epoch's seconds, as many as the time allows, three at least."""
        for _ in range(_WARM_UP):
            stepper.step()
        seconds: list[float] = []
        start = clock()
        for _ in self._times(self.sizes.growth_steps, what):
            seconds.append(stepper.epoch_s())
            if len(seconds) >= 3 and clock() - start > self.sizes.growth_seconds:
                break
        return seconds


def search_parts(stepper: Stepper) -> list[tuple[str, Any, str]]:
    """The parts of a search step for `Stopwatch.on`; what none of them names is the rest."""
    trainer, distiller = stepper.trainer, stepper.trainer.distiller
    taught = [] if distiller is None else [
        ("teacher outputs", trainer.outputs, "lesson"),
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


# ---------------------------------------------------------------------- for people


def _text(value: Any) -> str:
    """A number, or a median with its quartiles."""
    if isinstance(value, dict):
        spread = f" ({_text(value['q1'])} to {_text(value['q3'])})" if value["n"] > 1 else ""
        return _text(value["median"]) + spread
    return value if isinstance(value, str) else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _table(title: str, header: str, rows: Sequence[Sequence[Any]], note: str) -> str:
    """As in the report of a run; the columns of the header are set off by ``|``, the first one is words."""
    names, cells = [name.strip() for name in header.split("|")], [[_text(value) for value in row] for row in rows]
    align = ["left"] + ["right"] * (len(names) - 1)
    return f"{title}\n\n{tabulate(cells, names, tablefmt='github', disable_numparse=True, colalign=align)}\n\n{note}"


def _teacher_table(result: Result) -> str:
    rows = []
    for name, label in (("ours", "ours"), ("recbole", "RecBole's NextItNet, by itself"),
                        ("recbole_without_anomaly_detection", "the same, no anomaly detection")):  # fmt: skip
        one = result[name]
        sizes = [one["parameters"]["layers"], one["parameters"]["total"], one["batch_targets"]]
        rows.append([label, *sizes, one["targets_per_s"], "" if name == "ours" else one["ours_against_it"]])
    note = f"An epoch of ours, estimated from batches: {_text(result['ours']['epoch_s'])} s. Medians (quartiles)."
    header = "| layer params | params | targets/batch | targets/s | ours is faster, times"
    return _table("Teacher training", header, rows, note)


def _search_table(result: Result) -> str:
    rows, sides = [], [result["weights"], result["alpha"]]
    for part in dict.fromkeys(chain(*(side["parts_ms"] for side in sides))):
        row = [part]
        for side in sides:
            ms = side["parts_ms"].get(part)
            whole = sum(value["median"] for value in side["parts_ms"].values())
            row += ["–", "–"] if ms is None else [ms, f"{ms['median'] / whole:.1%}"]
        rows.append(row)
    rows.sort(key=lambda row: row[0] == "rest")
    rows.append(["whole step, no stopwatch", sides[0]["step_ms"], "", sides[1]["step_ms"], ""])
    epoch = result["epoch"]
    note = (
        f"A batch of {result['batch_targets']:,} targets, mean of a step of w and one of α with its own batch: "
        f"{_text(result['batch_ms'])} ms, with the stopwatch {_text(result['batch_with_stopwatch_ms'])} ms.\n"
        f"An epoch, estimated from batches: search {_text(epoch['search_s'])} s, student "
        f"{_text(epoch['student_s'])} s, ratio {_text(epoch['ratio'])}."
    )
    return _table("Search step", "part | w-step, ms | share | α-step, ms | share", rows, note)


def _inference_table(result: Result) -> str:
    keys = ("batch_1_p50_ms", "batch_1_p99_ms", "batch_256_ms", "sequences_per_s")
    models = {name: result[name] for name in ("teacher", "student")}
    rows = [[name, one["parameters"]["layers"], *(one[key] for key in keys)] for name, one in models.items()]
    note = (
        f"Student against teacher: latency of one request {_text(result['batch_1_p50_ratio'])} times lower, batches "
        f"{_text(result['batch_256_ratio'])} times faster."
    )
    header = "untrained | layer params | batch 1 p50, ms | p99, ms | batch 256, ms | sequences/s"
    return _table("Inference", header, rows, note)


def _growth_table(cells: list[Result]) -> str:
    rows = []
    for cell in cells:
        stages = [cell["teacher"], cell["search"]]
        medians = [stage[key]["median"] for stage in stages for key in ("epoch_s", "us_per_target")]
        loss = "/".join(dict.fromkeys(stage["item_loss"] for stage in stages))
        sizes = [cell["interactions"], cell["catalog"], loss, cell["load_s"]]
        rows.append([*sizes, *medians, stages[1]["prepare_s"], max(cell["peak_mb"].values())])
    header = "interactions | items | item loss | load, s | teacher, s | µs/target | search, s | µs/target"
    header += " | before it, s | peak MB"
    note = (
        "Estimates, no whole epochs: median time of a target over some tens of batches, times the targets; no "
        "evaluation.\nBefore it: a teacher is loaded and asked for every window, once. Peak: the whole process."
    )
    return _table("Growth on synthetic data: an epoch of teacher and search", header, rows, note)


def _ranking_table(result: Result) -> str:
    rows = [[name, result[key]] for name, key in (("all items scored", "full_ms"), ("blocks left out", "bounded_ms"))]
    note = (
        f"{result['catalog']:,} items, the same ten: {_text(result['ratio'])} times faster, "
        f"{100 * result['scored']['median']:.1f} % of the items scored."
    )
    return _table("Ten best, adaptive item table, one request", "untrained | ms", rows, note)


_TABLES: Mapping[str, Callable[[Any], str]] = {
    "teacher": _teacher_table,
    "search": _search_table,
    "inference": _inference_table,
    "growth": _growth_table,
    "ranking": _ranking_table,
}


def machine(device: Any) -> Result:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    with suppress(OSError):  # Linux knows better
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    if torch.device(device).type == "cuda":
        device = f"{device}, {torch.cuda.get_device_name(device)}"
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "device": str(device), **versions}


@recbole_patches()
def run_benchmark(
    config_files: list[str],
    overrides: dict[str, Any],
    parts: Sequence[str] = PARTS,
    sizes: Sizes = FULL,
    output: str | Path = "benchmark.json",
) -> Result:
    """Measure, print a table of each part as it is finished, and keep all of them in a JSON file.

    Parameters
    ----------
    config_files, overrides
        As in a run.
    parts : sequence of str
        Some of `PARTS`.
    sizes : Sizes
        How much is measured.
    output : path-like
        Written after each part, so that an interrupted benchmark keeps what it has.

    Returns
    -------
    dict
        What the file holds; units stand in the names.

    Raises
    ------
    AdaRecError
        For a part that is not known, and for all that a run refuses.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        wrong = f"unknown part {unknown[0]!r}" if unknown else "none is given"
        raise AdaRecError(f"parts: {wrong}; known are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as folder:
        work = Benchmark(config_files, overrides, sizes, folder)
        result: Result = {"format": FORMAT, "machine": machine(work.config["device"]), "quick": sizes == QUICK}
        # What can be refused is refused before anything is measured, and before an older result is replaced.
        if set(parts) - {"growth", "ranking"}:
            work.data  # noqa: B018
        if not Path(output).is_file():
            write_text(output, json.dumps(result) + "\n")
        for part in (part for part in PARTS if part in parts):
            result[part] = work.measure(part)
            write_text(output, json.dumps(result, indent=1) + "\n")
            print(f"\n{_TABLES[part](result[part])}", flush=True)
    return result
