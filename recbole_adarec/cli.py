"""The command line: arguments, help, exit codes.

Nothing that takes long to import is imported before the arguments are known to be right.
"""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from recbole_adarec.config.command_line import Arguments, read_value, read_values, read_words, split_arguments
from recbole_adarec.config.key import Key
from recbole_adarec.config.schema import KEYS, nearest_key
from recbole_adarec.errors import AdaRecError, nearest_hint
from recbole_adarec.subcommands import CONTINUES, FLAGS, MATTER_MOST, SEVERAL, SUBCOMMANDS, Call, Option, Subcommand

_PROGRAM = "python run_adarec.py"


# ---------------------------------------------------------------------- help


def overview() -> str:
    """The text of ``--help``."""
    lines = [
        f"usage: {_PROGRAM} [SUBCOMMAND] [--key=value ...]", "",
        *textwrap.wrap("AdaRec for RecBole: distil a large sequential recommender into a small one whose architecture "
                       "is searched.", 100), "",
        "subcommands (--help after one of them lists its keys):",
        *(f"  {row.name:<12}{row.summary}" for row in SUBCOMMANDS.values()), "",
        "keys of a run:",
        *_key_lines([_run_option(name) for name in MATTER_MOST]),
        "  and every other key of this package and of RecBole: docs/configuration.md. A stage's own value",
        "  has its prefix: --teacher_epochs=20 --search_learning_rate=0.002 --student_gamma=0.3", "",
        "forms:",
        "  --key=value or --key value; values are YAML: [a, b], 1e-3, True, ~",
        "  -d ml-1m and -m SASRec are --dataset and --model; --config_files a.yaml b.yaml are files with values",
        "  --version     print the version", "",
        "examples:",
        *(f"  {_PROGRAM} {example}" for example in SUBCOMMANDS["run"].examples),
        *(f"  {_PROGRAM} {row.name} {row.examples[0]}" for row in list(SUBCOMMANDS.values())[1:]),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def subcommand_help(row: Subcommand) -> str:
    """The text of ``SUBCOMMAND --help``."""
    usage = [_PROGRAM, row.name, *(["NAME"] if row.names else [])]
    usage += [f"--{option.key.name}=..." for option in row.options if option.needed]
    usage += ["[--key=value ...]"]
    lines = [f"usage: {' '.join(usage)}", "", *textwrap.wrap(row.about, 100), ""]
    if row.names:
        lines += [f"NAME is one of {', '.join(row.names)}.", ""]
    if row.options:
        lines += ["its own keys:", *_key_lines(row.options), ""]
    if row.shown:
        lines += ["the keys that matter most:", *_key_lines([_run_option(name) for name in row.shown]), ""]
    if row.takes_run_keys:
        lines += ["It takes every key of a run" + (" too" if row.options else "") + ": docs/configuration.md.", ""]
    lines += [f"If it is interrupted: {row.kept}.", "", "examples:"]
    lines += [f"  {_PROGRAM} {row.name} {example}" for example in row.examples]
    return "\n".join(lines) + "\n"


def _run_option(name: str) -> Option:
    default = KEYS[name].defaults.get("run")
    return Option(KEYS[name], "" if default in (None, []) else str(default))


def _key_lines(options: Sequence[Option]) -> list[str]:
    lines = []
    for option in options:
        key = option.key
        parts = [f"({key.type_text})", key.help]
        if key.choices:
            parts.append(f"One of {', '.join(key.choices)}.")
        if option.needed:
            parts.append("Must be given.")
        if option.default:
            parts.append(f"Default: {option.default}.")
        first, *more = textwrap.wrap(" ".join(parts), 78)
        lines.append(f"  {f'--{key.name}':<20}{first}")
        lines += [f"  {'':<20}{line}" for line in more]
    return lines


# ---------------------------------------------------------------------- parsing


def parse_arguments(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Config files and values of the arguments of a run.

    Raises
    ------
    AdaRecError
        If an argument is no key, has no value, or a key is given twice with different values.
    """
    found = split_arguments(arguments, FLAGS, SEVERAL)
    _refuse_words(found.words)
    return read_values(found.texts)


def _split_subcommand(arguments: Sequence[str]) -> tuple[Subcommand, Arguments]:
    """The subcommand and the other arguments; without one it is a run."""
    found = split_arguments(arguments, FLAGS, SEVERAL)
    if not found.words or "=" in found.words[0]:
        return SUBCOMMANDS["run"], found
    name, *words = found.words
    if name not in SUBCOMMANDS:
        raise AdaRecError(
            f"unknown subcommand {name!r}{nearest_hint(name, SUBCOMMANDS)}; known are {', '.join(SUBCOMMANDS)}; a key "
            "needs two dashes: --key=value"
        )
    return SUBCOMMANDS[name], Arguments(words, found.texts)


def _call(row: Subcommand, found: Arguments, arguments: list[str]) -> Call:
    """What a subcommand is called with, its own keys checked."""
    if row.names and (len(found.words) != 1 or found.words[0] not in row.names):
        given = f", not {' '.join(found.words)!r}" if found.words else ""
        raise AdaRecError(f"{row.name}: name one of {', '.join(row.names)}{given}")
    if not row.names:
        _refuse_words(found.words)
    options = {option.key.name: option for option in row.options}
    own: dict[str, Any] = {}
    others = []
    for key, text in found.texts:
        if key not in options:
            others.append((key, text))
            continue
        value = _own_value(options[key], text)
        _check_own(row.name, options[key].key, value)
        if key in own and own[key] != value:
            raise AdaRecError(f"--{key} is given twice, as {own[key]!r} and as {value!r}; give it once")
        own[key] = value
    if others and not row.takes_run_keys:
        raise AdaRecError(f"{row.name}: unknown key {others[0][0]!r}; known are {', '.join(options)}")
    for key in (name for name, option in options.items() if option.needed and name not in own):
        raise AdaRecError(f"{row.name}: {options[key].needed}")
    return Call(found.words, *read_values(others), own, arguments, main)


def _own_value(option: Option, text: str) -> Any:
    """The value of a subcommand's own key; names are text."""
    if option.key.types == (str,):
        return text
    if option.key.each == (str,):
        return read_words(text) if option.words or text.lstrip().startswith("[") else [text]
    return read_value("", text)


def _check_own(subcommand: str, key: Key, value: Any) -> None:
    if key.choices and isinstance(value, str) and value not in key.choices:
        raise AdaRecError(f"{subcommand}: unknown {key.name} {value!r}; known are {', '.join(key.choices)}")
    key.check(value, f"{subcommand}: {key.name}")


def _refuse_words(words: Sequence[str]) -> None:
    if words:
        near = f"--{words[0]}" if "=" in words[0] else f"--{nearest_key(words[0])}=value"
        raise AdaRecError(f"argument {words[0]!r} is not of the form --key=value; did you mean {near}?")


# ---------------------------------------------------------------------- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those after the program's name; by default those of this process.

    Returns
    -------
    int
        The exit code: 0, 2 for input that cannot be used, 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    kept = CONTINUES
    try:
        if "--version" in arguments:
            from recbole_adarec.version import __version__

            print(f"recbole-adarec {__version__}")
            return 0
        if any(argument in ("-h", "--help") for argument in arguments):
            print(_help(arguments), end="")
            return 0
        row, found = _split_subcommand(arguments)
        kept = row.kept
        return row.act(_call(row, found, arguments))
    except AdaRecError as error:
        _complain(str(error))
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"{where}{error.strerror or error}")
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)  # after the ^C of the terminal
        _complain(f"interrupted; {kept}")
        return 130


def _help(arguments: Sequence[str]) -> str:
    named = next((argument for argument in arguments if argument in SUBCOMMANDS), None)
    return subcommand_help(SUBCOMMANDS[named]) if named else overview()


def _complain(line: str) -> None:
    """Print one line, from one process: another one speaks only if the first has not ended all of them by then."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(5)
        line = f"process {os.environ['RANK']}: {line}"
    print(f"adarec: {line}", file=sys.stderr)


def entry() -> NoReturn:
    """Run the command and end the process."""
    code = main()
    if "torch" not in sys.modules:  # refused, or help: nothing was started that has to be left
        sys.exit(code)
    from recbole_adarec.distributed import leave

    leave(code)


if __name__ == "__main__":
    entry()
