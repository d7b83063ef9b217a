"""RecBole's models in a run, as baselines or as the teacher."""

from __future__ import annotations

from logging import getLogger
from typing import Any

from recbole_adarec import distributed
from recbole_adarec.config.recbole_models import check_recorded_score, is_checkpoint
from recbole_adarec.config.run_config import RunConfig
from recbole_adarec.data.loading import Loaders
from recbole_adarec.interop.baselines import build_baseline, train_baseline
from recbole_adarec.model.registry import get_model
from recbole_adarec.runs.run_folder import RunFolder
from recbole_adarec.runs.stages import item_tokens
from recbole_adarec.storage.files import load_checkpoint
from recbole_adarec.storage.recbole_checkpoint import read_checkpoint
from recbole_adarec.trainer.calibration import fit_repeat_bias, repeat_share
from recbole_adarec.trainer.teacher import evaluate_model


def trained_baseline(
    config: RunConfig, data: Loaders, folder: RunFolder, name: str, prefix: str = "baseline"
) -> tuple[Any, dict[str, Any]]:
    """A trained model of RecBole and the content of its file; trained as RecBole trains it, unless the file exists.

    Parameters
    ----------
    config : RunConfig
        Of the run.
    data : Loaders
        Of the run: gives the numbers of items and users.
    folder : RunFolder
        Of the run; the file is ``<prefix>-<name>.pth``.
    name : str
        RecBole's name of the model.
    prefix : str
        Prefix of the keys that are for this model alone.

    Returns
    -------
    tuple
        The model, in evaluation mode, and the content of its file.
    """
    path = folder / f"{prefix}-{name}.pth"
    model_config = config.baseline(name, prefix, checkpoint_dir=str(folder.path))
    if not path.is_file():
        with folder.part(name):
            train_baseline(path, model_config)
    content = load_checkpoint(path)
    model = build_baseline(model_config, data).to(model_config["device"]).eval()
    model.load_state_dict(content["state_dict"])
    return model, content


def recbole_teacher(
    teacher: str, config: RunConfig, stage_config: Any, data: Loaders, folder: RunFolder
) -> tuple[Any, dict[str, Any]]:
    """A model of RecBole as the teacher, read from its checkpoint or trained.

    Parameters
    ----------
    teacher : str
        A checkpoint of RecBole, or the name of a model.
    config : RunConfig
        Of the run.
    stage_config : recbole.config.Config
        Of the stage ``teacher``.
    data : Loaders
        Of the run.
    folder : RunFolder
        Of the run.

    Returns
    -------
    tuple
        The model, in evaluation mode, and what its model file holds besides the weights.

    Raises
    ------
    AdaRecError
        If the checkpoint's weights or its recorded validation result do not fit this data.
    """
    model = get_model(stage_config["model"])(stage_config, data.train._dataset).to(stage_config["device"])
    trained_before = is_checkpoint(teacher)
    if trained_before:
        checkpoint = read_checkpoint(teacher)
        weights, epochs = checkpoint.state_dict, checkpoint.epochs
    else:
        if distributed.is_first():
            trained_baseline(config, data, folder, teacher, "teacher")
        distributed.barrier()
        trained = load_checkpoint(folder / f"teacher-{teacher}.pth")
        weights, epochs = trained["state_dict"], trained["epochs"]
    model.load(weights, teacher)
    model.eval().check(next(iter(data.valid))[0][:32].to(stage_config["device"]))
    model.repeat_bias.zero_()  # first the results without a bias, as RecBole ranks
    as_recbole = results = evaluate_model(stage_config, model, data)
    if trained_before:
        getLogger().info(check_recorded_score(checkpoint, results["valid"]))
    getLogger().info(model.describe())
    if stage_config["repeat_bias"] is None:  # the student is fitted to one too
        fit_repeat_bias(model, data.valid, repeat_share(data.valid))
    else:
        model.repeat_bias.fill_(stage_config["repeat_bias"])
    if model.repeat_bias:
        results = evaluate_model(stage_config, model, data)
    return model, {
        **results,
        "as_recbole": as_recbole,
        "epochs": epochs,
        "history": [],
        "n_users": data.dataset.user_num,
        "item_tokens": item_tokens(data),
    }
