"""RecBole's own models beside ours: trained as RecBole trains them, or, the causal ones, on every position of windows.

RecBole trains a history of n items as n - 1 rows of one target each; a causal model can give all of those targets from
one row, in a small part of the time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recbole.utils import get_model, get_trainer, init_seed
from torch import Tensor, nn

from recbole_adarec.checkpoints import save_model
from recbole_adarec.config import MODELS, AdaRecConfig, make_config, stage_values
from recbole_adarec.data.loading import Loaders, load_data
from recbole_adarec.errors import AdaRecError
from recbole_adarec.interop.patches import recbole_patches
from recbole_adarec.model.base import Encoding, SequenceRecommender
from recbole_adarec.model.item_table import FullItemTable
from recbole_adarec.settings import model_defaults
from recbole_adarec.stock import stock_keys
from recbole_adarec.trainer.fitting import fit_and_evaluate
from recbole_adarec.trainer.teacher import AdaRecTeacherTrainer

States = Callable[[Any, Tensor], Tensor]
CAUSAL: dict[str, States] = {}


def causal(name: str) -> Callable[[States], States]:
    """Tell that a RecBole model is causal, and how to read its states at all positions.

    The decorated function takes the model and item ids ``[B, L]``, and gives what is scored against
    ``model.item_embedding``, ``[B, L, C]``.
    """

    def enter(states: States) -> States:
        CAUSAL[name] = states
        return states

    return enter


@causal("SASRec")
@causal("GRU4Rec")
def _before_the_last_is_taken(model: Any, item_seq: Tensor) -> Tensor:
    """Of models whose ``forward`` ends in taking the state at the last item."""
    model.gather_indexes = lambda output, _: output
    try:
        return model.forward(item_seq, (item_seq != 0).sum(1))
    finally:
        del model.gather_indexes


@causal("NextItNet")
def _nextitnet(model: Any, item_seq: Tensor) -> Tensor:
    """RecBole's takes the last position, which holds padding after a short history; here the last item's is taken."""
    return model.final_layer(model.residual_blocks(model.item_embedding(item_seq)))


class EveryPosition(SequenceRecommender):
    """A causal model of RecBole under our training: cross entropy of the next item at every position.

    What RecBole adds to the loss (NextItNet: 1e-5 times the norms of its weights) is left out.

    Parameters
    ----------
    config : recbole.config.Config
        That of the RecBole model, with the keys of `every_position_values`.
    dataset : Dataset
        For the number of items.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.stock = get_model(config["model"])(config, dataset)
        self.states = CAUSAL[config["model"]]
        table: nn.Embedding = self.stock.item_embedding
        self.item_table = FullItemTable(self.n_items, table.embedding_dim)
        self.item_table.embedding = table

    def encode(self, item_seq: Tensor) -> Encoding:
        """States at all positions; no layers to distil."""
        return Encoding(self.stock.item_embedding(item_seq), (), self.states(self.stock, item_seq))


class EveryPositionTrainer(AdaRecTeacherTrainer):
    """Trains `EveryPosition` at RecBole's constant learning rate."""

    stage = "baseline"

    def _set_learning_rate(self, progress: float) -> None:
        """Nothing: RecBole has no schedule."""

    def _as_good_as_the_best(self, score: float, rows: int) -> bool:
        return False  # the best epoch and no later one, as RecBole chooses


def every_position_values() -> dict[str, Any]:
    """Keys of our training that RecBole's models do not have; items of the history are ranked as RecBole ranks them."""
    ours = model_defaults("AdaRecTeacher")
    kept = {key: ours[key] for key in ours if key.startswith(("item_", "sampled_"))}
    return kept | {"item_table_rate": 1.0, "repeat_bias": 0.0}


