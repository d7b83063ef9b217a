"""From what a user gave to the values of a run, and from these to all values that the run depends on."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import Any

from recbole_adarec.config.candidates import teacher_candidates
from recbole_adarec.config.recbole_models import (
    RECBOLE,
    check_sequential,
    is_checkpoint,
    recbole_model_keys,
    recbole_model_settings,
    sequential_models,
    teacher_data,
)
from recbole_adarec.config.schema import KEYS, MODELS, OF_RECBOLE_TEACHERS, STAGES, RecBoleKeys, check_values
from recbole_adarec.errors import AdaRecError
from recbole_adarec.plugins import load_plugins
from recbole_adarec.storage.properties import backbone_defaults, find_file, model_defaults, run_defaults
from recbole_adarec.storage.yaml_files import load_yaml

COMMAND_LINE, CONFIG_DICT = "the command line", "config_dict"  # how messages name the source of single values


def resolve_user_config(
    dataset: str | None = None,
    config_files: list[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    source: str = CONFIG_DICT,
) -> dict[str, Any]:
    """All values that the user gave, over the defaults of a run; files in order, then `overrides`.

    Parameters
    ----------
    dataset : str, optional
        The dataset's name; wins over the files.
    config_files : list of str
        Looked for in the current folder, then in properties/.
    overrides : dict
        Single values.
    source : str
        How messages name the source of the single values.

    Returns
    -------
    dict
        Checked values; stage prefixes are still in place.

    Raises
    ------
    AdaRecError
        For an unknown key (the message names the nearest), a wrong type, a value out of range, a missing file, or a
        name that is no model.
    """
    sources = {str(path): load_yaml(path) for path in (find_file(name, "config_files") for name in config_files or [])}
    single = dict(overrides or {})
    if dataset is not None:
        single["dataset"] = dataset
    sources[source] = single
    given: dict[str, Any] = {}
    for content in sources.values():
        given.update(content)
    if given.get("plugins") is not None:
        where = next(where for where, content in reversed(sources.items()) if "plugins" in content)
        KEYS["plugins"].check(given["plugins"], f"plugins in {where}")
        given["plugins"] = load_plugins(given["plugins"])
    recbole = _keys_of_named_models(given)
    for where, content in sources.items():
        check_values(content, where, recbole)
    if given.get("model") == STAGES["student"]:  # RecBole's way to name the whole run
        given["model"] = None
    _check_models(given)
    candidates = teacher_candidates({"backbone": run_defaults()["backbone"], **given})
    of_recbole = [row["teacher"] for row in [given, *candidates] if row.get("teacher")]
    for checkpoint in filter(is_checkpoint, of_recbole):
        given = _with_teacher_data(given, checkpoint)
    if "embedding_size" in given and not given.get("model"):  # RecBole's word for it in some of its models
        size = given.pop("embedding_size")
        if given.setdefault("hidden_size", size) != size:
            raise AdaRecError("embedding_size and hidden_size are two words for the same thing here; give one of them")
    values = {**run_defaults(), **given}
    if given.get("model") or of_recbole:  # RecBole's own length, because it trains a row for each prefix
        values = {key: value for key, value in values.items() if key != "MAX_ITEM_LIST_LENGTH" or key in given}
    if given.get("model") or given.get("teacher"):
        candidates, values["backbone"] = [], given.get("backbone") or model_defaults(STAGES["teacher"])["backbone"]
    if candidates:
        values["backbone"] = candidates
    if "load_col" not in given and not (RECBOLE / "properties/dataset" / f"{values['dataset']}.yaml").is_file():
        fields = _recbole_properties("dataset/sample.yaml") | values
        values["load_col"] = {"inter": [fields[f"{name}_FIELD"] for name in ("USER_ID", "ITEM_ID", "TIME")]}
    return values


def full_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Every value that a run depends on, defaults of RecBole and of this package included.

    As a config file it gives the same run.

    Parameters
    ----------
    values : dict
        What `resolve_user_config` returned.
    """
    from recbole_adarec.config.stages import make_config, stage_config, stage_values

    values = dict(values)
    whole = dict(values)
    if values["model"]:
        config = make_config(values["model"], stage_values(values, "baseline"))
        return {**whole, **_general_values(config), **recbole_model_settings(values["model"], config)}
    for stage, model in STAGES.items():
        config = stage_config(values, stage)
        if stage == "teacher" and values["teacher"]:
            # The other keys of a RecBole model are its own; those of a trained one are in its checkpoint.
            whole |= {f"teacher_{key}": config[key] for key in OF_RECBOLE_TEACHERS}
            if not is_checkpoint(values["teacher"]):
                teacher = make_config(values["teacher"], stage_values(values, "teacher"))
                own = recbole_model_settings(values["teacher"], teacher)
                whole |= {f"teacher_{key}": value for key, value in own.items()}
            continue
        keys = set(model_defaults(model)) - {"architecture", "teacher_path", "supernet_path"}
        if stage == "teacher" and isinstance(values["backbone"], list):
            # What a candidate has of its own stands in ``backbone``, and would not win over a value of all teachers.
            ours = [row for row in values["backbone"] if "backbone" in row]
            of_candidates = (key for row in ours for key in {*row, *backbone_defaults(row["backbone"])})
            keys -= {"backbone", "epochs", *of_candidates} - set(stage_values(values, stage))
        for key in keys:
            # RecBole writes "none" for no negative sampling in words that it does not read back.
            whole[f"{stage}_{key}"] = None if key == "train_neg_sample_args" else config[key]
        for key, value in _general_values(config).items():
            if key not in model_defaults(model):
                whole.setdefault(key, value)
    return whole


