"""Trains the candidates for the teacher, side by side where there are threads for it, each into a file."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple

import torch
from recbole.utils import init_seed

from recbole_adarec import distributed
from recbole_adarec.config.candidates import candidate_names
from recbole_adarec.config.run_config import RunConfig
from recbole_adarec.config.schema import STAGES
from recbole_adarec.data.loading import Loaders, load_data
from recbole_adarec.errors import AdaRecError
from recbole_adarec.evaluation.mean_weights import Calibrated, HeldOut, calibrate, held_out
from recbole_adarec.interop.patches import recbole_patches
from recbole_adarec.memory import keep_freed_memory
from recbole_adarec.model.registry import get_model
from recbole_adarec.model.stored import build_model
from recbole_adarec.runs.recbole_models import recbole_teacher
from recbole_adarec.runs.run_folder import RunFolder
from recbole_adarec.storage.model_files import load_state, save_model
from recbole_adarec.trainer.registry import get_trainer

_BETWEEN_SEEDS = 1000  # runs with neighbouring seeds share no candidate


class Trained(NamedTuple):
    """A candidate after a round.

    Attributes
    ----------
    content : dict
        Of its model file.
    states : HeldOut
        What its logits on validation rows are computed from.
    result : Calibrated
        Its likelihood and ranking on these rows.
    """

    content: dict[str, Any]
    states: HeldOut
    result: Calibrated


class CandidateTraining:
    """Trains candidates in rounds. Each training is kept in a file, from which an interrupted round continues.

    Parameters
    ----------
    config : RunConfig
        Of the run; its ``backbone`` names several candidates.
    data : Loaders
        Of the run.
    folder : RunFolder
        Of the run.

    Attributes
    ----------
    candidates : dict
        The values of each candidate, by its name; of those with a second seed too.
    second_seeds : dict of str to str
        By the name of a candidate, that of the same one with another seed; none for models of RecBole.
    """

    def __init__(self, config: RunConfig, data: Loaders, folder: RunFolder) -> None:
        self.config, self.data, self.folder = config, data, folder
        named = dict(zip(candidate_names(config.candidates), config.candidates, strict=True))
        self.second_seeds = {name: f"{name}-seed2" for name, row in named.items() if "teacher" not in row}
        self.candidates = named | {again: named[name] for name, again in self.second_seeds.items()}
        self._open = ExitStack()
        self._pool: ProcessPoolExecutor | None = None

    @contextmanager
    def processes(self) -> Iterator[None]:
        """Around all rounds: they share their processes, as to start one and load its data takes seconds."""
        with self._open:
            try:
                yield
            finally:
                self._pool = None

    def _workers(self, number: int) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = self._open.enter_context(distributed.worker_pool(number))
        return self._pool

    def round(self, names: Iterable[str], epochs: int, before: int = 0, share: float = 1.0) -> dict[str, Trained]:
        """Train candidates, on from an earlier round; within `processes`.

        Parameters
        ----------
        names : iterable of str
            The candidates.
        epochs : int
            Epochs after this round, those before it included.
        before : int
            `epochs` of the round before; 0: there was none.
        share : float
            Share of the windows that are trained.

        Raises
        ------
        AdaRecError
            If a process that trains a candidate is killed.
        """
        names = list(names)
        threads = torch.get_num_threads()
        workers = max(min(self._at_a_time(threads), len(names)), 1)
        # The last one has all threads where it would be trained beside idle ones.
        beside = 0 if workers == 1 else len(names) - (len(names) % workers == 1)
        if missing := self._missing(names[:beside], epochs):
            values = pickle.dumps(self.config.values | {"threads": max(1, threads // workers)})
            train = partial(_train_in_worker, values, self.folder.path, self.folder.log)
            pool = self._workers(workers)
            futures = [pool.submit(train, name, epochs, before, share, line) for line, name in enumerate(missing)]
            for name, future in zip(missing, futures, strict=True):
                try:
                    future.result()
                except BrokenProcessPool as error:
                    raise AdaRecError(
                        f"{name}: a process that trained it or another candidate was killed, perhaps for want of "
                        "memory; --teachers_at_a_time=1 needs less"
                    ) from error
        for name in self._missing(names[beside:], epochs):
            self.train(name, epochs, before, share)
        return {name: self._trained(name, epochs) for name in names}

    def _missing(self, names: Iterable[str], epochs: int) -> list[str]:
        return [name for name in names if not distributed.from_first(self._path(name, epochs).is_file())]

    def _at_a_time(self, threads: int) -> int:
        """How many candidates are trained at a time."""
        if distributed.world_size() > 1:
            return 1
        if given := self.config.values["teachers_at_a_time"]:
            return int(given)
        if threads == 1 or self.config.stage("teacher")["device"].type != "cpu":
            return 1
        if not distributed.main_is_guarded():
            getLogger().info(
                'candidates are trained one after the other; under if __name__ == "__main__": in your script they are '
                "trained side by side, in less time"
            )
            return 1
        return threads

    def train(self, name: str, epochs: int, before: int = 0, share: float = 1.0, bar_line: int | None = None) -> None:
        """Train a candidate in this process and write its file; parameters as in `round` and `StageTrainer`."""
        row = self.candidates[name]
        earlier = load_state(self._path(name, before), expected=STAGES["teacher"]) if before else None
        done = len(earlier["history"]) if earlier else 0
        seed = self.config.stage("teacher")["seed"] + _BETWEEN_SEEDS * list(self.candidates).index(name)
        own = {} if "teacher" in row else {"epochs": epochs - done, "seed": seed}
        config = self.config.candidate(row, **own, checkpoint_dir=str(self.folder.path))
        start = time.perf_counter()
        init_seed(seed + done, config["reproducibility"])
        data = self.data.for_stage(config)
        if "teacher" in row:
            model, results = recbole_teacher(row["teacher"], self.config, config, data, self.folder)
        else:
            part = "" if share == 1 else f", {share:.2f} of the data"
            getLogger().info(f"{name}: epochs {done + 1} to {epochs}{part}")
            trainer = get_trainer(config)(config, self.model(config))
            trainer.stage, trainer.bar_line, trainer.window_share = name, bar_line, share
            if earlier is not None:
                trainer.model.load_state_dict(earlier["state_dict"])
                trainer.training_log = list(earlier["history"])
                trainer.restart(config["epochs"])
            trainer.start_repeat_bias(self.data.valid)
            trainer.fit(data.train, saved=False, verbose=False, show_progress=config["show_progress"])
            trainer.fit_repeat_bias(self.data.valid)
            model = trainer.model
            results = {"history": trainer.training_log, "epochs": len(trainer.training_log)}
        seconds = time.perf_counter() - start + (earlier["seconds"] if earlier else 0.0)
        if distributed.is_first():
            save_model(self._path(name, epochs), model, config, **results, seconds=seconds)
        distributed.barrier()

    def model(self, config: Any) -> Any:
        """An untrained teacher on its device."""
        return get_model(config["model"])(config, self.data.train._dataset).to(config["device"])

    def clear(self) -> None:
        """Remove the files of the trainings."""
        if distributed.is_first():
            for name in self.candidates:
                for path in self.folder.path.glob(f".{name}-*.pth"):
                    path.unlink()

    def _path(self, name: str, epochs: int) -> Path:
        return self.folder / f".{name}-{epochs}.pth"

    def _trained(self, name: str, epochs: int) -> Trained:
        """A candidate from its file, with its results on validation rows."""
        device = self.config.stage("teacher")["device"]
        content = load_state(self._path(name, epochs), expected=STAGES["teacher"])
        states = held_out(build_model(content, device), self.data.valid)
        trained = Trained(content, states, calibrate(states))
        getLogger().info(f"{name}: {content['epochs']} epochs, {content['seconds']:.0f} s, {figures(trained.result)}")
        return trained


def figures(result: Calibrated) -> str:
    """Likelihood, temperature and ranking as text."""
    likelihood, ndcg = float(result.log_likelihood.mean()), float(result.ndcg.mean())
    return f"log-likelihood {likelihood:.4f} at temperature {1 / result.scale:.2f}, NDCG@10 {ndcg:.4f}"


@recbole_patches()
def _train_in_worker(
    values: bytes, folder: Path, log: Path | None, name: str, epochs: int, before: int, share: float, bar_line: int
) -> None:
    """Train a candidate in a process of its own."""
    training = _in_worker(values, folder, log)
    with training.folder.recording(), training.folder.part("teacher"):
        training.train(name, epochs, before, share, bar_line)


@lru_cache(maxsize=1)
def _in_worker(values: bytes, folder: Path, log: Path | None) -> CandidateTraining:
    """The trainings of a run in a process of its own, which loads the data once."""
    keep_freed_memory()
    config = RunConfig(pickle.loads(values))  # of our own process
    return CandidateTraining(config, load_data(config.stage("teacher")), RunFolder(folder, config.full(), log))
