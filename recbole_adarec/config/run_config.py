"""The configuration of a run: resolved once, read by its stages."""

from __future__ import annotations

from typing import Any

from recbole_adarec import distributed
from recbole_adarec.config.baselines import baseline_config
from recbole_adarec.config.recbole_models import check_sequential, is_checkpoint
from recbole_adarec.config.resolve import full_config
from recbole_adarec.config.stages import AdaRecConfig, stage_config, stage_values
from recbole_adarec.memory import use_threads
from recbole_adarec.model.search_space.architecture import Architecture, as_architecture
from recbole_adarec.plugins import load_plugins
from recbole_adarec.storage.files import plain
from recbole_adarec.storage.recbole_checkpoint import read_checkpoint


class RunConfig:
    """All that a run, or one model of it, reads of its configuration.

    Plugins are loaded, the architecture's file and a trained teacher's checkpoint are read, and the names of RecBole
    models are checked here, once; torch's threads are set. What the files held then is what the run keeps.

    Parameters
    ----------
    values : dict
        What `recbole_adarec.config.resolve.resolve_user_config` returned.

    Attributes
    ----------
    values : dict
        The same values, with the architecture as a dictionary and the number of processes.
    architecture : Architecture or None
        The one that is given; None where the search finds it.
    teacher : str or None
        A RecBole model as the teacher: its checkpoint or its name.

    Raises
    ------
    AdaRecError
        For a file or a name that cannot be used.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        load_plugins(values["plugins"])  # this may be a process of its own
        use_threads(values["threads"])
        if distributed.world_size() > 1:  # part of the configuration: a batch is as many times larger
            values = values | {"world_size": distributed.world_size()}
            if not distributed.is_first():
                values["show_progress"] = False
        self.architecture: Architecture | None = None
        if values["architecture"]:
            self.architecture = as_architecture(values["architecture"])
            values = values | {"architecture": self.architecture.to_dict()}
        self.values = values
        self.teacher: str | None = values["teacher"]
        for name in values["baselines"]:
            check_sequential(name, "baselines")
            self.baseline(name)
        self._teacher_values = self._values_of_recbole_teacher(self.teacher)

    def stage(self, name: str, **extra: Any) -> AdaRecConfig:
        """RecBole's configuration of a stage.

        Parameters
        ----------
        name : str
            ``teacher``, ``search``, ``student`` or ``cprec``.
        **extra
            Values that the run itself sets.
        """
        return stage_config(self.values, name, **(self._teacher_values if name == "teacher" else {}) | extra)

    def given(self, stage: str, key: str) -> Any:
        """The value of a key of a stage that the user gave, with or without its prefix; None where there is none."""
        return stage_values(self.values, stage).get(key)

    def baseline(self, name: str, prefix: str = "baseline", **extra: Any) -> AdaRecConfig:
        """RecBole's configuration of a model beside the run; `prefix` is that of its own values."""
        return baseline_config(self.values, name, prefix, **extra)

    def set_history_length(self, config: Any) -> None:
        """Take ``MAX_ITEM_LIST_LENGTH`` from the configuration that loaded the data, where ``auto`` became a number."""
        self.values = self.values | {"MAX_ITEM_LIST_LENGTH": config["MAX_ITEM_LIST_LENGTH"]}

    def full(self) -> dict[str, Any]:
        """Every value that the run depends on, for config.yaml."""
        return full_config(self.values)

    @property
    def candidates(self) -> list[dict[str, Any]]:
        """The candidates for the teacher, each with its own values; empty where there is one backbone."""
        named = self.values["backbone"]
        return named if isinstance(named, list) and self.teacher is None else []

    def candidate(self, row: dict[str, Any], **extra: Any) -> AdaRecConfig:
        """RecBole's configuration of one of the candidates for the teacher."""
        own = {key: value for key, value in row.items() if key != "teacher"}
        return self.stage("teacher", **self._values_of_recbole_teacher(row.get("teacher")), **own | extra)

    def _values_of_recbole_teacher(self, teacher: str | None) -> dict[str, Any]:
        """What the teacher's configuration holds of a RecBole model in its place."""
        if not teacher:
            return {}
        if is_checkpoint(teacher):
            config = read_checkpoint(teacher).config
        else:
            check_sequential(teacher, "teacher")
            config = plain(self.baseline(teacher, "teacher").final_config_dict)
        return {"stock": config, "backbone": f"{config['model']} (RecBole)"}  # "stock": as model files name it
