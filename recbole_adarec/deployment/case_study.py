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
from recbole_adarec.storage.yaml_files import load_yaml, parse_value

_SHOWN = 5  # items of a history


def recommend(
    run_dir: str | None = None,
    history: str | None = None,
    users: str | None = None,
    k: str = "10",
    data_path: str | None = None,
    plugins: str | None = None,
) -> str:
    """The k best items of student and teacher, as a table.

    Parameters
    ----------
    run_dir : str
        Folder of a finished run.
    history : str
        Item tokens, oldest first, separated by blanks; needs no dataset.
    users : str
        A YAML list of user tokens: their histories up to the item that is held out for the test.
    k : str
        How many items.
    data_path : str, optional
        The folder above the dataset, if it is not where it was.
    plugins : str, optional
        Plugin files that the run was made with, as YAML.

    Raises
    ------
    AdaRecError
        For anything that cannot be used.
    """
    if run_dir is None or (history is None) == (users is None):
        raise AdaRecError('recommend: give --run_dir= and one of --history="50 172 181" and --users="[1, 2]"')
    count = parse_value(k)
    if not isinstance(count, int) or isinstance(count, bool):
        raise AdaRecError(f"recommend: k is {k!r}, expected a whole number")
    load_plugins(parse_value(plugins) if plugins else None)
    models = {"student": load_student(run_dir), "teacher": load_teacher(run_dir)}
    if history is not None:
        return _side_by_side({name: model.recommend(history.split(), count) for name, model in models.items()})
    parts = []
    for user, tokens, held_out in _histories(run_dir, _tokens(users), data_path):
        found = {name: model.recommend(tokens, count) for name, model in models.items()}
        parts.append(f"user {user}: … {' '.join(tokens[-_SHOWN:])}, then {held_out}\n{_side_by_side(found, held_out)}")
    return "\n\n".join(parts)


def _tokens(users: str | None) -> list[str]:
    listed = parse_value(users or "")
    return [str(user) for user in (listed if isinstance(listed, list) else [listed])]


def _histories(run_dir: str, users: list[str], data_path: str | None) -> list[tuple[str, list[str], str]]:
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


def _side_by_side(found: dict[str, list[tuple[str, float]]], held_out: str | None = None) -> str:
    """Ranked items of the models side by side; the one that came is marked."""
    columns: dict[str, list[str]] = {}
    for name, ranked in found.items():
        columns[name] = [f"{token} *" if token == held_out else token for token, _ in ranked]
        columns[f"{name}'s score"] = [f"{score:.4g}" for _, score in ranked]
    ranks = range(1, 1 + len(next(iter(columns.values()))))
    return tabulate(columns, headers="keys", tablefmt="github", showindex=ranks, disable_numparse=True)
