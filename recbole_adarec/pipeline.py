"""Teacher, search, student, report: knows the stages, knows no tensor."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from recbole.utils import get_model, get_trainer, init_seed

from recbole_adarec import distributed
from recbole_adarec.checkpoints import build_model, load_state, save_model
from recbole_adarec.config import (
    MODELS,
    STAGES,
    AdaRecConfig,
    make_config,
    resolve,
    resolved,
    stage_config,
    stage_values,
)
from recbole_adarec.data.loading import Loaders, load_data
from recbole_adarec.errors import AdaRecError
from recbole_adarec.evaluation import report as pages
from recbole_adarec.evaluation.profile import count_macs, count_parameters, measure_speed
from recbole_adarec.evaluation.users import user_scores
from recbole_adarec.files import load_checkpoint, plain, write_bytes, write_text
from recbole_adarec.model.architecture import Architecture
from recbole_adarec.model.cost import architecture_cost, layers_cost
from recbole_adarec.model.student import as_architecture
from recbole_adarec.run_folder import RunFolder, default_folder
from recbole_adarec.trainer.search import bilevel_split

CANDIDATES_FORMAT = "recbole-adarec-candidates/1"
REPORT_FORMAT = "recbole-adarec-report/1"


def run_adarec(
    dataset: str | None = None,
    config_file_list: list[str] | None = None,
    config_dict: dict[str, Any] | None = None,
    run_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Distil a dataset's teacher into a searched student, and report on both.

    Parameters
    ----------
    dataset : str, optional
        Name of a RecBole dataset; ml-100k by default.
    config_file_list : list of str, optional
        YAML files, looked for in the current folder and then in properties/.
    config_dict : dict, optional
        Single values; they win over the files.
    run_dir : path-like, optional
        Folder of the run. Finished stages that it holds are not repeated.

    Returns
    -------
    dict
        What report.json holds.

    Raises
    ------
    AdaRecError
        For input that cannot be used; nothing is overwritten.
    """
    overrides = dict(config_dict or {})
    if run_dir is not None:
        overrides["run_dir"] = str(run_dir)
    values = resolve(dataset, config_file_list, overrides)
    return Run(values).execute()


