"""Stages of a run: each is trained once and kept as a model file in the run folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole.utils import init_seed

from recbole_adarec import distributed
from recbole_adarec.config.schema import MODELS, STAGES
from recbole_adarec.data.loading import Loaders
from recbole_adarec.distillation.teacher_outputs import TeacherOutputCache
from recbole_adarec.model.registry import get_model
from recbole_adarec.runs.run_folder import RunFolder
from recbole_adarec.storage.files import write_bytes
from recbole_adarec.storage.model_files import load_state, save_model
from recbole_adarec.trainer.distillation import DistillationTrainer
from recbole_adarec.trainer.fitting import fit_and_evaluate
from recbole_adarec.trainer.registry import get_trainer

TrainStage = Callable[[Any, Loaders], tuple[Any, dict[str, Any]]]


def run_stage(
    folder: RunFolder, name: str, config: Callable[[], Any], data: Loaders, train: TrainStage
) -> dict[str, Any]:
    """The content of a stage's model file; the stage is trained first, unless the file exists.

    Parameters
    ----------
    folder : RunFolder
        Of the run; the file is ``<name>.pth``.
    name : str
        Name of the stage.
    config : callable
        Returns the configuration of the stage; it may read the files of earlier stages.
    data : Loaders
        Of the run.
    train : callable
        Called with the configuration and the data of the stage; returns the model and the further content of its file.
    """
    path = folder / f"{name}.pth"
    if not distributed.from_first(path.is_file()):
        stage_config = config()
        getLogger().info(f"{name} begins")
        start = time.perf_counter()
        # Every stage starts from the seed, so that a continued run has the figures of an uninterrupted one.
        init_seed(stage_config["seed"], stage_config["reproducibility"])
        with folder.part(name):
            model, results = train(stage_config, data.for_stage(stage_config))
        seconds = time.perf_counter() - start
        if distributed.is_first():
            stored = stage_config["stored_weights"] if name == "student" else "float32"
            save_model(path, model, stage_config, stored, seconds=seconds, **results)
        distributed.barrier()
        getLogger().info(f"{name} is finished after {seconds:.1f} s")
    return load_state(path, expected=MODELS[name])


def reuse_stage(folder: RunFolder, name: str, path: str | Path) -> None:
    """Copy a stage's model file from another run, unless the folder has one.

    Parameters
    ----------
    folder : RunFolder
        Of the run.
    name : str
        Name of the stage.
    path : path-like
        Model file of a run with the same values for this stage.

    Raises
    ------
    AdaRecError
        If the file is missing, damaged, or of another model.
    """
    if not (folder / f"{name}.pth").exists():
        load_state(path, expected=MODELS[name])
        write_bytes(folder / f"{name}.pth", Path(path).read_bytes())


def build_trainer(
    config: Any, data: Loaders, folder: RunFolder, teacher_outputs: TeacherOutputCache | None = None
) -> Any:
    """A trainer with a new, untrained model.

    Parameters
    ----------
    config : recbole.config.Config
        Of the stage.
    data : Loaders
        With the training loader of the stage.
    folder : RunFolder
        Holds the checkpoint during the training.
    teacher_outputs : TeacherOutputCache, optional
        Shared by trainings with the same teacher.
    """
    model = get_model(config["model"])(config, data.train._dataset).to(config["device"])
    trainer = get_trainer(config)(config, model)
    trainer.saved_model_file = str(folder / f".{config['model']}.training.pth")
    if isinstance(trainer, DistillationTrainer) and teacher_outputs is not None:
        trainer.teacher_outputs = teacher_outputs
    return trainer


def train_model(
    trainer: Any, data: Loaders, after_epoch: Callable[[int, float], None] | None = None
) -> tuple[Any, dict[str, Any]]:
    """Train and evaluate the model of a trainer.

    Parameters
    ----------
    trainer : StageTrainer
        What `build_trainer` returned.
    data : Loaders
        With the training loader of the stage.
    after_epoch : callable, optional
        Called with the epoch, from 0, and the validation metric after each epoch that was validated.

    Returns
    -------
    tuple
        The trained model, and what its file holds besides the weights.
    """
    config = trainer.config
    results = fit_and_evaluate(trainer, data, config["show_progress"], after_epoch)
    results["history"] = trainer.training_log  # "history": as model files name it
    results["item_tokens"] = item_tokens(data)
    if config["model"] == STAGES["student"]:
        results["architecture"] = trainer.model.architecture.to_dict()
    return trainer.model, results


def item_tokens(data: Loaders) -> list[str]:
    """The token of each item id in the dataset; id 0 is padding."""
    return [str(token) for token in data.dataset.field2id_token[data.dataset.iid_field]]
