"""The command line: RecBole's habit of ``--key=value``, config files and defaults."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from recbole_adarec.errors import AdaRecError

USAGE = """\
usage: python run_adarec.py [--dataset=ml-100k] [--config_files="adarec.yaml mine.yaml"] [--key=value ...]

Trains a teacher, searches a small student under its distillation, trains the student, and reports on both.
Any RecBole key, and those of properties/adarec.yaml and properties/model/*.yaml, can be set; a stage's own value has
its prefix: --teacher_epochs=20 --search_learning_rate=0.002 --student_gamma=0.3
  --run_dir=DIR         the folder of the run; the same command with the same folder continues it
  --architecture=FILE   train this architecture without searching
  --baselines="[SASRec, GRU4Rec]"   train these RecBole models too
"""


def parse_arguments(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Config files and single values of ``--key=value`` arguments; values are YAML, never evaluated.

    Raises
    ------
    AdaRecError
        If an argument has another form, or a key is given twice with different values.
    """
    from recbole_adarec.settings import parse_value

    files: list[str] = []
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not key.startswith("--") or not equals or len(key) == 2:
            raise AdaRecError(f"argument {argument!r} is not of the form --key=value; --help shows how")
        key = key[2:]
        if key == "config_files":
            files += text.split()
            continue
        value = parse_value(text)
        if key in values and values[key] != value:
            raise AdaRecError(f"--{key} is given twice, as {values[key]!r} and as {value!r}; give it once")
        values[key] = value
    return files, values


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0, 2 for input that cannot be used, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if any(argument in ("-h", "--help") for argument in arguments):
        print(USAGE, end="")
        return 0
    try:
        files, values = parse_arguments(arguments)
        return _run(files, values)
    except AdaRecError as error:
        print(f"adarec: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"adarec: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nadarec: interrupted; finished stages are kept, --run_dir= with the run's folder continues",
            file=sys.stderr,
        )
        return 130


def _run(files: list[str], values: dict[str, Any]) -> int:
    from recbole_adarec.allocator import keep_freed_memory
    from recbole_adarec.config import resolve
    from recbole_adarec.evaluation.report import comparison_table
    from recbole_adarec.pipeline import Run

    keep_freed_memory()
    run = Run(resolve(None, files, values))
    print(f"run folder: {run.folder.path}")
    report = run.execute()
    print()
    print(comparison_table(report))
    print(f"\nreport: {os.path.join(run.folder.path, 'report.html')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
