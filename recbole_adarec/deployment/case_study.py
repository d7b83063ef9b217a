"""Case study: what the student and the teacher of a run recommend, in the dataset's own names."""

from __future__ import annotations

from pathlib import Path

from tabulate import tabulate

from recbole_adarec.config.recbole_models import is_checkpoint
from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.config.stages import stage_config
from recbole_adarec.data.loading import load_data
from recbole_adarec.deployment.recommender import load_student, load_teacher
from recbole_adarec.errors import AdaRecError
from recbole_adarec.plugins import load_plugins
from recbole_adarec.storage.yaml_files import load_yaml

_SHOWN = 5  # items of a history


def recommend(
    run_dir: str | Path,
    history: str | list[str] | None = None,
    users: list[str] | None = None,
    k: int = 10,
    data_path: str | None = None,
    plugins: list[str] | None = None,
) -> str:
    """The k best items of student and teacher, as a table.

    Parameters
    ----------
    run_dir : path-like
        Folder of a finished run.
    history : str or list of str
        Item tokens, oldest first; in a text they have blanks between them. Needs no dataset.
    users : list of str
        User tokens: their histories up to the item that is held out for the test.
    k : int
        How many items.
    data_path : str, optional
        The folder above the dataset, if it is not where it was.
    plugins : list of str, optional
        Plugin files that the run was made with.

    Raises
    ------
    AdaRecError
        If both or neither of `history` and `users` are given, and for anything else that cannot be used.
    """
    if (history is None) == (users is None):
        raise AdaRecError('recommend: give --run_dir= and one of --history="50 172 181" and --users="1 2"')
    load_plugins(plugins)
    models = {"student": load_student(run_dir), "teacher": load_teacher(run_dir)}
    if history is not None:
        tokens = history.split() if isinstance(history, str) else history
        return _side_by_side({name: model.recommend(tokens, k) for name, model in models.items()})
    parts = []
    for user, tokens, held_out in _histories(run_dir, users or [], data_path):
        ranked = {name: model.recommend(tokens, k) for name, model in models.items()}
        shown = f"user {user}: … {' '.join(tokens[-_SHOWN:])}, then {held_out}"
        parts.append(f"{shown}\n{_side_by_side(ranked, held_out)}")
    return "\n\n".join(parts)


def _histories(run_dir: str | Path, users: list[str], data_path: str | None) -> list[tuple[str, list[str], str]]:
    """User, history and held-out item of the test data, as tokens."""
    # The folder may be anybody's: plugins are run if the user names them, not because it does.
    given = load_yaml(Path(run_dir) / "config.yaml") | {"plugins": None}
    if is_checkpoint(given.get("teacher")):  # the folder has all that is needed of it
        given["teacher"] = None
    values = resolve_user_config(None, None, given if data_path is None else given | {"data_path": data_path})
    data = load_data(stage_config(values, "student"))
    dataset, test = data.dataset, data.test._dataset
    ids = dataset.field2token_id[dataset.uid_field]
    found = []
    for user in users:
        rows = (test.inter_feat[dataset.uid_field] == ids.get(user, -1)).nonzero().flatten()
        if not len(rows):
            raise AdaRecError(f"recommend: the test data of {dataset.dataset_name!r} has no user {user!r}")
        row = test[rows[-1:]]
        length = int(row[dataset.item_list_length_field])
        items = row[f"{dataset.iid_field}{values['LIST_SUFFIX']}"][0, :length]
        tokens = [str(token) for token in dataset.id2token(dataset.iid_field, items)]
        found.append((user, tokens, str(dataset.id2token(dataset.iid_field, int(row[dataset.iid_field])))))
    return found


def _side_by_side(ranked: dict[str, list[tuple[str, float]]], held_out: str | None = None) -> str:
    """Ranked items of the models side by side; the held-out item is marked."""
    columns: dict[str, list[str]] = {}
    for name, items in ranked.items():
        columns[name] = [f"{token} *" if token == held_out else token for token, _ in items]
        columns[f"{name}'s score"] = [f"{score:.4g}" for _, score in items]
    ranks = range(1, 1 + len(next(iter(columns.values()))))
    return tabulate(columns, headers="keys", tablefmt="github", showindex=ranks, disable_numparse=True)
