"""Models side by side: accuracy with paired significance, size, speed and training time, on the same users."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from recbole_adarec.config.baselines import baseline_config
from recbole_adarec.config.resolve import full_config, resolve_user_config
from recbole_adarec.config.run_config import RunConfig
from recbole_adarec.config.schema import MODELS
from recbole_adarec.config.stages import stage_config
from recbole_adarec.data.loading import load_data
from recbole_adarec.errors import AdaRecError
from recbole_adarec.evaluation.per_user import UserScores, user_scores
from recbole_adarec.evaluation.profile import count_macs, count_parameters, measure_speed, timing_rows
from recbole_adarec.evaluation.significance import paired_difference, paired_tests
from recbole_adarec.interop.baselines import build_baseline, train_baseline
from recbole_adarec.interop.every_position import EVERY_POSITION_MODELS
from recbole_adarec.interop.patches import recbole_patches
from recbole_adarec.model.stored import build_model
from recbole_adarec.runs.pipeline import Run
from recbole_adarec.runs.run_folder import RunFolder
from recbole_adarec.storage.files import load_checkpoint, plain, write_text
from recbole_adarec.storage.model_files import FORMAT as MODEL_FORMAT
from recbole_adarec.studies.comparison_tables import (
    EXTRA_MEASURES,
    MEASURES,
    comparison_html,
    comparison_latex,
    comparison_markdown,
)

COMPARISON_FORMAT = "recbole-adarec-comparison/1"
STAGE_OF = {"AdaRecTeacher": "teacher", "AdaRecStudent": "student"}  # what a run makes; all others are trained alone


class Entry(NamedTuple):
    """A trained model.

    Attributes
    ----------
    model : Module
        In evaluation mode.
    results : dict
        ``valid`` and ``test``: RecBole's metrics.
    training : dict
        ``seconds``, ``epochs``, and ``how``: a key of `TRAINED`.
    """

    model: Any
    results: dict[str, dict[str, float]]
    training: dict[str, Any]


class Comparison:
    """A folder with a file for each model, which the same command continues and which more models may join.

    Parameters
    ----------
    values : dict
        What `recbole_adarec.config.resolve_user_config.resolve_user_config` returned.
    folder : path-like
        ``<name>.pth`` is a model; ``run/`` is the run that makes `AdaRecTeacher` and `AdaRecStudent`.
    fast : bool
        Train the models of `recbole_adarec.baselines.EVERY_POSITION_MODELS` on every position of windows.
    """

    def __init__(self, values: dict[str, Any], folder: str | Path, fast: bool = False) -> None:
        if values["threads"]:
            torch.set_num_threads(values["threads"])
        self.values, self.fast = values, fast
        self.config = stage_config(values, "teacher")
        self.data = load_data(self.config)
        self.folder = RunFolder(folder, full_config(values))

    @recbole_patches()
    def run(self, names: Sequence[str], reference: str) -> dict[str, Any]:
        """Train what is not there, evaluate, and measure all models in turn.

        Parameters
        ----------
        names : sequence of str
            `AdaRecTeacher`, `AdaRecStudent`, or names of RecBole models and of registered ones.
        reference : str
            One of them, with which the others are compared.

        Returns
        -------
        dict
            What ``compare.json`` holds.
        """
        configs = {name: self._config(name) for name in names if name not in STAGE_OF}
        with self.folder.recording():
            entries = self._from_run([name for name in names if name in STAGE_OF])
            entries |= {name: self._alone(name, config) for name, config in configs.items()}
        entries = {name: entries[name] for name in names}
        k = self.config["topk"][0]
        scores = {
            name: {"valid": user_scores(of.model, self.data.valid, k), "test": user_scores(of.model, self.data.test, k)}
            for name, of in entries.items()
        }
        rows, longest = timing_rows(self.data.test._dataset, self.config["device"])
        models = {name: entry.model for name, entry in entries.items()}
        speed = measure_speed(models, rows, self.values["latency_repeats"])
        return {
            "format": COMPARISON_FORMAT,
            "dataset": self.values["dataset"],
            "seed": self.config["seed"],
            "users": len(scores[reference]["test"].user),
            "k": k,
            "reference": reference,
            "models": [
                {
                    "name": name,
                    "training": entry.training,
                    "parameters": count_parameters(entry.model),
                    "macs_per_sequence": count_macs(entry.model, longest),
                    **speed[name],
                    **{
                        part: entry.results[part] | {m: float(getattr(of, m).mean()) for m in EXTRA_MEASURES}
                        for part, of in scores[name].items()
                    },
                }
                for name, entry in entries.items()
            ],
            "significance": [
                {"model": name, "measure": measure}
                | paired_row(scores[name]["test"], scores[reference]["test"], measure)
                for name in names
                if name != reference
                for measure in MEASURES
            ],
        }

    def _config(self, name: str) -> Any:
        config = baseline_config(self.values, name, every_position=self._on_every_position(name))
        if config["MAX_ITEM_LIST_LENGTH"] != self.config["MAX_ITEM_LIST_LENGTH"]:
            raise AdaRecError("compare: MAX_ITEM_LIST_LENGTH has to be the same for all models; give it without prefix")
        return config

    def _on_every_position(self, name: str) -> bool:
        return self.fast and name in EVERY_POSITION_MODELS

    def _from_run(self, names: Sequence[str]) -> dict[str, Entry]:
        """The models of a run of the pipeline, which stops after the teacher where no student is asked for."""
        if not names:
            return {}
        run = Run(RunConfig(self.values | {"baselines": [], "run_dir": str(self.folder / "run")}))
        contents = run.train(until="student" if "AdaRecStudent" in names else "teacher")
        seconds = [content["seconds"] for content in contents.values()]
        if (choice := self.folder / "run" / "candidates.json").is_file():
            seconds.append(json.loads(choice.read_text(encoding="utf-8"))["seconds"])
        entries = {}
        for name in names:
            content = contents[STAGE_OF[name]]
            spent = sum(seconds) if name == "AdaRecStudent" else content["seconds"]
            entries[name] = Entry(
                build_model(content, self.config["device"]),
                {part: content[part] for part in ("valid", "test")},
                {"seconds": spent, "epochs": content["epochs"], "how": "here"},
            )
        return entries

    def _alone(self, name: str, config: Any) -> Entry:
        """A model with a file of its own."""
        fast = self._on_every_position(name)
        path = self.folder / f"{name}{'-every-position' if fast else ''}.pth"
        if not path.is_file():
            with self.folder.part(path.stem):
                train_baseline(path, config, self.data if fast else None)
        content = load_checkpoint(path, expected=MODEL_FORMAT)
        model = build_baseline(config, self.data, fast)
        model.load_state_dict(content["state_dict"])
        return Entry(
            model.to(config["device"]).eval(),
            {part: content[part] for part in ("valid", "test")},
            {
                "seconds": content["seconds"],
                "epochs": content["epochs"],
                "how": "every position" if fast else "here" if name in MODELS.values() else "RecBole",
            },
        )


def paired_row(ours: UserScores, theirs: UserScores, measure: str) -> dict[str, Any]:
    """The paired difference of a measure, `ours` minus `theirs`, with its interval and p-values."""
    pair = getattr(ours, measure), getattr(theirs, measure)
    tests = paired_tests(*pair)
    return {**paired_difference(*pair)._asdict(), "t_test_p": tests.t_test, "wilcoxon_p": tests.wilcoxon}


@recbole_patches()
def run_comparison(
    models: Sequence[str],
    config_files: list[str],
    overrides: dict[str, Any],
    *,
    reference: str | None = None,
    fast_baselines: bool = False,
    output: str = "compare",
) -> dict[str, Any]:
    """Compare models and write the tables beside their files.

    Parameters
    ----------
    models : sequence of str
        Names as in `Comparison.run`.
    config_files, overrides
        As in `recbole_adarec.config.resolve_user_config.resolve_user_config`.
    reference : str, optional
        The model that the others are compared with: `AdaRecStudent`, or the first one where it is missing.
    fast_baselines : bool
        As `fast` of `Comparison`.
    output : str
        The folder; one of its own for each dataset is made in it.

    Returns
    -------
    dict
        What ``compare.json`` holds.

    Raises
    ------
    AdaRecError
        For input that cannot be used.
    """
    names = list(dict.fromkeys(models))
    if not names:
        raise AdaRecError('compare: name the models, --models="SASRec GRU4Rec AdaRecStudent"')
    reference = reference or ("AdaRecStudent" if "AdaRecStudent" in names else names[0])
    if reference not in names:
        raise AdaRecError(f"compare: reference is {reference!r}, expected one of {', '.join(names)}")
    for key in ("run_dir", "baselines", "nproc", "world_size"):
        if key in overrides:
            raise AdaRecError(f"compare: leave out {key}; it trains in one process, into the folder --output=")
    alone = [name for name in names if name not in STAGE_OF]
    values = resolve_user_config(None, config_files, overrides | {"baselines": alone})
    folder = Path(output) / values["dataset"]
    found: dict[str, Any] = plain(Comparison(values, folder, fast_baselines).run(names, reference))
    writers: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "md": comparison_markdown,
        "tex": comparison_latex,
        "html": comparison_html,
    }
    write_text(folder / "compare.json", json.dumps(found, indent=1) + "\n")
    for ending, write in writers.items():
        write_text(folder / f"compare.{ending}", write(found))
    return found
