"""How far item table and layers can be compressed: CpRec against NextItNet, and AdaRec with either item table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

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
    PAIRED_METRICS,
    USERS_FORMAT,
    Arm,
    ArmResult,
    ArmStudy,
    compare_arms,
    difference_text,
    mean_text,
    select_arms,
)

NEXTITNET = "NextItNet"
GROWTHS = (1.0, 2.0, 4.0)  # item_block_growth,
FACTORS = (2.0, 4.0)  # and item_width_factor
BUDGETS = (0.25, 0.0625)  # total_budget, besides the default


class ModelStudy(ArmStudy):
    """Arms that are one model each: the key ``model`` of an arm's values names it."""

    @staticmethod
    @recbole_patches()
    def complete(values: dict[str, Any], given: Sequence[tuple[str, str]] = ()) -> None:
        """Finish the run of a model and write what it does for each user beside it."""
        stage = next(stage for stage, model in MODELS.items() if model == values["model"])
        run = ModelRun(RunConfig(values), stage)
        trained = run.execute()
        path, config = run.folder / f"{stage}.pth", run.config.stage(stage)
        model = load_model(path, config["device"], expected=MODELS[stage])
        found = {"valid": user_scores(model, run.data.valid), "test": user_scores(model, run.data.test)}
        save_checkpoint(
            run.folder / "users.pth",
            {
                "format": USERS_FORMAT,
                "values": values,
                "test_user": found["test"].user,
                "scores": {
                    part: {metric: getattr(of, metric) for metric in PAIRED_METRICS} for part, of in found.items()
                },
                "parameters": count_parameters(model),
                "bytes": state_bytes(path),
                "seconds": trained["seconds"],
            },
        )

    def content(self, arm: str) -> list[dict[str, Any]]:
        """What was written of an arm, for each seed."""
        return [load_checkpoint(self.path(seed, arm) / "users.pth", expected=USERS_FORMAT) for seed in self.seeds]

    def _load(self, arm: str) -> ArmResult:
        contents = self.content(arm)
        scores = {
            part: {metric: torch.stack([c["scores"][part][metric] for c in contents]) for metric in PAIRED_METRICS}
            for part in ("valid", "test")
        }
        total, layers = ([c["parameters"][of] for c in contents] for of in ("total", "layers"))
        return ArmResult(scores, {}, total, layers, [], [])


def state_bytes(path: Path) -> int:
    """Size of a model file with its weights alone: no history, no item names."""
    content = load_checkpoint(path)
    temporary = path.with_suffix(".weights")
    try:
        save_checkpoint(temporary, {"config": content["config"], "state_dict": content["state_dict"]})
        return temporary.stat().st_size
    finally:
        temporary.unlink(missing_ok=True)


