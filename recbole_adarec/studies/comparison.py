"""Comparison of models on the same users: accuracy with paired significance, size, speed and training time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recbole_adarec.config.baselines import baseline_config
from recbole_adarec.config.resolve import full_config, resolve_user_config
from recbole_adarec.config.run_config import RunConfig
from recbole_adarec.config.schema import MODELS
from recbole_adarec.config.stages import stage_config
from recbole_adarec.data.loading import load_data
from recbole_adarec.errors import AdaRecError
from recbole_adarec.evaluation.per_user import UserScores, user_scores
from recbole_adarec.evaluation.profile import count_macs, count_parameters, measure_speed, scores_all_items, timing_rows
from recbole_adarec.evaluation.significance import paired_difference, paired_tests
from recbole_adarec.interop.baselines import build_baseline, train_baseline
from recbole_adarec.interop.every_position import EVERY_POSITION_MODELS
from recbole_adarec.interop.patches import recbole_patches
from recbole_adarec.memory import use_threads
from recbole_adarec.model.registry import get_model
from recbole_adarec.model.stored import build_model
from recbole_adarec.report.writing import write_result
from recbole_adarec.runs.pipeline import Run
from recbole_adarec.runs.run_folder import RunFolder
from recbole_adarec.storage.files import load_checkpoint, plain
from recbole_adarec.storage.model_files import FORMAT as MODEL_FORMAT
from recbole_adarec.studies.comparison_tables import (
    EXTRA_MEASURES,
    MEASURES,
    comparison_html,
    comparison_latex,
    comparison_markdown,
)

COMPARISON_FORMAT = "recbole-adarec-comparison/1"
# Models that a run of the pipeline trains, and their stages there; all others are trained by themselves.
RUN_STAGES = {"AdaRecTeacher": "teacher", "AdaRecStudent": "student"}


class TrainedModel(NamedTuple):
    """A trained model with its metrics and what its training took.

    Attributes
    ----------
    model : Module
        The model, in evaluation mode.
    results : dict
        RecBole's metrics of ``valid`` and ``test``.
    training : dict
        ``seconds``, ``epochs``, and ``how``: a key of `recbole_adarec.studies.comparison_tables.TRAINED`.
    """

    model: Any
    results: dict[str, dict[str, float]]
    training: dict[str, Any]


class Comparison:
    """Trains and compares models in a folder, which the same command continues; more models can be added.

    Parameters
    ----------
    values : dict
        What `recbole_adarec.config.resolve.resolve_user_config` returned.
    folder : path-like
        Folder of the files: ``<name>.pth`` is a model, ``run/`` is the run that trains `AdaRecTeacher` and
        `AdaRecStudent`.
    fast : bool
        Train the models of `recbole_adarec.interop.every_position.EVERY_POSITION_MODELS` on every position of windows.

    Raises
    ------
    AdaRecError
        If the folder holds a comparison of other values.
    """

    def __init__(self, values: dict[str, Any], folder: str | Path, fast: bool = False) -> None:
        use_threads(values["threads"])
        self.config = stage_config(values, "teacher")
        self.data = load_data(self.config)
        values = values | {"MAX_ITEM_LIST_LENGTH": self.config["MAX_ITEM_LIST_LENGTH"]}  # a number where it was auto
        self.values, self.fast = values, fast
        self.folder = RunFolder(folder, full_config(values))

    @recbole_patches()
    def run(self, names: Sequence[str], reference: str) -> dict[str, Any]:
        """Train the models that have no file yet, evaluate all, and measure their speed in turn.

        Parameters
        ----------
        names : sequence of str
            `AdaRecTeacher`, `AdaRecStudent`, `CpRec`, or names of sequential models of RecBole.
        reference : str
            The one that the others are compared with.

        Returns
        -------
        dict
            Content of compare.json.

        Raises
        ------
        AdaRecError
            If RecBole has no such model, or a model reads histories of another length.
        """
        configs = {name: self._config(name) for name in names if name not in RUN_STAGES}
        with self.folder.recording():
            trained = self._run_models([name for name in names if name in RUN_STAGES])
            trained |= {name: self._load_or_train(name, config) for name, config in configs.items()}
        trained = {name: trained[name] for name in names}
        models = {name: entry.model for name, entry in trained.items()}
        k = self.config["topk"][0]
        scores = {
            name: {"valid": user_scores(model, self.data.valid, k), "test": user_scores(model, self.data.test, k)}
            for name, model in models.items()
        }
        rows, longest = timing_rows(self.data.test._dataset, self.config["device"])
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
                        part: entry.results[part] | {m: float(getattr(part_scores, m).mean()) for m in EXTRA_MEASURES}
                        for part, part_scores in scores[name].items()
                    },
                }
                for name, entry in trained.items()
            ],
            "significance": [
                {"model": name, "measure": measure}
                | significance_row(scores[name]["test"], scores[reference]["test"], measure)
                for name in names
                if name != reference
                for measure in MEASURES
            ],
        }

    def _config(self, name: str) -> Any:
        config = baseline_config(self.values, name, every_position=self._on_every_position(name))
        if config["MAX_ITEM_LIST_LENGTH"] != self.config["MAX_ITEM_LIST_LENGTH"]:
            raise AdaRecError("compare: MAX_ITEM_LIST_LENGTH has to be the same for all models; give it without prefix")
        if not scores_all_items(get_model(name)):
            raise AdaRecError(f"compare: {name} scores one item at a time, so users cannot be ranked; leave it out")
        return config

    def _on_every_position(self, name: str) -> bool:
        return self.fast and name in EVERY_POSITION_MODELS

    def _run_models(self, names: Sequence[str]) -> dict[str, TrainedModel]:
        """The models of a run of the pipeline; the run stops after the teacher if the student is not among them."""
        if not names:
            return {}
        run = Run(RunConfig(self.values | {"baselines": [], "run_dir": str(self.folder / "run")}))
        contents = run.train(until="student" if "AdaRecStudent" in names else "teacher")
        seconds = [content["seconds"] for content in contents.values()]
        if (choice := self.folder / "run" / "candidates.json").is_file():
            seconds.append(json.loads(choice.read_text(encoding="utf-8"))["seconds"])
        trained = {}
        for name in names:
            content = contents[RUN_STAGES[name]]
            spent = sum(seconds) if name == "AdaRecStudent" else content["seconds"]
            trained[name] = TrainedModel(
                build_model(content, self.config["device"]),
                {part: content[part] for part in ("valid", "test")},
                {"seconds": spent, "epochs": content["epochs"], "how": "here"},
            )
        return trained

    def _load_or_train(self, name: str, config: Any) -> TrainedModel:
        """The trained model `name`: from its file, or trained now."""
        fast = self._on_every_position(name)
        path = self.folder / f"{name}{'-every-position' if fast else ''}.pth"
        if not path.is_file():
            with self.folder.part(path.stem):
                train_baseline(path, config, self.data if fast else None)
        content = load_checkpoint(path, expected=MODEL_FORMAT)
        model = build_baseline(config, self.data, fast)
        model.load_state_dict(content["state_dict"])
        return TrainedModel(
            model.to(config["device"]).eval(),
            {part: content[part] for part in ("valid", "test")},
            {
                "seconds": content["seconds"],
                "epochs": content["epochs"],
                "how": "every position" if fast else "here" if name in MODELS.values() else "RecBole",
            },
        )


def significance_row(scores: UserScores, reference: UserScores, measure: str) -> dict[str, Any]:
    """The paired difference of a measure over the same users, `scores` minus `reference`.

    Parameters
    ----------
    scores, reference : UserScores
        Of two models on the same U users.
    measure : str
        A key of `recbole_adarec.studies.comparison_tables.MEASURES`.

    Returns
    -------
    dict
        ``mean``; ``low`` and ``high`` of the 95 % interval; ``t_test_p`` and ``wilcoxon_p``, None if the test does not
        apply.
    """
    pair = getattr(scores, measure), getattr(reference, measure)
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
    """Compare models, and write compare.json, .md, .tex and .html beside their files.

    Parameters
    ----------
    models : sequence of str
        Names as in `Comparison.run`.
    config_files, overrides
        As in `recbole_adarec.config.resolve.resolve_user_config`.
    reference : str, optional
        The model that the others are compared with; `AdaRecStudent` by default, the first model if that is missing.
    fast_baselines : bool
        Train causal models of RecBole on every position of windows, as `fast` of `Comparison`.
    output : str
        The folder; each dataset has a folder in it.

    Returns
    -------
    dict
        Content of compare.json.

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
    baselines = [name for name in names if name not in RUN_STAGES]
    values = resolve_user_config(None, config_files, overrides | {"baselines": baselines})
    folder = Path(output) / values["dataset"]
    comparison: dict[str, Any] = plain(Comparison(values, folder, fast_baselines).run(names, reference))
    documents = {
        "md": comparison_markdown(comparison),
        "tex": comparison_latex(comparison),
        "html": comparison_html(comparison),
    }
    write_result(folder, "compare", comparison, documents)
    return comparison
