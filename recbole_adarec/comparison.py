"""Models side by side: accuracy with paired significance, size, speed and training time, on the same users."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from recbole.utils.utils import list_to_latex
from tabulate import tabulate

from recbole_adarec.baselines import CAUSAL, baseline_config, build, train_baseline
from recbole_adarec.checkpoints import FORMAT as MODEL_FORMAT
from recbole_adarec.checkpoints import build_model
from recbole_adarec.config import MODELS, resolve, resolved, stage_config
from recbole_adarec.data.loading import load_data
from recbole_adarec.errors import AdaRecError
from recbole_adarec.evaluation.profile import count_macs, count_parameters, measure_speed
from recbole_adarec.evaluation.report import comparison_page
from recbole_adarec.evaluation.users import UserScores, paired_difference, paired_tests, user_scores
from recbole_adarec.files import load_checkpoint, plain, write_text
from recbole_adarec.interop.patches import recbole_patches
from recbole_adarec.pipeline import Run
from recbole_adarec.run_folder import RunFolder

FORMAT = "recbole-adarec-comparison/1"
STAGE_OF = {"AdaRecTeacher": "teacher", "AdaRecStudent": "student"}  # what a run makes; all others are trained alone
MEASURES = {
    "ndcg": "NDCG@{k}", "ndcg_new": "NDCG@{k}, new", "recall": "Recall@{k}", "mrr": "MRR@{k}",
    "log_likelihood": "log-likelihood",
}  # fmt: skip
_OURS = ("ndcg_new", "log_likelihood")  # measures that RecBole does not have
NOTES = (
    "Test data, the same users for all. NDCG, Recall, MRR: RecBole's, all items ranked, those of the user's history "
    "among them; new: without those. Models of this package rank them low where people do not take items again, "
    "RecBole's have nothing for that: the new ones say who knows more of the rest. Log-likelihood: of the "
    "held-out item under the softmax of the scores, mean over users; it says little of models that are not trained by "
    "cross entropy.",
    "Item table, layers: trainable parameters. MACs: multiply-accumulates of scoring all items for one full history. "
    "p50: median time of a request with one history; seq/s: throughput of batches; all models measured in turn in one "
    "process. Training: of AdaRecStudent with its teacher and its search.",
    "Difference: model minus reference, [95 % interval of the paired bootstrap over users]; p: two-sided, of the "
    "paired t-test and of Wilcoxon's signed-rank test, not corrected for the number of comparisons. Users are what "
    "varies here, one training of each model: another seed can move a difference too.",
)
TRAINED = {
    "here": "by this package",
    "RecBole": "as RecBole trains it",
    "every position": "on every position of windows, not as RecBole trains it (`--fast_baselines`)",
}


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
        What `recbole_adarec.config.resolve` returned.
    folder : path-like
        ``<name>.pth`` is a model; ``run/`` is the run that makes `AdaRecTeacher` and `AdaRecStudent`.
    fast : bool
        Train the models of `recbole_adarec.baselines.CAUSAL` on every position of windows.
    """

    def __init__(self, values: dict[str, Any], folder: str | Path, fast: bool = False) -> None:
        if values["threads"]:
            torch.set_num_threads(values["threads"])
        self.values, self.fast = values, fast
        self.config = stage_config(values, "teacher")
        self.data = load_data(self.config)
        self.folder = RunFolder(folder, resolved(values))

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
        rows = self.data.test._dataset
        rows = rows[torch.arange(min(len(rows), 256))].to(self.config["device"])
        longest = rows[rows[self.data.test._dataset.item_list_length_field].argmax().reshape(1)]
        models = {name: entry.model for name, entry in entries.items()}
        speed = measure_speed(models, rows, self.values["latency_repeats"])
        return {
            "format": FORMAT,
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
                        part: entry.results[part] | {m: float(getattr(of, m).mean()) for m in _OURS}
                        for part, of in scores[name].items()
                    },
                }
                for name, entry in entries.items()
            ],
            "significance": [
                {"model": name, "measure": measure} | compared(scores[name]["test"], scores[reference]["test"], measure)
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
        return self.fast and name in CAUSAL

    def _from_run(self, names: Sequence[str]) -> dict[str, Entry]:
        """The models of a run of the pipeline, which stops after the teacher where no student is asked for."""
        if not names:
            return {}
        run = Run(self.values | {"baselines": [], "run_dir": str(self.folder / "run")})
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
        model = build(config, self.data, fast)
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


def compared(ours: UserScores, theirs: UserScores, measure: str) -> dict[str, Any]:
    """The paired difference of a measure, `ours` minus `theirs`, with its interval and p-values."""
    pair = getattr(ours, measure), getattr(theirs, measure)
    tests = paired_tests(*pair)
    return {**paired_difference(*pair)._asdict(), "t_test_p": tests.t_test, "wilcoxon_p": tests.wilcoxon}


# ---------------------------------------------------------------------- tables


def models_table(found: Mapping[str, Any], fmt: str = "pipe") -> str:
    """A row for each model."""
    rows = []
    for model in found["models"]:
        test, parameters, training = model["test"], model["parameters"], model["training"]
        rows.append(
            {"model": model["name"]}
            | {_words(name, found): _figure(test.get(_key(name, found)), "{:.4f}") for name in MEASURES}
            | {
                "item table": f"{parameters['item_table']:,}",
                "layers": f"{parameters['layers']:,}",
                "MACs": f"{model['macs_per_sequence'] / 1e6:.1f} M",
                "p50, ms": f"{model['latency_ms']['batch_1_p50']:.2f}",
                "seq/s": f"{model['sequences_per_second']:,.0f}",
                "training, s": f"{training['seconds']:,.0f}",
                "epochs": str(training["epochs"]),
                "trained": training["how"],
            }
        )
    return tabulate(rows, headers="keys", tablefmt=fmt, disable_numparse=True)


def significance_table(found: Mapping[str, Any], fmt: str = "pipe") -> str:
    """A row for each model and measure that is compared with the reference."""
    rows = [
        {
            "model": row["model"],
            "measure": _words(row["measure"], found),
            "difference": f"{row['mean']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]",
            "p, t-test": _figure(row["t_test_p"], "{:.3g}"),
            "p, Wilcoxon": _figure(row["wilcoxon_p"], "{:.3g}"),
        }
        for row in found["significance"]
    ]
    return tabulate(rows, headers="keys", tablefmt=fmt, disable_numparse=True)


def latex(found: Mapping[str, Any]) -> str:
    """Both tables as RecBole writes its result tables, the best of each measure in bold."""
    results = [
        {"Model": model["name"], **{_words(m, found): model["test"].get(_key(m, found)) for m in MEASURES}}
        | {"Layers": model["parameters"]["layers"], "Item table": model["parameters"]["item_table"]}
        for model in found["models"]
    ]
    tests = [
        {"Model": row["model"], "Measure": _words(row["measure"], found), "Difference": row["mean"]}
        | {"Low": row["low"], "High": row["high"]}
        | {"p, t-test": _figure(row["t_test_p"], "{:.2g}"), "p, Wilcoxon": _figure(row["wilcoxon_p"], "{:.2g}")}
        for row in found["significance"]
    ]
    measures = [_words(measure, found) for measure in MEASURES]
    measured = [words for words in measures if all(row[words] is not None for row in results)]
    tables = [list_to_latex(results, subset_columns=measured)[1]]
    if tests:
        tables.append(list_to_latex(tests)[1])
    return "\n".join(tables)


def markdown(found: Mapping[str, Any]) -> str:
    """The comparison as Markdown."""
    parts = [f"# {heading(found)}", models_table(found), *how_trained(found)]
    if found["significance"]:
        parts += [f"## Against {found['reference']}", significance_table(found)]
    return "\n\n".join([*parts, "## Notes", *NOTES]) + "\n"


def html(found: Mapping[str, Any]) -> str:
    """The comparison as a page."""
    tables = {"Models": models_table(found, "html")}
    if found["significance"]:
        tables[f"Against {found['reference']}"] = significance_table(found, "html")
    planes = {}
    for measure in MEASURES:
        points = [(m["name"], m["parameters"]["layers"], m["test"].get(_key(measure, found))) for m in found["models"]]
        planes[_words(measure, found)] = [(n, size, value) for n, size, value in points if size and value is not None]
    return comparison_page(heading(found), how_trained(found), tables, planes, NOTES)


def heading(found: Mapping[str, Any]) -> str:
    """What was compared."""
    return f"Models on {found['dataset']}, {found['users']} users, seed {found['seed']}"


def how_trained(found: Mapping[str, Any]) -> list[str]:
    """For each way of training the models that were trained so, as sentences."""
    names: dict[str, list[str]] = {}
    for model in found["models"]:
        names.setdefault(model["training"]["how"], []).append(model["name"])
    return [f"Trained {TRAINED[how]}: {', '.join(of)}." for how, of in names.items()]


def _words(measure: str, found: Mapping[str, Any]) -> str:
    return MEASURES[measure].format(k=found["k"])


def _key(measure: str, found: Mapping[str, Any]) -> str:
    return measure if measure in _OURS else f"{measure}@{found['k']}"


def _figure(value: float | None, style: str) -> str:
    return "–" if value is None else style.format(value)


# ---------------------------------------------------------------------- command


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
        As in `recbole_adarec.config.resolve`.
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
    values = resolve(None, config_files, overrides | {"baselines": alone})
    folder = Path(output) / values["dataset"]
    found: dict[str, Any] = plain(Comparison(values, folder, fast_baselines).run(names, reference))
    writers: dict[str, Callable[[Mapping[str, Any]], str]] = {"md": markdown, "tex": latex, "html": html}
    write_text(folder / "compare.json", json.dumps(found, indent=1) + "\n")
    for ending, write in writers.items():
        write_text(folder / f"compare.{ending}", write(found))
    return found
