"""What training, search and serving cost on this machine: medians and quartiles, measured in turn in one process."""

from __future__ import annotations

import copy
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import recbole.trainer.trainer
import torch
from recbole.utils import get_model, get_trainer, init_seed
from tqdm import tqdm

from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.config.stages import make_config, stage_config, stage_values
from recbole_adarec.data.loading import Loaders, load_data
from recbole_adarec.data.windows import Windows
from recbole_adarec.errors import AdaRecError
from recbole_adarec.evaluation.profile import count_macs, count_parameters, measure_speed
from recbole_adarec.interop.patches import recbole_patches
from recbole_adarec.storage.files import write_text
from recbole_adarec.storage.model_files import save_model
from recbole_adarec.studies.benchmark.instruments import (
    PeakMemory,
    Stepper,
    Stopwatch,
    clock,
    machine,
    quartiles,
    ratio_quartiles,
    release_memory,
    replaced,
    search_parts,
    synthetic_interactions,
)
from recbole_adarec.studies.benchmark.ranking import measure_ranking
from recbole_adarec.studies.benchmark.tables import TABLES, Measured

BENCHMARK_FORMAT = "recbole-adarec-benchmark/1"
PARTS = ("teacher", "search", "inference", "growth", "ranking")
_WARM_UP = 3  # steps that are not counted: the first ones take memory and make lazy state
_WINDOWS = 64  # full windows in a batch of the search step
_CELLS = (10**5, 10**4), (10**6, 10**4), (10**7, 10**4), (10**6, 10**3), (10**6, 10**5), (10**6, 10**6)


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


