"""Experiments on model size: CpRec against NextItNet, and AdaRec's student with a full and an adaptive item table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from recbole_adarec.config.run_config import RunConfig
from recbole_adarec.config.schema import MODELS
from recbole_adarec.config.stages import stage_config
from recbole_adarec.evaluation.per_user import user_scores
from recbole_adarec.evaluation.profile import count_parameters
from recbole_adarec.interop.patches import recbole_patches
from recbole_adarec.model.residual_blocks import LAYER_SHARING
from recbole_adarec.model.stored import load_model
from recbole_adarec.runs.single_model import ModelRun
from recbole_adarec.storage.files import load_checkpoint, save_checkpoint
from recbole_adarec.studies.arms import (
    USERS_FORMAT,
    Arm,
    ArmResult,
    ArmStudy,
    compare_arms,
    paired_scores,
    select_arms,
    stacked_scores,
)

NEXTITNET = "NextItNet"
# Values that the arms of cprec take besides the defaults.
GROWTHS = (1.0, 2.0, 4.0)  # item_block_growth
FACTORS = (2.0, 4.0)  # item_width_factor
BUDGETS = (0.25, 0.0625)  # total_budget


class ModelStudy(ArmStudy):
    """Runs arms that train one model each, without search or student; the value ``model`` of an arm names it.

    Parameters as of `ArmStudy`.
    """

    @staticmethod
    @recbole_patches()
    def run_job(values: dict[str, Any], reused: Sequence[tuple[str, str]] = ()) -> None:
        """Train a model, and write the scores of each user beside it, as ``users.pth``.

        Parameters
        ----------
        values : dict
            Values of the run, its folder, its seed and ``model`` among them.
        reused : sequence of (str, str)
            Empty: these arms reuse nothing.
        """
        stage = next(stage for stage, model in MODELS.items() if model == values["model"])
        run = ModelRun(RunConfig(values), stage)
        trained = run.execute()
        path, config = run.folder / f"{stage}.pth", run.config.stage(stage)
        model = load_model(path, config["device"], expected=MODELS[stage])
        scores = {"valid": user_scores(model, run.data.valid), "test": user_scores(model, run.data.test)}
        save_checkpoint(
            run.folder / "users.pth",
            {
                "format": USERS_FORMAT,
                "values": values,
                "test_user": scores["test"].user,
                "scores": {part: paired_scores(part_scores) for part, part_scores in scores.items()},
                "parameters": count_parameters(model),
                "bytes": file_bytes(path),
                "seconds": trained["seconds"],
            },
        )

    def _result(self, arm: str) -> ArmResult:
        contents = self.contents(arm)
        parameters = [content["parameters"] for content in contents]
        return size_result(stacked_scores([content["scores"] for content in contents]), parameters)


def size_result(scores: dict[str, dict[str, Tensor]], parameters: Sequence[Mapping[str, int]]) -> ArmResult:
    """The result of an arm without teacher and architecture.

    Parameters
    ----------
    scores : dict
        ``valid`` and ``test``, each metric ``[R, U]``.
    parameters : sequence of mapping
        For each seed what `count_parameters` returned.
    """
    total, layers = ([count[key] for count in parameters] for key in ("total", "layers"))
    return ArmResult(scores, {}, total, layers, [], [])


def file_bytes(path: Path) -> int:
    """Bytes that a model file takes with its configuration and weights alone, without training log and item tokens."""
    content = load_checkpoint(path)
    temporary = path.with_suffix(".weights")
    try:
        save_checkpoint(temporary, {"config": content["config"], "state_dict": content["state_dict"]})
        return temporary.stat().st_size
    finally:
        temporary.unlink(missing_ok=True)


def cprec_arms(values: Mapping[str, Any]) -> list[Arm]:
    """Arms of the experiment ``cprec``: NextItNet, CpRec, every other sharing of layers, and other blocks of items.

    Parameters
    ----------
    values : mapping
        What `recbole_adarec.config.resolve.resolve_user_config` returned.
    """
    config = stage_config(dict(values), "cprec")
    arms = [Arm(NEXTITNET, {"model": "AdaRecTeacher", "backbone": NEXTITNET}), Arm("CpRec", {"model": "CpRec"})]
    changes: dict[str, dict[str, Any]] = {
        # With less sharing the layers leave no parameters for the items: full rows, with a code for each channel.
        **{
            f"sharing {name}": {"layer_sharing": name, "item_width_factor": 1.0, "item_codes": 1}
            for name in LAYER_SHARING if name != config["layer_sharing"]
        },
        **{f"total budget {budget:g}": {"total_budget": budget} for budget in BUDGETS},
        "no codes": {"item_codes": 0},
        "full table": {"item_table": "full"},
        **{
            f"growth {growth:g}, width factor {factor:g}": {"item_block_growth": growth, "item_width_factor": factor}
            for growth in GROWTHS for factor in FACTORS
        },
        "untied": {"item_output": "untied"},
    }  # fmt: skip
    for name, change in changes.items():
        arms.append(Arm(name, {"model": "CpRec"} | {f"cprec_{key}": value for key, value in change.items()}))
    return arms


def cprec(study: ArmStudy, only: Sequence[str] = ()) -> dict[str, Any]:
    """CpRec, its sharing schemes and its blocks of items, against the NextItNet that they compress.

    Parameters
    ----------
    study : ArmStudy
        Values, seeds and workers; the runs are in ``models/`` beside its folder.
    only : sequence of str
        Arms to run beside NextItNet; all by default.

    Returns
    -------
    dict
        What `compare_arms` returns, with sizes and training seconds.

    Raises
    ------
    AdaRecError
        If no arm has one of the names.
    """
    models = ModelStudy(study.values, study.seeds, study.folder.with_name("models"), study.workers)
    results = models.run(select_arms(cprec_arms(study.values), only and [NEXTITNET, *only]))
    comparison = compare_arms(results, NEXTITNET)
    for name, row in comparison["arms"].items():
        contents = models.contents(name)
        row |= mean_sizes([c["parameters"] for c in contents], [c["bytes"] for c in contents])
        row["seconds"] = [c["seconds"] for c in contents]
    return comparison


def item_tables(study: ArmStudy) -> dict[str, Any]:
    """AdaRec's student with a full item table, with an adaptive one, and with a full one of the adaptive one's size.

    All have the same teacher, and each its own search. The hidden size of the third is the one at which item table and
    layers together come closest to the adaptive student's parameters.

    Parameters
    ----------
    study : ArmStudy
        Runs the arms.

    Returns
    -------
    dict
        What `compare_arms` returns, with sizes, and a row for the teacher.
    """
    results = study.run([Arm("full", {})])
    same_teacher = (("teacher", "full"),)
    results |= study.run([Arm("adaptive", {"item_table": "adaptive"}, same_teacher)])
    full = _count_students(study, "full")[0]
    adaptive_total = sum(count["total"] for count in _count_students(study, "adaptive")) / len(study.seeds)
    size = results["full"].architectures[0].hidden_size

    def distance(channels: int) -> float:
        share = channels / size  # the table grows with C and the layers with its square
        return abs(full["item_table"] * share + full["layers"] * share**2 - adaptive_total)

    smaller = min(range(1, size), key=distance)
    values = {"search_hidden_size": smaller, "candidate_sizes": None}
    results |= study.run([Arm(f"full, {smaller} channels", values, same_teacher)])
    comparison = compare_arms(results, "adaptive")
    for name, row in comparison["arms"].items():
        files = [study.path(seed, name) / "student.pth" for seed in study.seeds]
        row |= mean_sizes(_count_students(study, name), [file_bytes(file) for file in files])
    files = [study.path(seed, "full") / "teacher.pth" for seed in study.seeds]
    counts = [count_parameters(load_model(file, expected="AdaRecTeacher")) for file in files]
    teacher = size_result(results["full"].teacher_scores, counts)
    row = compare_arms({"teacher": teacher, "adaptive": results["adaptive"]}, "adaptive")["arms"]["teacher"]
    comparison["arms"]["teacher"] = row | mean_sizes(counts, [file_bytes(file) for file in files])
    return comparison


def _count_students(study: ArmStudy, arm: str) -> list[dict[str, int]]:
    """For each seed what `count_parameters` returns of an arm's student."""
    files = [study.path(seed, arm) / "student.pth" for seed in study.seeds]
    return [count_parameters(load_model(file, expected="AdaRecStudent")) for file in files]


def mean_sizes(parameters: Sequence[Mapping[str, int]], file_bytes: Sequence[int]) -> dict[str, Any]:
    """Means over the seeds: parameters in all, of item table and layers, and bytes of the file of the weights."""
    return {
        "parameters": {key: sum(count[key] for count in parameters) / len(parameters) for key in parameters[0]},
        "file_bytes": sum(file_bytes) / len(file_bytes),
    }
