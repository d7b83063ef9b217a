"""Trains and evaluates any model, from the first epoch to the test result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from recbole_adarec import distributed
from recbole_adarec.data.loading import Loaders
from recbole_adarec.storage.files import plain
from recbole_adarec.trainer.base import StageTrainer


def fit_and_evaluate(
    trainer: Any, data: Loaders, show_progress: bool, after_epoch: Callable[[int, float], None] | None = None
) -> dict[str, Any]:
    """Fit a model, restore its best epoch by the validation metric, and evaluate it.

    Parameters
    ----------
    trainer : recbole.trainer.Trainer
        Of this package or RecBole's.
    data : Loaders
        With the training loader of the stage.
    show_progress : bool
        Whether to show a progress bar.
    after_epoch : callable, optional
        Called with the epoch, from 0, and the validation metric after each epoch that was validated.

    Returns
    -------
    dict
        ``valid`` and ``test``: metrics of the restored model; ``epochs``: how many were trained.
    """
    path = Path(trainer.saved_model_file)
    try:
        trainer.fit(data.train, data.valid, verbose=True, show_progress=show_progress, callback_fn=after_epoch)
        valid = dict(trainer.evaluate(data.valid, load_best_model=True))
        if isinstance(trainer, StageTrainer):
            valid = trainer.quantize_items(data.train, data.valid, valid, show_progress)
            valid = trainer.round_weights(data.valid, valid)
            valid = trainer.choose_served_prior(data.valid, valid)
        test = dict(trainer.evaluate(data.test, load_best_model=False))
    finally:
        if distributed.is_first():
            path.unlink(missing_ok=True)
    trainer.model.eval()
    return {"valid": plain(valid), "test": plain(test), "epochs": len(trainer.train_loss_dict)}