def baseline_config(
    values: dict[str, Any], name: str, stage: str = "baseline", every_position: bool = False, **extra: Any
) -> AdaRecConfig:
    """RecBole's configuration of a model beside ours; `stage` is the prefix of its own values, `CpRec`'s is its own.

    Raises
    ------
    AdaRecError
        If RecBole has no such model, or it cannot be trained on every position.
    """
    try:
        get_model(name)
    except (ValueError, ImportError, AttributeError) as error:
        raise AdaRecError(f"models: RecBole has no model {name!r}") from error
    if every_position:
        extra = every_position_values() | extra
    prefix = next((prefix for prefix, model in MODELS.items() if model == name), stage)
    own = stage_values(values, prefix) | extra
    config = make_config(name, own)
    if features := item_features(config):
        own["load_col"] = _with_columns(config, features)
        config = make_config(name, own)
    if own.get("train_neg_sample_args", ...) is None and config["loss_type"] != "CE":
        del own["train_neg_sample_args"]  # a run's default, for cross entropy; others need RecBole's sampled negatives
        config = make_config(name, own)
    if every_position and config["loss_type"] != "CE":
        raise AdaRecError(f"fast_baselines: {name} has loss_type {config['loss_type']!r}, every position takes 'CE'")
    return config


def item_features(config: Any) -> list[str]:
    """The columns of the ``.item`` file that a RecBole model reads: ``selected_features`` or ``item_attribute``."""
    keys = stock_keys(config["model"])
    named = [config[key] for key in ("selected_features", "item_attribute") if key in keys and config[key]]
    return [column for value in named for column in (value if isinstance(value, list) else [value])]


def _with_columns(config: Any, features: list[str]) -> Any:
    """``load_col`` with the item features that a model reads, unless it loads columns of items already.

    Raises
    ------
    AdaRecError
        If the dataset has no such column.
    """
    columns = config["load_col"]
    if columns is None or "item" in columns:  # None loads everything
        return columns
    name, folder = config["dataset"], Path(config["data_path"])
    file = folder / f"{name}.item"
    if folder.is_dir():  # else it is downloaded later
        header = file.open(encoding=config["encoding"] or "utf-8").readline() if file.is_file() else ""
        known = [column.split(":")[0] for column in header.rstrip("\n").split(config["field_separator"])]
        if missing := [column for column in features if column not in known]:
            raise AdaRecError(
                f"{config['model']} reads the item feature {missing[0]!r}, and dataset {name!r} has "
                + (f"none of that name in {file}: {', '.join(known)}" if header else f"no file {file}")
                + "; name the features of your data with --selected_features= (S3Rec: --item_attribute=)"
            )
    return columns | {"item": [config["ITEM_ID_FIELD"], *features]}


@recbole_patches()
def train_baseline(path: Path, config: AdaRecConfig, windows: Loaders | None = None) -> None:
    """Train a model and write its file.

    Parameters
    ----------
    path : Path
        The file.
    config : Config
        What `baseline_config` gave.
    windows : Loaders, optional
        To train on every position of: our loaders. Otherwise the model is trained as RecBole trains it, on RecBole's.
    """
    init_seed(config["seed"], config["reproducibility"])
    data = load_data(config) if windows is None else windows.for_stage(config)
    start = time.perf_counter()
    model = build(config, data, windows is not None).to(config["device"])
    if windows is None:
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    else:
        trainer = EveryPositionTrainer(config, model)
    trainer.saved_model_file = str(path.with_name(f".{path.stem}.training.pth"))
    results = fit_and_evaluate(trainer, data, config["show_progress"])
    save_model(path, model, config, seconds=time.perf_counter() - start, **results)


def build(config: AdaRecConfig, data: Loaders, every_position: bool) -> Any:
    """The untrained model of a configuration; item features that `data` lacks are loaded."""
    kind = EveryPosition if every_position else get_model(config["model"])
    dataset = data.train._dataset
    if any(column not in dataset.field2type for column in item_features(config)):
        dataset = load_data(config).train._dataset
    return kind(config, dataset)
