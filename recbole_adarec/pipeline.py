"""Teacher, search, student, report: knows the stages, knows no tensor."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from logging import getLogger
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from recbole.utils import get_model, get_trainer, init_seed

from recbole_adarec import distributed
from recbole_adarec.baselines import baseline_config, build, train_baseline
from recbole_adarec.checkpoints import build_model, load_state, save_model
from recbole_adarec.config import MODELS, STAGES, AdaRecConfig, resolved, stage_config
from recbole_adarec.data.loading import Loaders, load_data
from recbole_adarec.distillation.cache import TeacherOutputs
from recbole_adarec.evaluation import report as pages
from recbole_adarec.evaluation.profile import count_macs, count_parameters, measure_speed
from recbole_adarec.evaluation.users import user_scores
from recbole_adarec.files import load_checkpoint, plain, write_bytes, write_text
from recbole_adarec.foreign import read_checkpoint
from recbole_adarec.interop.patches import recbole_patches
from recbole_adarec.model.architecture import Architecture
from recbole_adarec.model.cost import architecture_cost, layers_cost
from recbole_adarec.model.student import as_architecture
from recbole_adarec.plugins import load_plugins
from recbole_adarec.run_folder import RECBOLE_LOGS, RunFolder, default_folder
from recbole_adarec.stock import check_recorded, check_sequential, is_checkpoint
from recbole_adarec.trainer.distillation import DistillationTrainer
from recbole_adarec.trainer.fitting import fit_and_evaluate
from recbole_adarec.trainer.repeats import fit_repeat_bias, share_of_repeats
from recbole_adarec.trainer.search import bilevel_split
from recbole_adarec.trainer.teacher import evaluate_stock

CANDIDATES_FORMAT = "recbole-adarec-candidates/1"
REPORT_FORMAT = "recbole-adarec-report/1"
_CHOICE_TARGETS = 140_000  # with more of them in an epoch, candidates are trained for fewer epochs


class Run:
    """One run: its configuration, its data and its folder.

    Parameters
    ----------
    values : dict
        What `recbole_adarec.config.resolve` returned.

    Attributes
    ----------
    after_epoch : callable, optional
        Told the stage, the epoch from 0, and the validation metric, after each epoch that was validated.
    teacher_outputs : TeacherOutputs
        Its own, or those of another run with the same teacher and data.
    """

    after_epoch: Callable[[str, int, float], None] | None = None
    _stock: Mapping[str, Any] = MappingProxyType({})  # what a stock model as the teacher adds to its configuration

    def __init__(self, values: dict[str, Any]) -> None:
        if values["threads"]:
            torch.set_num_threads(values["threads"])
        if distributed.world_size() > 1:  # part of the configuration: a batch is as many times larger
            values = values | {"world_size": distributed.world_size()}
            if not distributed.is_first():
                values["show_progress"] = False
        load_plugins(values["plugins"])  # this may be a process of its own
        self.values = values
        self.teacher_outputs = TeacherOutputs()
        self.architecture: Architecture | None = None
        if values["architecture"]:
            self.architecture = as_architecture(values["architecture"])
            # The file may change while the run lasts; the run keeps what the file said.
            self.values = values | {"architecture": self.architecture.to_dict()}
        # Everything that can be refused is refused before anything is written.
        self._stock = self._stock_values()
        configs = [self.config(stage) for stage in STAGES]
        for name in self.values["baselines"]:
            check_sequential(name, "baselines")
            baseline_config(self.values, name)
        distributed.start(configs[0]["device"])
        self.data = load_data(configs[0])
        models = [get_model(config["model"])(config, self.data.train._dataset) for config in configs]
        if is_checkpoint(values["teacher"]):
            models[0].load(read_checkpoint(values["teacher"]).state_dict, values["teacher"])
        if self.architecture is None:
            models[1].limit_cost(configs[1]["cost_budget"], models[0])
            bilevel_split(self.data.train._dataset, configs[1])
        parent = configs[0]["checkpoint_dir"]
        folder = distributed.from_first(values["run_dir"] or default_folder(values["dataset"], parent))
        self.folder = RunFolder(folder, resolved(self.values), log=None if values["run_dir"] else RECBOLE_LOGS)

    def adopt(self, stage: str, path: str | Path) -> None:
        """Take a stage's file from another run of the same values, instead of making it."""
        if not (self.folder / f"{stage}.pth").exists():
            load_state(path, expected=STAGES[stage])
            write_bytes(self.folder / f"{stage}.pth", Path(path).read_bytes())

    @recbole_patches()
    def train(self, until: str = "student") -> dict[str, dict[str, Any]]:
        """Run the stages that are not finished, up to the one named; what their files hold."""
        with self.folder.recording():
            data = self.data.dataset
            getLogger().info(
                f"{self.values['dataset']}: {data.user_num - 1} users, {data.item_num - 1} items, "
                f"{len(data.items)} interactions; {self.data.valid.config['eval_batch_size']} rows ranked at a time; "
                f"processes: {distributed.world_size()}"
            )
            contents = {"teacher": self._stage("teacher", self._stock_teacher if self._stock else self._train)}
            if until == "teacher":
                return contents
            if self.architecture is None:
                contents["search"] = self._stage("search", self._search)
                if until == "search":
                    return contents
                self.architecture = self._chosen(contents["search"])
            if distributed.is_first():
                self.architecture.save(self.folder / "architecture.yaml")
            contents["student"] = self._stage("student", self._train)
            return contents

    @recbole_patches()
    def execute(self) -> dict[str, Any]:
        """Run the stages that are not finished, then write the report."""
        contents, report = self.train(), None
        self.teacher_outputs.forget()  # what follows needs the memory
        with self.folder.recording():
            if distributed.is_first():  # RecBole's own models are trained, and speeds measured, in one process
                baselines = {name: self._baseline(name) for name in self.values["baselines"]}
                report = self._report(contents, baselines)
            return distributed.from_first(report) or {}

    # ------------------------------------------------------------------ stages

    def config(self, stage: str, **extra: Any) -> AdaRecConfig:
        return stage_config(self.values, stage, **(dict(self._stock) if stage == "teacher" else {}) | extra)

    def _stock_values(self) -> dict[str, Any]:
        """What the configuration of the teacher's stage has to say of a stock model in its place."""
        teacher = self.values["teacher"]
        if not teacher:
            return {}
        if is_checkpoint(teacher):
            stock = read_checkpoint(teacher).config
        else:
            check_sequential(teacher, "teacher")
            stock = plain(baseline_config(self.values, teacher, "teacher").final_config_dict)
        return {"stock": stock, "backbone": f"{stock['model']} (RecBole)"}

    def _stage(self, name: str, work: Callable[[AdaRecConfig, Loaders], tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
        """The content of a stage's file, made now unless it is there."""
        path = self.folder / f"{name}.pth"
        if not distributed.from_first(path.is_file()):
            config = self.config(name, checkpoint_dir=str(self.folder.path), **self._inputs(name))
            getLogger().info(f"{name} begins")
            start = time.perf_counter()
            # Every stage starts from the seed, so that a continued run gives the numbers of an unbroken one.
            init_seed(config["seed"], config["reproducibility"])
            with self.folder.part(name):
                model, results = work(config, self.data.for_stage(config))
            seconds = time.perf_counter() - start
            if distributed.is_first():
                save_model(path, model, config, seconds=seconds, **results)
            distributed.barrier()
            getLogger().info(f"{name} is finished after {seconds:.1f} s")
        return load_state(path, expected=MODELS[name])

    def _inputs(self, stage: str) -> dict[str, Any]:
        """What a stage reads of those before it."""
        inputs: dict[str, Any] = {}
        if stage != "teacher":
            inputs["teacher_path"] = str(self.folder / "teacher.pth")
        if stage == "student":
            inputs["architecture"] = self.architecture.to_dict() if self.architecture else None
            student = self.config("student")
            of_teacher = student["total_parameters"] is None and student["total_budget"] is not None
            if student["item_table"] == "adaptive" and of_teacher:
                teacher = build_model(load_state(self.folder / "teacher.pth", expected=STAGES["teacher"]))
                inputs["total_parameters"] = int(student["total_budget"] * count_parameters(teacher)["total"])
            if (self.folder / "search.pth").is_file():
                inputs["supernet_path"] = str(self.folder / "search.pth")
        return inputs

    def _trainer(self, config: AdaRecConfig, data: Loaders) -> Any:
        model = get_model(config["model"])(config, data.train._dataset).to(config["device"])
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        trainer.saved_model_file = str(self.folder / f".{config['model']}.training.pth")
        if isinstance(trainer, DistillationTrainer):
            trainer.teacher_outputs = self.teacher_outputs
        return trainer

    def _train(self, config: AdaRecConfig, data: Loaders) -> tuple[Any, dict[str, Any]]:
        trainer = self._trainer(config, data)
        report = self.after_epoch and partial(self.after_epoch, trainer.stage)
        results = fit_and_evaluate(trainer, data, config["show_progress"], report)
        results["history"] = trainer.history
        results["distillation"] = trainer.distillation_state()
        results["item_tokens"] = [str(token) for token in data.dataset.field2id_token[data.dataset.iid_field]]
        if config["model"] == STAGES["student"]:
            results["architecture"] = trainer.model.architecture.to_dict()
        return trainer.model, results

    def _search(self, config: AdaRecConfig, data: Loaders) -> tuple[Any, dict[str, Any]]:
        trainer = self._trainer(config, data)
        trainer.start_repeat_bias(data.valid)
        # No validation data: what the search finds is its last α, and the best epoch of one path says little of it.
        trainer.fit(data.train, saved=False, verbose=False, show_progress=config["show_progress"])
        supernet = trainer.model
        candidates = supernet.candidates(
            supernet.sizes, config["candidates"], config["candidate_temperature"], trainer.gumbel
        )
        return supernet, {
            "epochs": len(trainer.history),
            "history": trainer.history,
            "distillation": trainer.distillation_state(),
            "candidates": [candidate.to_dict() for candidate in candidates],
            "search": {
                **supernet.movement(),
                "temperature": trainer.history[-1]["temperature"] if trainer.history else None,
                "cost_kind": config["cost"],
                "cost_budget": config["cost_budget"],
            },
        }

    # ------------------------------------------------------------------ the last choice

    def _chosen(self, search: dict[str, Any]) -> Architecture:
        """The candidate of the search that validation likes best."""
        candidates = [Architecture.from_dict(candidate) for candidate in search["candidates"]]
        if len(candidates) == 1:
            return candidates[0]
        chosen = distributed.from_first(_read(self.folder / "candidates.json")) or self._choose(candidates)
        rows = chosen["candidates"]
        finalists = _best_of_each_size(rows)
        best = max(finalists, key=lambda row: row.get("final_log_likelihood", row["valid_log_likelihood"]))
        return candidates[rows.index(best)]

    def _choose(self, candidates: list[Architecture]) -> dict[str, Any]:
        """Train all candidates for a short time, then the best of each hidden size for longer; kept as it goes.

        The measure is the log-likelihood of the held-out items, which tells architectures apart where NDCG, at 0 for
        most users, does not: over 20 random architectures on ml-100k, what it is after two epochs correlates by .81
        with what it is on the test data after 24; NDCG@10 by -.29. Small hidden sizes learn more slowly and may still
        end higher, so two epochs do not compare them.
        """
        getLogger().info(f"choice among {len(candidates)} candidates begins")
        config, unfinished = self.config("search"), self.folder / ".candidates.json"
        content = distributed.from_first(_read(unfinished)) or {
            "format": CANDIDATES_FORMAT,
            "seconds": 0.0,
            "candidates": [{**candidate.to_dict(), "operations": candidate.count()} for candidate in candidates],
        }
        rows = content["candidates"]

        def measure(name: str, epochs: int, of: Iterable[int]) -> None:
            for i in of:
                if name not in rows[i]:
                    start = time.perf_counter()
                    rows[i][name] = self._try(candidates[i], epochs)
                    content["seconds"] += time.perf_counter() - start
                    if distributed.is_first():
                        write_text(unfinished, json.dumps(plain(content), indent=1) + "\n")

        with self.folder.part("choice"):
            measure("valid_log_likelihood", config["candidate_epochs"], range(len(rows)))
            finalists = [rows.index(row) for row in _best_of_each_size(rows)]
            if len(finalists) > 1:
                measure("final_log_likelihood", config["finalist_epochs"], finalists)
        if distributed.is_first():
            unfinished.replace(self.folder / "candidates.json")
        distributed.barrier()
        return content

    def _try(self, candidate: Architecture, epochs: int) -> float:
        """Validation log-likelihood of a candidate after so many epochs as a student, from scratch.

        Architectures are told apart by how many targets they have seen: where an epoch has many, fewer epochs do.
        """
        self.architecture = candidate
        targets = int(self.data.train._dataset.windows.length.sum())
        epochs = max(1, round(epochs * min(1.0, _CHOICE_TARGETS / targets)))
        extra = {"epochs": epochs, "init_from_supernet": False}
        config = self.config("student", checkpoint_dir=str(self.folder.path), **self._inputs("student") | extra)
        init_seed(config["seed"], config["reproducibility"])
        trainer = self._trainer(config, data := self.data.for_stage(config))
        trainer.start_repeat_bias(self.data.valid)
        trainer.fit(data.train, saved=False, verbose=False, show_progress=config["show_progress"])
        trainer.model.item_table.encode()
        trainer.fit_repeat_bias(self.data.valid)
        scores = user_scores(trainer.model.eval(), self.data.valid)  # all rows, in every process
        return distributed.from_first(float(scores.log_likelihood.mean()))

    # ------------------------------------------------------------------ RecBole's own models

    def _stock_teacher(self, config: AdaRecConfig, data: Loaders) -> tuple[Any, dict[str, Any]]:
        """RecBole's model as the teacher: read from its checkpoint, or trained now; its results on this data."""
        model = get_model(config["model"])(config, data.train._dataset).to(config["device"])
        source = self.values["teacher"]
        if is_checkpoint(source):
            checkpoint = read_checkpoint(source)
            weights, epochs = checkpoint.state_dict, checkpoint.epochs
        else:
            if distributed.is_first():
                self._baseline(source, "teacher")
            distributed.barrier()
            trained = load_checkpoint(self.folder / f"teacher-{source}.pth")
            weights, epochs = trained["state_dict"], trained["epochs"]
        model.load(weights, source)
        model.eval().check(next(iter(data.valid))[0][:32].to(config["device"]))
        model.repeat_bias.zero_()  # as RecBole ranks
        as_recbole = results = evaluate_stock(config, model, data)
        if is_checkpoint(source):
            getLogger().info(check_recorded(checkpoint, results["valid"]))
        getLogger().info(model.lessons())
        if config["repeat_bias"] is None:  # its student has one
            fit_repeat_bias(model, data.valid, share_of_repeats(data.valid))
        else:
            model.repeat_bias.fill_(config["repeat_bias"])
        if model.repeat_bias:
            results = evaluate_stock(config, model, data)
        return model, {
            **results,
            "as_recbole": as_recbole,
            "epochs": epochs,
            "history": [],
            "n_users": data.dataset.user_num,
            "item_tokens": [str(token) for token in data.dataset.field2id_token[data.dataset.iid_field]],
        }

    def _baseline(self, name: str, stage: str = "baseline") -> tuple[Any, dict[str, Any]]:
        """A stock RecBole model, trained as RecBole trains it, and its results; `stage` is the prefix of its values."""
        path = self.folder / f"{stage}-{name}.pth"
        config = baseline_config(self.values, name, stage, checkpoint_dir=str(self.folder.path))
        if not path.is_file():
            with self.folder.part(name):
                train_baseline(path, config)
        content = load_checkpoint(path)
        model = build(config, self.data, every_position=False).to(config["device"]).eval()
        model.load_state_dict(content["state_dict"])
        return model, content

    # ------------------------------------------------------------------ report

    def _report(
        self, contents: dict[str, dict[str, Any]], baselines: dict[str, tuple[Any, dict[str, Any]]]
    ) -> dict[str, Any]:
        device = self.config("student")["device"]
        models = {name: build_model(contents[name], device) for name in ("teacher", "student")}
        models |= {name: model for name, (model, _) in baselines.items()}
        results = {name: contents[name] for name in ("teacher", "student")}
        results |= {name: content for name, (_, content) in baselines.items()}
        kinds = {"teacher": contents["teacher"]["config"]["backbone"], "student": "AdaRecStudent"}

        student = contents["student"]
        search = contents.get("search")
        assert self.architecture is not None
        searched, choice = None, _read(self.folder / "candidates.json")
        if search is not None:
            kind = search["search"]["cost_kind"]
            share = architecture_cost(self.architecture, kind) / layers_cost(models["teacher"], kind)
            searched = {**search["search"], "cost": share, "candidates": choice.get("candidates", [])}
        report = {
            "format": REPORT_FORMAT,
            "dataset": self.values["dataset"],
            "seed": self.config("student")["seed"],
            "stages": {
                name: {"seconds": round(content["seconds"], 2), "epochs": content["epochs"]}
                for name, content in contents.items()
            }
            | ({"choice": {"seconds": round(choice["seconds"], 2), "epochs": None}} if choice else {}),
            "models": self._measured(models, kinds, results),
            "architecture": {
                **self.architecture.to_dict(),
                "operations": self.architecture.count(),
                "search": searched,
            },
            "teaching": _teaching(models["teacher"], contents["teacher"]) if self._stock else None,
            "distillation": student["history"][-1].get("flow")
            and {
                key: student["history"][-1][key] for key in ("student_layer_weights", "teacher_layer_weights", "flow")
            },
        }
        history = {name: content["history"] for name, content in contents.items()}
        operations = search["config"]["operations"] if search else []
        write_text(self.folder / "report.json", json.dumps(plain(report), indent=1) + "\n")
        write_text(self.folder / "report.md", pages.markdown(report, history))
        write_text(self.folder / "report.html", pages.html(report, history, operations))
        return report

    def _measured(
        self, models: dict[str, Any], kinds: dict[str, str], results: dict[str, dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """What the report says of each model, all of them measured in turn."""
        rows = self.data.test._dataset
        rows = rows[torch.arange(min(len(rows), 256))].to(next(next(iter(models.values())).parameters()).device)
        longest = rows[rows[self.data.test._dataset.item_list_length_field].argmax().reshape(1)]
        speed = measure_speed(models, rows, self.values["latency_repeats"])
        return [
            {
                "name": name,
                "kind": kinds.get(name, name),
                "parameters": count_parameters(model),
                "macs_per_sequence": count_macs(model, longest),
                **speed[name],
                "valid": results[name]["valid"],
                "test": results[name]["test"],
            }
            for name, model in models.items()
        ]


def _read(path: Path) -> dict[str, Any]:
    """A JSON file's content; empty, if there is none."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _teaching(teacher: Any, content: dict[str, Any]) -> str:
    """What a stock model teaches, and its results as RecBole has them."""
    bias, metric = float(teacher.repeat_bias), str(content["config"]["valid_metric"])
    if bias == 0:
        return str(teacher.lessons())
    return (
        f"{teacher.lessons()} Items of the history have {bias:+.1f} added to their scores here, as the student's have; "
        f"as RecBole ranks them its test {metric} is {content['as_recbole']['test'][metric.lower()]:.4f}."
    )


def _best_of_each_size(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each hidden size the candidate that validation likes best after the first training."""
    sizes = dict.fromkeys(row["hidden_size"] for row in rows)
    of_sizes = ([row for row in rows if row["hidden_size"] == size] for size in sizes)
    return [max(of_size, key=lambda row: row["valid_log_likelihood"]) for of_size in of_sizes]
