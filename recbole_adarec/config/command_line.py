"""Arguments of the command line: ``--key=value``, ``--key value``, RecBole's ``-m`` and ``-d``, and flags.

Values are YAML and are never evaluated. Names are text: ``--dataset=2020`` is the dataset "2020", and item tokens such
as 007 keep their zeros.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import yaml

from recbole_adarec.config.schema import KEYS, split_prefix
from recbole_adarec.errors import AdaRecError
from recbole_adarec.storage.yaml_files import parse_value

SHORT = {"-m": "model", "-d": "dataset"}  # as RecBole's run_recbole.py has them
_NUMBER = re.compile(r"-(\d|\.\d|\.?inf)", re.IGNORECASE)


class Arguments(NamedTuple):
    """What stands on a command line.

    Attributes
    ----------
    words : list of str
        Arguments that are no key, in order: the subcommand and its names.
    texts : list of tuple of str
        Keys and their values, as text, in order.
    """

    words: list[str]
    texts: list[tuple[str, str]]


def split_arguments(
    arguments: Sequence[str], flags: Collection[str] = (), several: Collection[str] = ("config_files",)
) -> Arguments:
    """The words and the keys of a command line.

    Parameters
    ----------
    arguments : sequence of str
        As the shell gave them.
    flags : collection of str
        Keys that can stand without a value, which is True then.
    several : collection of str
        Keys that take several words: ``--config_files a.yaml b.yaml``.

    Raises
    ------
    AdaRecError
        For a key without a value, and for an option of one letter that is not known.
    """
    found = Arguments([], [])
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not _is_key(argument):
            found.words.append(argument)
            continue
        name, equals, text = argument.partition("=")
        key = SHORT.get(name, name.removeprefix("--"))
        if not key or (name not in SHORT and not name.startswith("--")):
            raise AdaRecError(f"argument {argument!r} is not of the form --key=value; --help shows how")
        if not equals:
            values = list(_values(rest, key in several))
            if key in flags and not (values and values[0].lower() in ("true", "false")):
                values = ["True"]
            else:
                del rest[: len(values)]
            if not values:
                raise AdaRecError(f"argument {argument!r} has no value; --{key}=value")
            text = " ".join(values)
        found.texts.append((key, text))
    return found


def _is_key(argument: str) -> bool:
    return argument.startswith("-") and not _NUMBER.match(argument) and argument != "-"


def _values(rest: Sequence[str], several: bool) -> Iterator[str]:
    """The words that belong to the key before them."""
    for number, word in enumerate(rest):
        if _is_key(word) or (number > 0 and not several):
            return
        yield word


def read_values(texts: Sequence[tuple[str, str]]) -> tuple[list[str], dict[str, Any]]:
    """Config files and values of keys of a run.

    Raises
    ------
    AdaRecError
        If a key is given twice with different values.
    """
    files: list[str] = []
    values: dict[str, Any] = {}
    for key, text in texts:
        if key == "config_files":
            files += text.split()
            continue
        value = read_value(key, text)
        if key in values and not _same(values[key], value):
            raise AdaRecError(f"--{key} is given twice, as {values[key]!r} and as {value!r}; give it once")
        values[key] = value
    return files, values


def read_value(key: str, text: str) -> Any:
    """The value of a key of a run; a name stays text even if YAML reads a number or a date in it."""
    value = parse_value(text)
    row = KEYS.get(split_prefix(key)[1])
    if text == "None" and (row is None or row.optional):  # Python's word for ~, which RecBole's users write
        return None
    is_name = row is not None and row.types == (str,)
    return text if is_name and value is not None and not isinstance(value, (str, list, dict)) else value


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and repr(one) == repr(other)  # 1 is not True, and nan is nan


def read_words(text: str) -> list[str]:
    """Names or tokens, all of them text: a YAML list, or words with blanks between them.

    >>> read_words("[007, Blade Runner]"), read_words("050 172")
    (['007', 'Blade Runner'], ['050', '172'])
    """
    if text.lstrip().startswith("["):
        try:
            listed = yaml.load(text, yaml.BaseLoader)
        except yaml.YAMLError:
            listed = None
        if isinstance(listed, list) and all(isinstance(word, str) for word in listed):
            return listed
    return text.split()