def cprec_arms(values: Mapping[str, Any]) -> list[Arm]:
    """NextItNet, CpRec with its defaults, every other sharing of layers, and other cuts of the catalog."""
    config = stage_config(dict(values), "cprec")
    arms = [Arm(NEXTITNET, {"model": "AdaRecTeacher", "backbone": NEXTITNET}), Arm("CpRec", {"model": "CpRec"})]
    changes: dict[str, dict[str, Any]] = {
        # What is shared less leaves nothing for the items: these have whole rows, in codes of one channel.
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
    """CpRec, its sharing schemes and cuts of the catalog, against the NextItNet that they compress.

    Parameters
    ----------
    study : Study
        Where the runs are.
    only : sequence of str
        Arms to run beside NextItNet; all by default.
    """
    models = ModelStudy(study.values, study.seeds, study.folder.with_name("models"), study.workers)
    results = models.run(select_arms(cprec_arms(study.values), only and [NEXTITNET, *only]))
    found = compare_arms(results, NEXTITNET)
    for name in results:
        contents = models.content(name)
        found["arms"][name] |= mean_sizes([c["parameters"] for c in contents], [c["bytes"] for c in contents])
        found["arms"][name]["seconds"] = [c["seconds"] for c in contents]
    return found


def item_tables(study: ArmStudy) -> dict[str, Any]:
    """AdaRec's student with a full table, with an adaptive one, and with a full one as small as that.

    All under the same teacher; each with a search of its own. The hidden size of the third is the one whose item table
    and layers together come closest to the adaptive student's.
    """
    results = study.run([Arm("full", {})])
    given = (("teacher", "full"),)
    results |= study.run([Arm("adaptive", {"item_table": "adaptive"}, given)])
    of = {name: _students(study, name) for name in results}
    wanted = sum(p["total"] for p, _ in of["adaptive"]) / len(study.seeds)
    full, size = of["full"][0][0], results["full"].architectures[0].hidden_size
    # The table grows with C and the layers with its square.
    smaller = min(
        range(1, size), key=lambda c: abs(full["item_table"] * c / size + full["layers"] * (c / size) ** 2 - wanted)
    )
    name = f"full, {smaller} channels"
    results |= study.run([Arm(name, {"search_hidden_size": smaller, "candidate_sizes": None}, given)])
    of[name] = _students(study, name)
    found = compare_arms(results, "adaptive")
    for name, size_table in of.items():
        found["arms"][name] |= mean_sizes([p for p, _ in size_table], [size for _, size in size_table])
    teachers = [study.path(seed, "full") / "teacher.pth" for seed in study.seeds]
    counted = [count_parameters(load_model(path, expected="AdaRecTeacher")) for path in teachers]
    total, layers = ([p[of] for p in counted] for of in ("total", "layers"))
    teacher = ArmResult(results["full"].teacher, {}, total, layers, [], [])
    of_teacher = compare_arms({"teacher": teacher, "adaptive": results["adaptive"]}, "adaptive")["arms"]["teacher"]
    found["arms"]["teacher"] = of_teacher | mean_sizes(counted, [state_bytes(path) for path in teachers])
    return found


def _students(study: ArmStudy, arm: str) -> list[tuple[dict[str, int], int]]:
    paths = [study.path(seed, arm) / "student.pth" for seed in study.seeds]
    return [(count_parameters(load_model(path, expected="AdaRecStudent")), state_bytes(path)) for path in paths]


def mean_sizes(parameters: Sequence[Mapping[str, int]], files: Sequence[int]) -> dict[str, Any]:
    """Mean parameters, item table and layers apart, and mean bytes of the weights' file."""
    return {
        "parameters": {key: sum(p[key] for p in parameters) / len(parameters) for key in parameters[0]},
        "file_bytes": sum(files) / len(files),
    }


def accuracy_parameters_points(found: Mapping[str, Any]) -> dict[str, list[tuple[str, float, float]]]:
    """For each metric the arms' names, parameters in all and test results."""
    return {
        words: [(name, arm["parameters"]["total"], arm["test"][m]["mean"]) for name, arm in found["arms"].items()]
        for m, words in PAIRED_METRICS.items()
    }


def size_table(found: Mapping[str, Any]) -> str:
    """The table of an experiment on sizes, as Markdown; the largest model first."""
    arms = sorted(found["arms"].items(), key=lambda item: -item[1]["parameters"]["total"])
    largest = arms[0][1]
    lines = []
    for name, arm in arms:
        of = arm["parameters"]
        line = {
            "": name, "parameters": f"{of['total']:,.0f}", "item table": f"{of['item_table']:,.0f}",
            "layers": f"{of['layers']:,.0f}", "times fewer": f"{largest['parameters']['total'] / of['total']:.1f}",
            "weights, kB": f"{arm['file_bytes'] / 1000:,.0f}",
        }  # fmt: skip
        for metric, words in PAIRED_METRICS.items():
            line[words] = mean_text(arm["test"][metric])
            if metric == "ndcg":
                line["ratio"] = f"{arm['test'][metric]['mean'] / largest['test'][metric]['mean']:.3f}"
            if "against_reference" in arm:
                line[f"{words}, difference"] = difference_text(arm["against_reference"][metric])
        lines.append(line)
    return tabulate(lines, headers="keys", tablefmt="pipe", missingval="–", disable_numparse=True)