def _general_values(config: Any) -> dict[str, Any]:
    """Values of the keys in RecBole's overall.yaml and sample.yaml, without ``data_path``."""
    keys = {*_recbole_properties("overall.yaml"), *_recbole_properties("dataset/sample.yaml")} - {"data_path"}
    return {key: config[key] for key in keys}


@cache
def _properties(name: str) -> dict[str, Any]:
    return load_yaml(RECBOLE / "properties" / name)


def _recbole_properties(name: str) -> dict[str, Any]:
    return deepcopy(_properties(name))


# ---------------------------------------------------------------------- RecBole's models


def _keys_of_named_models(given: Mapping[str, Any]) -> RecBoleKeys:
    """The keys of the RecBole models that a run names; wrong types are found later."""
    baselines = given.get("baselines")
    names = [name for name in baselines if isinstance(name, str)] if isinstance(baselines, list) else []
    model, teacher = given.get("model"), given.get("teacher")
    is_model = isinstance(model, str) and model not in MODELS.values()
    is_teacher = isinstance(teacher, str) and not is_checkpoint(teacher)
    known = set(sequential_models())
    custom = [name for name in [*names, model] if isinstance(name, str) and name not in {*known, *MODELS.values()}]
    return RecBoleKeys(
        alone=recbole_model_keys(model) if is_model else {},
        teacher=recbole_model_keys(teacher) if is_teacher else {},
        # compare names its models elsewhere, so that baseline_ may mean any of them
        baselines={key: row for name in known - set(names) for key, row in recbole_model_keys(name).items()}
        if any(str(key).startswith("baseline_") for key in given) else {},
        named={key: row for name in names for key, row in recbole_model_keys(name).items()},
        any_baseline=bool(custom or given.get("plugins")),
    )  # fmt: skip


def _check_models(given: Mapping[str, Any]) -> None:
    """Refuse names that are no sequential model."""
    for name in given.get("baselines") or []:
        check_sequential(name, "baselines")
    if given.get("model"):
        check_sequential(given["model"], "model")
    if given.get("teacher") and not is_checkpoint(given["teacher"]):
        check_sequential(given["teacher"], "teacher")


def _with_teacher_data(given: dict[str, Any], checkpoint: str) -> dict[str, Any]:
    """Add the data settings of a trained teacher; refuse settings of its training."""
    if given.get("teacher") is None:  # one of several
        return {**teacher_data({**given, "teacher": checkpoint}), **given}
    given = {**teacher_data(given), **given}
    for key in sorted(given):
        own = key.startswith("teacher_") and key not in KEYS
        if own and key.removeprefix("teacher_") not in OF_RECBOLE_TEACHERS:
            raise AdaRecError(f"{key}: {given['teacher']} is trained already; leave {key} out, or name a model")
    return given
