"""The benchmark: time and memory of training, search and inference on this machine.

`Benchmark` has a method for each part; what is compared is measured in turn in one process. `run_benchmark` runs parts,
prints their tables and writes their measurements: medians with quartiles.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import recbole.trainer.trainer
import torch
from recbole.utils import init_seed
from tqdm import tqdm

from recbole_adarec.config.adarec_keys import AUTO
from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.config.stages import make_config, stage_config, stage_values
from recbole_adarec.data.loading import Loaders, load_data
from recbole_adarec.data.windows import Windows
from recbole_adarec.errors import AdaRecError
from recbole_adarec.evaluation.profile import count_macs, count_parameters, measure_speed, timing_rows
from recbole_adarec.interop.patches import recbole_patches
from recbole_adarec.memory import use_threads
from recbole_adarec.model.registry import get_model
from recbole_adarec.report.writing import json_text
from recbole_adarec.storage.files import write_text
from recbole_adarec.storage.model_files import save_model
from recbole_adarec.studies.benchmark.instruments import (
    PeakMemory,
    Stepper,
    Stopwatch,
    clock,
    describe_machine,
    quartiles,
    ratio_quartiles,
    release_memory,
    replaced,
    search_parts,
    synthetic_interactions,
)
from recbole_adarec.studies.benchmark.ranking import measure_ranking
from recbole_adarec.studies.benchmark.sizes import FULL, QUICK, Sizes
from recbole_adarec.studies.benchmark.tables import TABLES, Measurements
from recbole_adarec.trainer.registry import get_trainer

BENCHMARK_FORMAT = "recbole-adarec-benchmark/1"
PARTS = ("teacher", "search", "inference", "growth", "ranking")
_WARM_UP = 3  # steps that are not counted: the first ones allocate memory and create lazy state
_WINDOWS = 64  # full windows in a batch of the search step


class Benchmark:
    """Measures one configuration; it has a method for each of `PARTS`.

    Parameters
    ----------
    config_files, overrides
        As in `recbole_adarec.config.resolve.resolve_user_config`.
    sizes : Sizes
        How much is measured.
    folder : path-like
        Folder for checkpoints and synthetic data.

    Raises
    ------
    AdaRecError
        For values that a run refuses.
    """

    def __init__(self, config_files: list[str], overrides: dict[str, Any], sizes: Sizes, folder: str | Path) -> None:
        self.files, self.sizes, self.folder = config_files, sizes, Path(folder)
        self.overrides = overrides | {"checkpoint_dir": str(folder)}
        given = resolve_user_config(None, config_files, self.overrides)
        if given.get("MAX_ITEM_LIST_LENGTH") == AUTO:  # what is measured shall not depend on the data
            self.overrides["MAX_ITEM_LIST_LENGTH"] = 50
        if isinstance(given["backbone"], list):
            self.overrides["backbone"] = "NextItNet"
        self.values = resolve_user_config(None, config_files, self.overrides)
        self.config = stage_config(self.values, "teacher")
        self._data: Loaders | None = None
        use_threads(self.values["threads"])

    def load(self) -> Loaders:
        """The dataset of the configuration; it is loaded once."""
        if self._data is None:
            self._data = load_data(self.config)
        return self._data

    @recbole_patches()
    def measure(self, part: str) -> Any:
        """The measurements of one part; the seed is set first, so that they do not depend on earlier parts.

        Parameters
        ----------
        part : str
            One of `PARTS`.
        """
        init_seed(self.config["seed"], self.config["reproducibility"])
        # RecBole's trainers would write TensorBoard events into the current folder.
        quiet = replaced(recbole.trainer.trainer, "get_tensorboard", lambda _: None)
        with quiet, warnings.catch_warnings(), torch.autograd.set_detect_anomaly(False):
            warnings.simplefilter("ignore", FutureWarning)  # from RecBole's use of torch
            return getattr(self, part)()

    def _progress(self, count: int, what: str) -> Iterator[int]:
        """The numbers below `count`, with a progress bar."""
        return iter(tqdm(range(count), desc=what, disable=not self.config["show_progress"]))

    @staticmethod
    def _trainer(config: Any, dataset: Any) -> Any:
        model = get_model(config["model"])(config, dataset).to(config["device"])
        return get_trainer(config)(config, model)

    def _stepper(self, config: Any, data: Loaders) -> Stepper:
        """The steps of a stage, from the first: `fit` has prepared the trainer without training."""
        loader = data.for_stage(config).train
        trainer = self._trainer(config, loader._dataset)
        with replaced(recbole.trainer.Trainer, "fit", lambda *_, **__: (0.0, None)):
            trainer.fit(loader)
        return Stepper(trainer, loader)

    def _saved_teacher(self, values: dict[str, Any], dataset: Any) -> str:
        """Path of the file of an untrained teacher; it costs as much as a trained one."""
        config, path = stage_config(values, "teacher"), self.folder / "teacher.pth"
        save_model(path, get_model(config["model"])(config, dataset), config)
        return str(path)

    def teacher(self) -> Measurements:
        """Training of AdaRecTeacher and of RecBole's NextItNet of the same size, turn by turn.

        RecBole trains its sequential models with torch's anomaly detection on (its SINE switches it on for the whole
        process, see `recbole_adarec.interop.patches`). RecBole's model is measured with it, as in RecBole, and without
        it, as in this package.

        Returns
        -------
        dict
            ``ours``, ``recbole`` and ``recbole_without_anomaly_detection``: ``parameters``, ``batch_targets``,
            ``targets_per_s``, and ``ours_against_it``, the ratio of the rates; for ``ours`` also ``epoch_s``.
        """
        config, rows = stage_config(self.values, "teacher", backbone="NextItNet"), self.sizes.recbole_rows
        ours = self._stepper(config, self.load())
        recbole_values = stage_values(self.values, "baseline")
        recbole_values |= {key: config[key] for key in ("kernel_size", "block_num", "dilations")}
        recbole_values |= {"embedding_size": config["hidden_size"], "loss_type": "CE", "train_batch_size": rows}
        recbole_config = make_config("NextItNet", recbole_values)
        data = load_data(recbole_config)
        trainer = self._trainer(recbole_config, data.train._dataset)
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
        for _ in self._progress(self.sizes.turns, "teacher"):
            for name, turn in turns.items():
                with torch.autograd.set_detect_anomaly(name == "recbole"):
                    rates[name].append(turn())
        result: Measurements = {}
        for name, turn_rates in rates.items():
            model, targets = (
                (ours.trainer.model, config["train_batch_size"]) if name == "ours" else (trainer.model, rows)
            )
            result[name] = {
                "parameters": count_parameters(model),
                "batch_targets": targets,
                "targets_per_s": quartiles(turn_rates),
                "ours_against_it": ratio_quartiles(rates["ours"], turn_rates),
            }
        result["ours"]["epoch_s"] = quartiles([ours.begin_s + ours.targets / rate for rate in rates["ours"]])
        return result

    def search(self) -> Measurements:
        """The search step and its parts, and an epoch of the search against an epoch of the student's training.

        Returns
        -------
        dict
            ``batch_ms`` and ``batch_with_stopwatch_ms``: a batch without and with the stopwatch; ``weights`` and
            ``alpha``: ``step_ms`` and ``parts_ms`` of a step of w and of a step of α; ``epoch``: ``search_s``,
            ``student_s`` and their ``ratio``.
        """
        path = self._saved_teacher(self.values, self.load().train._dataset)
        return {**self._search_step(path), "epoch": self._search_epoch(path)}

    def _search_step(self, teacher_path: str) -> Measurements:
        values = resolve_user_config(None, self.files, {"search_hidden_size": 32, "nodes": 3} | self.overrides)
        length = self.config["MAX_ITEM_LIST_LENGTH"]
        extra = {"teacher_path": teacher_path, "alpha_warmup": 0, "train_batch_size": _WINDOWS * length}
        config = stage_config(values, "search", **extra)
        data = self.load()
        loader = copy.copy(data.train)
        loader._dataset = dataset = copy.copy(loader._dataset)
        full = dataset.windows.length == length
        if not full.any():
            raise AdaRecError(f"the search step is measured on full windows, and none has {length} targets")
        dataset.windows = Windows(*(field[full] for field in dataset.windows))
        stepper = self._stepper(config, data._replace(train=loader))
        trainer, parts = stepper.trainer, search_parts(stepper)

        def weights_step() -> None:
            with replaced(trainer, "after_step", lambda: None):
                stepper.step()

        # Every other step runs without the stopwatch: the difference is the cost of the stopwatch.
        plain: list[dict[str, dict[str, float]]] = []
        watched: list[dict[str, dict[str, float]]] = []
        for k in self._progress(2 * (self.sizes.search_steps + _WARM_UP), "search step"):
            sides = {}
            for side, act in (("weights", weights_step), ("alpha", trainer.after_step)):
                watch = Stopwatch()
                with watch.timing(parts if k % 2 else []):
                    start = clock()
                    act()
                    whole = 1e3 * (clock() - start)
                sides[side] = {**watch.ms, "rest": whole - sum(watch.ms.values()), "step": whole}
            if k >= 2 * _WARM_UP:
                (watched if k % 2 else plain).append(sides)
        result: Measurements = {"batch_targets": stepper.batch_targets}
        for key, rows in (("batch_ms", plain), ("batch_with_stopwatch_ms", watched)):
            result[key] = quartiles([(row["weights"]["step"] + row["alpha"]["step"]) / 2 for row in rows])
        names = dict.fromkeys([part for part, _, _ in parts] + ["rest"])
        for side in ("weights", "alpha"):
            part_times = {name: [row[side].get(name, 0.0) for row in watched] for name in names}
            result[side] = {"step_ms": quartiles([row[side]["step"] for row in plain])}
            result[side]["parts_ms"] = {name: quartiles(times) for name, times in part_times.items() if any(times)}
        return result

    def _search_epoch(self, teacher_path: str) -> Measurements:
        config = stage_config(self.values, "search", teacher_path=teacher_path, alpha_warmup=0)
        search = self._stepper(config, self.load())
        # The student of the configuration's architecture, else the one that this search would derive.
        architecture = self.values["architecture"] or search.trainer.model.derive().to_dict()
        config = stage_config(self.values, "student", teacher_path=teacher_path, architecture=architecture)
        student = self._stepper(config, self.load())
        for _ in range(_WARM_UP):
            search.step()
            student.step()
        pairs = [
            (search.estimate_epoch_s(), student.estimate_epoch_s())
            for _ in self._progress(self.sizes.epoch_steps, "search epoch")
        ]
        search_s, student_s = zip(*pairs, strict=True)
        return {
            "search_s": quartiles(search_s),
            "student_s": quartiles(student_s),
            "ratio": ratio_quartiles(search_s, student_s),
        }

    def inference(self) -> Measurements:
        """Latency and throughput of the student and its teacher, both untrained.

        Returns
        -------
        dict
            ``teacher`` and ``student``: parameters, MACs, latencies and throughput; ``batch_1_p50_ratio`` and
            ``batch_256_ratio``: times of the teacher in multiples of the student's.
        """
        configs = {stage: stage_config(self.values, stage) for stage in ("teacher", "student")}
        data, device = self.load(), self.config["device"]
        models = {
            stage: get_model(config["model"])(config, data.train._dataset).to(device).eval()
            for stage, config in configs.items()
        }
        rows, longest = timing_rows(data.test._dataset, device)
        requests = self.sizes.requests or self.values["latency_repeats"]
        rounds = [measure_speed(models, rows, requests) for _ in self._progress(self.sizes.rounds, "inference")]
        picks: dict[str, Callable[[Any], float]] = {
            "batch_1_p50_ms": lambda speed: speed["latency_ms"]["batch_1_p50"],
            "batch_1_p99_ms": lambda speed: speed["latency_ms"]["batch_1_p99"],
            "batch_256_ms": lambda speed: 256e3 / speed["sequences_per_second"],
            "sequences_per_s": lambda speed: speed["sequences_per_second"],
        }
        result: Measurements = {}
        for name, model in models.items():
            result[name] = {"parameters": count_parameters(model), "macs_per_sequence": count_macs(model, longest)}
            result[name] |= {key: quartiles([pick(speed[name]) for speed in rounds]) for key, pick in picks.items()}
        for key in ("batch_1_p50_ms", "batch_256_ms"):
            teacher, student = ([picks[key](speed[name]) for speed in rounds] for name in ("teacher", "student"))
            result[key.replace("_ms", "_ratio")] = ratio_quartiles(teacher, student)
        return result

    def growth(self) -> list[Measurements]:
        """Time and memory of loading, teacher and search on synthetic datasets.

        Returns
        -------
        list of dict
            For each dataset its sizes, ``load_s``, ``peak_mb``, and for ``teacher`` and ``search`` the seconds of an
            epoch.
        """
        self._data = None  # its memory would count among that of the synthetic datasets
        cells = []
        for interactions, items in self.sizes.cells:
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                cells.append(self._cell(interactions, items, Path(folder)))
        return cells

    def ranking(self) -> Measurements:
        """The ten best items of a large catalog, with all items scored and with blocks of items skipped.

        Returns
        -------
        dict
            ``full_ms`` and ``bounded_ms``: time of a request; ``ratio``: of the two; ``scored``: share of the items
            that the second way scores.
        """
        config = stage_config(self.values, "cprec")
        times = measure_ranking(config, self.sizes.catalog, self.sizes.rankings)
        medians = {key: quartiles(values) for key, values in times.items()}
        ratio = ratio_quartiles(times["full_ms"], times["bounded_ms"])
        return {"catalog": self.sizes.catalog, **medians, "ratio": ratio}

    def _cell(self, interactions: int, items: int, folder: Path) -> Measurements:
        """The measurements of one synthetic dataset."""
        name = "synthetic"
        (folder / name).mkdir()
        table = synthetic_interactions(interactions, items)
        table.to_csv(folder / name / f"{name}.inter", sep="\t", index=False)
        fields = {"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp"}
        keys = {"dataset": name, "data_path": str(folder), "load_col": {"inter": list(fields.values())}, **fields}
        values = resolve_user_config(None, self.files, self.overrides | keys)
        del table
        release_memory()
        with PeakMemory() as peak:
            start = clock()
            data = load_data(stage_config(values, "teacher"))
            load_s = clock() - start
        targets = int(data.train._dataset.windows.length.sum())
        cell: Measurements = {"interactions": interactions, "catalog": data.dataset.item_num - 1, "targets": targets}
        cell |= {"users": data.dataset.user_num - 1, "load_s": quartiles([load_s]), "peak_mb": {"load": round(peak.mb)}}
        path = self._saved_teacher(values, data.train._dataset)
        for stage in ("teacher", "search"):
            release_memory()
            extra: Measurements = {"teacher_path": path, "alpha_warmup": 0} if stage == "search" else {}
            with PeakMemory() as peak:
                start = clock()
                stepper = self._stepper(stage_config(values, stage, **extra), data)
                prepare_s = clock() - start
                seconds = self._estimate_epochs(stepper, f"{stage}, {interactions:,} x {items:,}")
            cell[stage] = {"item_loss": stepper.trainer.item_loss.mode, "prepare_s": quartiles([prepare_s])}
            cell[stage]["epoch_s"] = quartiles(seconds)
            cell[stage]["us_per_target"] = quartiles([1e6 * value / targets for value in seconds])
            cell["peak_mb"][stage] = round(peak.mb)
            del stepper
        return cell

    def _estimate_epochs(self, stepper: Stepper, what: str) -> list[float]:
        """Estimates of an epoch's seconds: as many as fit into ``growth_seconds``, three at least."""
        for _ in range(_WARM_UP):
            stepper.step()
        seconds: list[float] = []
        start = clock()
        for _ in self._progress(self.sizes.growth_steps, what):
            seconds.append(stepper.estimate_epoch_s())
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
) -> Measurements:
    """Measure parts, print the table of each when it is finished, and write the measurements of all into a JSON file.

    Parameters
    ----------
    config_files, overrides
        As in `recbole_adarec.config.resolve.resolve_user_config`.
    parts : sequence of str
        Some of `PARTS`.
    sizes : Sizes
        How much is measured.
    output : path-like
        The JSON file. It is written after each part, so an interrupted benchmark keeps its finished parts.

    Returns
    -------
    dict
        Content of the file; the names of the measurements end in their units.

    Raises
    ------
    AdaRecError
        For an unknown part, and for values that a run refuses.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        wrong = f"unknown part {unknown[0]!r}" if unknown else "none is given"
        raise AdaRecError(f"parts: {wrong}; known are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as folder:
        benchmark = Benchmark(config_files, overrides, sizes, folder)
        result: Measurements = {
            "format": BENCHMARK_FORMAT,
            "machine": describe_machine(benchmark.config["device"]),
            "quick": sizes == QUICK,
        }
        # A wrong dataset or output file is refused before anything is measured, and before an older file is replaced.
        if set(parts) - {"growth", "ranking"}:
            benchmark.load()
        if not Path(output).is_file():
            write_text(output, json_text(result))
        for part in (part for part in PARTS if part in parts):
            result[part] = benchmark.measure(part)
            write_text(output, json_text(result))
            print(f"\n{TABLES[part](result[part])}", flush=True)
    return result