class Run:
    """One run: its configuration, its data and its folder.

    Parameters
    ----------
    values : dict
        What `recbole_adarec.config.resolve` returned.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        if values["threads"]:
            torch.set_num_threads(values["threads"])
        if distributed.world_size() > 1:  # part of the configuration: a batch is as many times larger
            values = values | {"world_size": distributed.world_size()}
            if not distributed.is_first():
                values["show_progress"] = False
        self.values = values
        self.architecture: Architecture | None = None
        if values["architecture"]:
            self.architecture = as_architecture(values["architecture"])
            # The file may change while the run lasts; the run keeps what the file said.
            self.values = values | {"architecture": self.architecture.to_dict()}
        # Everything that can be refused is refused before anything is written.
        configs = [self.config(stage) for stage in STAGES]
        for name in self.values["baselines"]:
            self._baseline_config(name)
        distributed.start(configs[0]["device"])
        self.data = load_data(configs[0])
        models = [get_model(config["model"])(config, self.data.train._dataset) for config in configs]
        if self.architecture is None:
            models[1].limit_cost(configs[1]["cost_budget"], models[0])
            bilevel_split(self.data.train._dataset, configs[1])
        folder = distributed.from_first(values["run_dir"] or default_folder(values["dataset"]))
        self.folder = RunFolder(folder, resolved(self.values))

    def adopt(self, stage: str, path: str | Path) -> None:
        """Take a stage's file from another run of the same values, instead of making it."""
        if not (self.folder / f"{stage}.pth").exists():
            load_state(path, expected=STAGES[stage])
            write_bytes(self.folder / f"{stage}.pth", Path(path).read_bytes())

    def train(self) -> dict[str, dict[str, Any]]:
        """Run the stages that are not finished; what their files hold."""
        with self.folder.recording():
            data = self.data.dataset
            getLogger().info(
                f"{self.values['dataset']}: {data.user_num - 1} users, {data.item_num - 1} items, "
                f"{len(data.items)} interactions; {self.data.valid.config['eval_batch_size']} rows ranked at a time; "
                f"processes: {distributed.world_size()}"
            )
            contents = {"teacher": self._stage("teacher", self._train)}
            if self.architecture is None:
                contents["search"] = self._stage("search", self._search)
                self.architecture = self._chosen(contents["search"])
            if distributed.is_first():
                self.architecture.save(self.folder / "architecture.yaml")
            contents["student"] = self._stage("student", self._train)
            return contents

    def execute(self) -> dict[str, Any]:
        """Run the stages that are not finished, then write the report."""
        contents, report = self.train(), None
        with self.folder.recording():
            if distributed.is_first():  # RecBole's own models are trained, and speeds measured, in one process
                baselines = {name: self._baseline(name) for name in self.values["baselines"]}
                report = self._report(contents, baselines)
            return distributed.from_first(report) or {}

    # ------------------------------------------------------------------ stages

    def config(self, stage: str, **extra: Any) -> AdaRecConfig:
        return stage_config(self.values, stage, **extra)

    def _stage(self, name: str, work: Callable[[AdaRecConfig, Loaders], tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
        """The content of a stage's file, made now unless it is there."""
        path = self.folder / f"{name}.pth"
        if not distributed.from_first(path.is_file()):
            config = self.config(name, checkpoint_dir=str(self.folder.path), **self._inputs(name))
            getLogger().info(f"{name} begins")
            start = time.perf_counter()
            # Every stage starts from the seed, so that a continued run gives the numbers of an unbroken one.
            init_seed(config["seed"], config["reproducibility"])
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
            if (self.folder / "search.pth").is_file():
                inputs["supernet_path"] = str(self.folder / "search.pth")
        return inputs

    def _trainer(self, config: AdaRecConfig, data: Loaders) -> Any:
        model = get_model(config["model"])(config, data.train._dataset).to(config["device"])
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        trainer.saved_model_file = str(self.folder / f".{config['model']}.training.pth")
        return trainer

    def _train(self, config: AdaRecConfig, data: Loaders) -> tuple[Any, dict[str, Any]]:
        trainer = self._trainer(config, data)
        results = self._fit_and_evaluate(trainer, data, config["show_progress"])
        results["history"] = trainer.history
        results["distillation"] = trainer.distillation_state()
        results["item_tokens"] = [str(token) for token in data.dataset.field2id_token[data.dataset.iid_field]]
        if config["model"] == STAGES["student"]:
            results["architecture"] = trainer.model.architecture.to_dict()
        return trainer.model, results

    def _search(self, config: AdaRecConfig, data: Loaders) -> tuple[Any, dict[str, Any]]:
        trainer = self._trainer(config, data)
        # No validation data: what the search finds is its last α, and the best epoch of one path says little of it.
        trainer.fit(data.train, saved=False, verbose=False, show_progress=config["show_progress"])
        supernet = trainer.model
        sizes = config["candidate_sizes"] or [config["hidden_size"]]
        candidates = supernet.candidates(sizes, config["candidates"], config["candidate_temperature"], trainer.gumbel)
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
        """The candidate of the search that validation likes best after a short training; all of them are recorded.

        The measure is the log-likelihood of the held-out items, which tells architectures apart where NDCG, at 0 for
        most users, does not.
        """
        candidates = [Architecture.from_dict(candidate) for candidate in search["candidates"]]
        path = self.folder / "candidates.json"
        if len(candidates) > 1 and not distributed.from_first(path.is_file()):
            start = time.perf_counter()
            getLogger().info(f"choice among {len(candidates)} candidates begins")
            found = [
                {**candidate.to_dict(), "operations": candidate.count(), "valid_log_likelihood": self._try(candidate)}
                for candidate in candidates
            ]
            seconds = round(time.perf_counter() - start, 2)
            if distributed.is_first():
                content = {"format": CANDIDATES_FORMAT, "seconds": seconds, "candidates": found}
                write_text(path, json.dumps(plain(content), indent=1) + "\n")
            distributed.barrier()
        likelihoods = [row["valid_log_likelihood"] for row in self._candidates()["candidates"]]
        return candidates[likelihoods.index(max(likelihoods))] if likelihoods else candidates[0]

    def _candidates(self) -> dict[str, Any]:
        """What the choice among the candidates found; nothing, if there was only one."""
        path = self.folder / "candidates.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"seconds": 0.0, "candidates": []}

    def _try(self, candidate: Architecture) -> float:
        """Validation log-likelihood of a candidate after ``candidate_epochs`` as a student, from scratch."""
        self.architecture = candidate
        extra = {"epochs": self.config("search")["candidate_epochs"], "init_from_supernet": False}
        config = self.config("student", checkpoint_dir=str(self.folder.path), **self._inputs("student") | extra)
        init_seed(config["seed"], config["reproducibility"])
        trainer = self._trainer(config, data := self.data.for_stage(config))
        trainer.fit(data.train, saved=False, verbose=False, show_progress=config["show_progress"])
        scores = user_scores(trainer.model.eval(), self.data.valid)  # all rows, in every process
        return distributed.from_first(float(scores.log_likelihood.mean()))

    def _fit_and_evaluate(self, trainer: Any, data: Loaders, show_progress: bool) -> dict[str, Any]:
        """Fit, take the best epoch by the validation metric, and evaluate it; all of it RecBole's own."""
        path = Path(trainer.saved_model_file)
        try:
            trainer.fit(data.train, data.valid, verbose=True, show_progress=show_progress)
            valid = dict(trainer.evaluate(data.valid, load_best_model=True))
            test = dict(trainer.evaluate(data.test, load_best_model=False))
        finally:
            if distributed.is_first():
                path.unlink(missing_ok=True)
        trainer.model.eval()
        return {"valid": plain(valid), "test": plain(test), "epochs": len(trainer.train_loss_dict)}

    # ------------------------------------------------------------------ baselines

    def _baseline_config(self, name: str, **extra: Any) -> AdaRecConfig:
        try:
            get_model(name)
        except (ValueError, ImportError, AttributeError) as error:
            raise AdaRecError(f"baselines: RecBole has no model {name!r}") from error
        return make_config(name, stage_values(self.values, "baseline") | extra)

    def _baseline(self, name: str) -> tuple[Any, dict[str, Any]]:
        """A stock RecBole model, trained as RecBole trains it, and its results."""
        path = self.folder / f"baseline-{name}.pth"
        config = self._baseline_config(name, checkpoint_dir=str(self.folder.path))
        init_seed(config["seed"], config["reproducibility"])
        if not path.is_file():
            data = load_data(config)
            start = time.perf_counter()
            trainer = self._trainer(config, data)
            results = self._fit_and_evaluate(trainer, data, config["show_progress"])
            save_model(path, trainer.model, config, seconds=time.perf_counter() - start, **results)
        content = load_checkpoint(path)
        model = get_model(name)(config, self.data.train._dataset).to(config["device"]).eval()
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

        rows = self.data.test._dataset
        rows = rows[torch.arange(min(len(rows), 256))].to(device)
        longest = rows[rows[self.data.test._dataset.item_list_length_field].argmax().reshape(1)]
        speed = measure_speed(models, rows, self.values["latency_repeats"])
        student = contents["student"]
        search = contents.get("search")
        assert self.architecture is not None
        searched = None
        if search is not None:
            kind = search["search"]["cost_kind"]
            share = architecture_cost(self.architecture, kind) / layers_cost(models["teacher"], kind)
            searched = {**search["search"], "cost": share, "candidates": self._candidates()["candidates"]}
        report = {
            "format": REPORT_FORMAT,
            "dataset": self.values["dataset"],
            "seed": self.config("student")["seed"],
            "stages": {
                name: {"seconds": round(content["seconds"], 2), "epochs": content["epochs"]}
                for name, content in contents.items()
            }
            | (
                {"choice": {"seconds": choice["seconds"], "epochs": None}}
                if (choice := self._candidates())["candidates"]
                else {}
            ),
            "models": [
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
            ],
            "architecture": {
                **self.architecture.to_dict(),
                "operations": self.architecture.count(),
                "search": searched,
            },
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