class Benchmark:
    """The measurements of one configuration, a method for each of `PARTS`.

    Parameters
    ----------
    config_files, overrides
        As in `recbole_adarec.config.resolve_user_config.resolve_user_config`.
    sizes : Sizes
        How much is measured.
    folder : path-like
        For checkpoints and synthetic data.
    """

    def __init__(self, config_files: list[str], overrides: dict[str, Any], sizes: Sizes, folder: str | Path) -> None:
        self.files, self.sizes, self.folder = config_files, sizes, Path(folder)
        self.overrides = overrides | {"checkpoint_dir": str(folder)}
        self.values = resolve_user_config(None, config_files, self.overrides)
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

    def teacher(self) -> Measured:
        """Our teacher's training against that of RecBole's NextItNet of the same size, turn by turn.

        RecBole trains its sequential models with torch's anomaly detection on (its SINE switches it on for the whole
        process, see `recbole_adarec.interop.patches`). It is measured as it is by itself, and without that
        too, as it is here.
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
        result: Measured = {}
        for name, of_turns in rates.items():
            model, targets = (
                (ours.trainer.model, config["train_batch_size"]) if name == "ours" else (trainer.model, rows)
            )
            result[name] = {"parameters": count_parameters(model), "batch_targets": targets}
            result[name] |= {
                "targets_per_s": quartiles(of_turns),
                "ours_against_it": ratio_quartiles(rates["ours"], of_turns),
            }
        result["ours"]["epoch_s"] = quartiles([ours.begin_s + ours.targets / rate for rate in rates["ours"]])
        return result

    def search(self) -> Measured:
        """The search step with its parts, and a search epoch against one of the student's training."""
        path = self._saved_teacher(self.values, self.data.train._dataset)
        return {**self._search_step(path), "epoch": self._search_epoch(path)}

    def _search_step(self, teacher_path: str) -> Measured:
        values = resolve_user_config(None, self.files, {"search_hidden_size": 32, "nodes": 3} | self.overrides)
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
        result: Measured = {"batch_targets": stepper.batch_targets}
        for key, rows in (("batch_ms", plain), ("batch_with_stopwatch_ms", watched)):
            result[key] = quartiles([(row["weights"]["step"] + row["alpha"]["step"]) / 2 for row in rows])
        names = dict.fromkeys([part for part, _, _ in parts] + ["rest"])
        for side in ("weights", "alpha"):
            of_part = {name: [row[side].get(name, 0.0) for row in watched] for name in names}
            result[side] = {"step_ms": quartiles([row[side]["step"] for row in plain])}
            result[side]["parts_ms"] = {name: quartiles(values) for name, values in of_part.items() if any(values)}
        return result

    def _search_epoch(self, teacher_path: str) -> Measured:
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
        result: Measured = {"search_s": quartiles(of_search), "student_s": quartiles(of_student)}
        return {**result, "ratio": ratio_quartiles(of_search, of_student)}

    def inference(self) -> Measured:
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
        result: Measured = {}
        for name, model in models.items():
            result[name] = {"parameters": count_parameters(model), "macs_per_sequence": count_macs(model, longest)}
            result[name] |= {key: quartiles([pick(speed[name]) for speed in rounds]) for key, pick in picks.items()}
        for key in ("batch_1_p50_ms", "batch_256_ms"):
            teacher, student = ([picks[key](speed[name]) for speed in rounds] for name in ("teacher", "student"))
            result[key.replace("_ms", "_ratio")] = ratio_quartiles(teacher, student)
        return result

    def growth(self) -> list[Measured]:
        """Time and memory of loading, teacher and search on synthetic data of several sizes."""
        self.__dict__.pop("data", None)  # its memory is not theirs
        cells = []
        for interactions, items in self.sizes.cells:
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                cells.append(self._cell(interactions, items, Path(folder)))
        return cells

    def ranking(self) -> Measured:
        """The ten best of a large catalog, by scoring all of it and by what an adaptive item table leaves out."""
        config = stage_config(self.values, "cprec")
        found = measure_ranking(config, self.sizes.catalog, self.sizes.rankings)
        result: Measured = {"catalog": self.sizes.catalog} | {key: quartiles(values) for key, values in found.items()}
        return {**result, "ratio": ratio_quartiles(found["full_ms"], found["bounded_ms"])}

    def _cell(self, interactions: int, items: int, folder: Path) -> Measured:
        name = "synthetic"
        (folder / name).mkdir()
        table = synthetic_interactions(interactions, items)
        table.to_csv(folder / name / f"{name}.inter", sep="\t", index=False)
        fields = {"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp"}
        own = {"dataset": name, "data_path": str(folder), "load_col": {"inter": list(fields.values())}, **fields}
        values = resolve_user_config(None, self.files, self.overrides | own)
        del table
        release_memory()
        with PeakMemory() as peak:
            start = clock()
            data = load_data(stage_config(values, "teacher"))
            load_s = clock() - start
        targets = int(data.train._dataset.windows.length.sum())
        cell: Measured = {"interactions": interactions, "catalog": data.dataset.item_num - 1, "targets": targets}
        cell |= {"users": data.dataset.user_num - 1, "load_s": quartiles([load_s]), "peak_mb": {"load": round(peak.mb)}}
        path = self._saved_teacher(values, data.train._dataset)
        for stage in ("teacher", "search"):
            release_memory()
            extra: Measured = {"teacher_path": path, "alpha_warmup": 0} if stage == "search" else {}
            with PeakMemory() as peak:
                start = clock()
                stepper = self._stepper(stage_config(values, stage, **extra), data)
                prepare_s = clock() - start
                seconds = self._epochs(stepper, f"{stage}, {interactions:,} x {items:,}")
            cell[stage] = {"item_loss": stepper.trainer.item_loss.mode, "prepare_s": quartiles([prepare_s])}
            cell[stage]["epoch_s"] = quartiles(seconds)
            cell[stage]["us_per_target"] = quartiles([1e6 * value / targets for value in seconds])
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


@recbole_patches()
def run_benchmark(
    config_files: list[str],
    overrides: dict[str, Any],
    parts: Sequence[str] = PARTS,
    sizes: Sizes = FULL,
    output: str | Path = "benchmark.json",
) -> Measured:
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
        result: Measured = {
            "format": BENCHMARK_FORMAT,
            "machine": machine(work.config["device"]),
            "quick": sizes == QUICK,
        }
        # What can be refused is refused before anything is measured, and before an older result is replaced.
        if set(parts) - {"growth", "ranking"}:
            work.data  # noqa: B018
        if not Path(output).is_file():
            write_text(output, json.dumps(result) + "\n")
        for part in (part for part in PARTS if part in parts):
            result[part] = work.measure(part)
            write_text(output, json.dumps(result, indent=1) + "\n")
            print(f"\n{TABLES[part](result[part])}", flush=True)
    return result
