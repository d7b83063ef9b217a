"""Runs the stages teacher, search, student and report. Orchestration only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole.utils import init_seed

from recbole_adarec import distributed
from recbole_adarec.config.recbole_models import is_checkpoint
from recbole_adarec.config.run_config import RunConfig
from recbole_adarec.config.schema import STAGES
from recbole_adarec.data.dataset import HISTORY_LENGTHS
from recbole_adarec.data.loading import Loaders, load_data
from recbole_adarec.distillation.teacher_outputs import TeacherOutputCache
from recbole_adarec.evaluation.history_length import by_history_length
from recbole_adarec.evaluation.per_user import user_scores
from recbole_adarec.evaluation.profile import count_parameters, weights_bytes
from recbole_adarec.interop.patches import recbole_patches
from recbole_adarec.model.registry import get_model
from recbole_adarec.model.search_space.architecture import Architecture
from recbole_adarec.model.search_space.limits import Limit, student_limits
from recbole_adarec.model.stored import build_model
from recbole_adarec.runs.candidate_training import CandidateTraining
from recbole_adarec.runs.choice import TrainedCandidate, choose_architecture, read_json
from recbole_adarec.runs.epochs import candidate_training, stage_epochs
from recbole_adarec.runs.recbole_models import recbole_teacher, trained_baseline
from recbole_adarec.runs.run_folder import RECBOLE_LOGS, RunFolder, default_folder
from recbole_adarec.runs.stages import TrainStage, build_trainer, reuse_stage, run_stage, train_model
from recbole_adarec.runs.summary import model_rows, run_report, write_report
from recbole_adarec.runs.teacher_choice import TeacherChoice
from recbole_adarec.storage.model_files import load_state
from recbole_adarec.storage.recbole_checkpoint import read_checkpoint
from recbole_adarec.trainer.search import bilevel_split

Contents = dict[str, dict[str, Any]]


class Run:
    """A distillation run: teacher, search, student and report, with one configuration, dataset and folder.

    Parameters
    ----------
    config : RunConfig
        Configuration of the run.

    Attributes
    ----------
    data : Loaders
        The dataset and its loaders.
    folder : RunFolder
        Holds the files of the run.
    after_epoch : callable, optional
        Called with the stage, the epoch, from 0, and the validation metric after each epoch that was validated.
    teacher_outputs : TeacherOutputCache
        May be replaced by that of another run with the same teacher and data.
    architecture : Architecture or None
        That of the student; None until it is given or chosen.

    Raises
    ------
    AdaRecError
        If the configuration cannot be run; nothing is written then.
    """

    after_epoch: Callable[[str, int, float], None] | None = None

    def __init__(self, config: RunConfig) -> None:
        self.config, self.architecture = config, config.architecture
        self.teacher_outputs = TeacherOutputCache()
        values, data_config = config.values, config.stage("teacher")
        distributed.start(data_config["device"])
        self.data = load_data(data_config)
        config.set_history_length(data_config)
        self._set_epochs()
        self._check_models({stage: config.stage(stage) for stage in STAGES})
        parent = data_config["checkpoint_dir"]
        folder = distributed.from_first(values["run_dir"] or default_folder(values["dataset"], parent))
        self.folder = RunFolder(folder, config.full(), log=None if values["run_dir"] else RECBOLE_LOGS)

    def reuse_stage(self, stage: str, path: str | Path) -> None:
        """Use a stage's model file of another run instead of training it; see `stages.reuse_stage`."""
        reuse_stage(self.folder, stage, path)

    @recbole_patches()
    def train(self, until: str = "student") -> Contents:
        """Train the stages that are not finished.

        Parameters
        ----------
        until : str
            The last stage: ``teacher``, ``search`` or ``student``.

        Returns
        -------
        dict
            Content of the model file of each stage, by its name; without ``search`` where the architecture was given.
        """
        with self.folder.recording():
            dataset = self.data.dataset
            getLogger().info(
                f"{self.config.values['dataset']}: {dataset.user_num - 1} users, {dataset.item_num - 1} items, "
                f"{len(dataset.items)} interactions; {self.data.valid.config['eval_batch_size']} rows ranked at a "
                f"time; processes: {distributed.world_size()}"
            )
            contents = {"teacher": self._run_stage("teacher", self._train_teacher)}
            if self.config.candidates:
                CandidateTraining(self.config, self.data, self.folder).clear()
            if until == "teacher":
                return contents
            if self.architecture is None:
                contents["search"] = self._run_stage("search", self._train_supernet)
                if until == "search":
                    return contents
                self.architecture = self._choose_architecture(contents["search"])
            if distributed.is_first():
                self.architecture.save(self.folder / "architecture.yaml")
            contents["student"] = self._run_stage("student", self._train)
            return contents

    @recbole_patches()
    def execute(self) -> dict[str, Any]:
        """The content of report.json; stages that are not finished are trained first."""
        contents, report = self.train(), None
        self.teacher_outputs.clear()  # what follows needs the memory
        with self.folder.recording():
            if distributed.is_first():  # RecBole's own models are trained, and speeds measured, in one process
                report = self._report(contents)
            return distributed.from_first(report) or {}

    # ------------------------------------------------------------------ stages

    def _set_epochs(self) -> None:
        """Give stages the epochs that suit the data, where the user gave none."""
        config, targets = self.config, int(self.data.train._dataset.windows.length.sum())
        for stage in STAGES:
            chosen = stage == "teacher" and (config.candidates or config.teacher)  # these have epochs of their own
            if not chosen and config.given(stage, "epochs") is None:
                epochs = stage_epochs(config.stage(stage)["epochs"], targets)
                config.values = config.values | {f"{stage}_epochs": epochs}

    def _check_models(self, configs: dict[str, Any]) -> None:
        """Build each model once, so that what a model refuses is refused before anything is written."""
        dataset = self.data.train._dataset
        limits: list[list[Limit]] = []
        rows = self.config.candidates or [{}]
        for row in rows:  # one after the other: large catalogs fill the memory
            teacher = get_model(configs["teacher"]["model"])(self.config.candidate(row), dataset)
            path = row.get("teacher", self.config.teacher)
            if path is not None and is_checkpoint(path):
                teacher.load(read_checkpoint(path).state_dict, path)
            if self.architecture is None:
                # No mean of candidates costs more: what is refused here has no student under any of them.
                limits.append(student_limits(configs["search"], teacher, times=len(rows)))
        supernet, _ = (get_model(configs[stage]["model"])(configs[stage], dataset) for stage in ("search", "student"))
        if self.architecture is None:
            supernet.limit([max(each, key=lambda limit: limit.amount) for each in zip(*limits, strict=True)])
            bilevel_split(dataset, configs["search"])

    def _run_stage(self, name: str, train: TrainStage) -> dict[str, Any]:
        """The content of a stage's model file."""
        return run_stage(self.folder, name, lambda: self._stage_config(name), self.data, train)

    def _stage_config(self, stage: str, **extra: Any) -> Any:
        """The configuration of a stage, with the files of earlier stages."""
        inputs: dict[str, Any] = {"checkpoint_dir": str(self.folder.path)}
        if stage != "teacher":
            inputs["teacher_path"] = str(self.folder / "teacher.pth")
        if stage == "student":
            inputs["architecture"] = self.architecture.to_dict() if self.architecture else None
            student = self.config.stage("student")
            by_share = student["total_parameters"] is None and student["total_budget"] is not None
            if student["item_table"] == "adaptive" and by_share:
                teacher = build_model(load_state(self.folder / "teacher.pth", expected=STAGES["teacher"]))
                inputs["total_parameters"] = int(student["total_budget"] * count_parameters(teacher)["total"])
            if (self.folder / "search.pth").is_file():
                inputs["supernet_path"] = str(self.folder / "search.pth")
        return self.config.stage(stage, **inputs | extra)

    def _build_trainer(self, config: Any, data: Loaders) -> Any:
        """A trainer with a new model; all trainers share the cache of teacher outputs."""
        return build_trainer(config, data, self.folder, self.teacher_outputs)

    def _train(self, config: Any, data: Loaders) -> tuple[Any, dict[str, Any]]:
        """Train the model of a stage; the model and the further content of its file."""
        trainer = self._build_trainer(config, data)
        return train_model(trainer, data, self.after_epoch and partial(self.after_epoch, trainer.stage))

    def _train_teacher(self, config: Any, data: Loaders) -> tuple[Any, dict[str, Any]]:
        """Train the teacher, or take a model of RecBole."""
        if self.config.candidates:
            return TeacherChoice(self.config, self.data, self.folder).teacher(config)
        if self.config.teacher is None:
            return self._train(config, data)
        return recbole_teacher(self.config.teacher, self.config, config, data, self.folder)

    def _train_supernet(self, config: Any, data: Loaders) -> tuple[Any, dict[str, Any]]:
        """Train the supernet, and draw the candidates for the student's architecture from its α."""
        trainer = self._build_trainer(config, data)
        trainer.start_repeat_bias(data.valid)
        # Without validation data: the result is the α of the last epoch, not the best epoch of one path.
        trainer.fit(data.train, saved=False, verbose=False, show_progress=config["show_progress"])
        supernet, log = trainer.model, trainer.training_log
        candidates = supernet.candidates(
            supernet.shapes, config["candidates"], config["candidate_temperature"], trainer.gumbel
        )
        return supernet, {
            "epochs": len(log),
            "history": log,
            "distillation": trainer.distillation_state(),
            "candidates": [candidate.to_dict() for candidate in candidates],
            "search": {
                **supernet.alpha_statistics(),
                "temperature": log[-1]["temperature"] if log else None,
                "cost_kind": config["cost"],
                "cost_budget": config["cost_budget"] if config["budget"] is None else None,
            },
        }

    def _choose_architecture(self, search: dict[str, Any]) -> Architecture:
        """The candidate of a search with the best validation log-likelihood."""
        candidates = [Architecture.from_dict(candidate) for candidate in search["candidates"]]
        config = self.config.stage("search")
        with self.folder.part("choice"):
            return choose_architecture(
                candidates, self._train_candidate, config["candidate_epochs"], config["finalist_epochs"],
                self.folder / "candidates.json", config["size_level"],
            )  # fmt: skip

    def _train_candidate(self, candidate: Architecture, epochs: int) -> TrainedCandidate:
        """What a short training of a candidate as a student gives, from new weights."""
        self.architecture = candidate
        targets = int(self.data.train._dataset.windows.length.sum())
        epochs, share = candidate_training(epochs, targets)
        config = self._stage_config("student", epochs=epochs, init_from_supernet=False)
        init_seed(config["seed"], config["reproducibility"])
        trainer = self._build_trainer(config, data := self.data.for_stage(config))
        trainer.window_share = share
        trainer.start_repeat_bias(self.data.valid)
        trainer.fit(data.train, saved=False, verbose=False, show_progress=config["show_progress"])
        trainer.model.item_table.quantize()
        trainer.fit_repeat_bias(self.data.valid)
        scores = user_scores(trainer.model.eval(), self.data.valid)  # of all users, in every process
        log_likelihood = distributed.from_first(scores.log_likelihood.cpu())
        return TrainedCandidate(log_likelihood, weights_bytes(trainer.model, config["stored_weights"]))

    # ------------------------------------------------------------------ report

    def _report(self, contents: Contents) -> dict[str, Any]:
        """Train the baselines, measure all models, and write the report; its content."""
        values, student = self.config.values, self.config.stage("student")
        baselines = {name: trained_baseline(self.config, self.data, self.folder, name) for name in values["baselines"]}
        models = {name: build_model(contents[name], student["device"]) for name in ("teacher", "student")}
        results = {name: contents[name] for name in ("teacher", "student")}
        kinds = {"teacher": contents["teacher"]["config"]["backbone"], "student": "AdaRecStudent"}
        rows = model_rows(
            models | {name: model for name, (model, _) in baselines.items()}, kinds,
            results | {name: content for name, (_, content) in baselines.items()}, self.data,
            values["latency_repeats"],
        )  # fmt: skip
        run = {"dataset": values["dataset"], "seed": student["seed"]}
        choice = read_json(self.folder / "candidates.json")
        most = student["MAX_ITEM_LIST_LENGTH"]
        shorter = [length for length in HISTORY_LENGTHS if length < most]
        histories = by_history_length(models, self.data.valid, [*shorter, most]) if shorter else []
        report = run_report(run, contents, rows, models["student"].architecture, choice, models["teacher"], histories)
        search = contents.get("search")
        training_logs = {name: content["history"] for name, content in contents.items()}
        write_report(self.folder, report, training_logs, search["config"]["operations"] if search else ())
        return report
