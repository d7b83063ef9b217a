"""What is made from the schema: the files in properties/ with their comments, and docs/configuration.md."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recbole_adarec.config import adarec_keys, recbole_keys
from recbole_adarec.config.adarec_keys import Section
from recbole_adarec.config.key import Key
from recbole_adarec.config.recbole_models import RECBOLE
from recbole_adarec.config.schema import MODELS
from recbole_adarec.storage.files import write_text
from recbole_adarec.storage.properties import PROPERTIES
from recbole_adarec.storage.yaml_files import load_yaml, parse_value

FILES = {"run": "adarec.yaml"} | {stage: f"model/{model}.yaml" for stage, model in MODELS.items()}
_HEADS = {
    "run": "Settings of a whole run: teacher, search, student, report. A single stage has its own in model/.",
    "teacher": "The teacher. Another backbone's own training: ../backbone/<backbone>.yaml; paper sizes: ../paper/.",
    "search": "The search, which trains the supernet.",
    "student": "The student.",
    "cprec": "CpRec: NextItNet of the teacher's size, with a block-wise item table and shared layers.",
}
_MADE = "# Made by python -m recbole_adarec.config.documents; docs/configuration.md has all keys."
_PLAIN = re.compile(r"\w[\w@./-]*")  # text that needs no quotes
_COMMENT = 32  # column of the comments
_WIDTH = 120
_NAMES = {"run": "run", "teacher": "teacher", "search": "search", "student": "student", "cprec": "CpRec"}


def yaml_text(value: Any) -> str:
    """A value as it is written in properties/: one line of YAML."""
    if value is None:
        return "~"
    if isinstance(value, list):
        return f"[{', '.join(map(yaml_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {yaml_text(of)}' for key, of in value.items())}}}"
    text = str(value)
    plain = not isinstance(value, str) or (_PLAIN.fullmatch(text) and parse_value(text) == text)
    return text if plain else json.dumps(text)


def properties_text(file: str) -> str:
    """The text of a file in properties/; `file` is a key of `FILES`."""
    lines = [f"# {_HEADS[file]}", _MADE]
    for section in adarec_keys.SECTIONS:
        keys = [key for key in section.keys if file in key.defaults]
        if keys:
            lines += ["", f"# {section.title}"]
            lines += [line for key in keys for line in _property_lines(key, file)]
    return "\n".join(lines) + "\n"


def _property_lines(key: Key, file: str) -> list[str]:
    setting = f"{key.name}: {yaml_text(key.defaults[file])}"
    names = f" One of {', '.join(key.choices)}." if key.choices and list not in key.types else ""
    if any(name in key.help for name in key.choices[:1]):  # the help explains the names
        names = ""
    comment = f"({key.type_text}) {key.help}{names}"
    if len(setting) >= _COMMENT:
        return [*textwrap.wrap(comment, _WIDTH - 2, initial_indent="# ", subsequent_indent="# "), setting]
    first, *more = textwrap.wrap(comment, _WIDTH - _COMMENT - 2)
    return [f"{setting:<{_COMMENT}}# {first}", *(f"{'':<{_COMMENT}}# {line}" for line in more)]


# ---------------------------------------------------------------------- docs/configuration.md

_INTRODUCTION = """\
# Configuration

Made from the schema by `python -m recbole_adarec.config.documents`; do not edit this page.

Every key can be given on the command line (`--key=value` or `--key value`), in a YAML file
(`--config_files mine.yaml`, looked for in the current folder, then in [properties/](../properties)), or in Python
(`run_adarec(config_dict={"key": value})`). The command line wins over files, a later file wins over an earlier one, and
all of them win over the defaults. Values are YAML and are never evaluated; `~` is no value. An unknown key, a wrong
type and a value out of range are refused before anything runs.

## Prefixes

A run has three stages: `teacher`, `search` and `student`. A key without a prefix is for every stage that has it; with
a prefix it is for that stage alone, and wins: `--epochs=20 --search_epochs=5` trains teacher and student for 20 epochs
and searches for 5. `cprec_` is for CpRec, and `baseline_` for the RecBole models of `baselines`, `model` and the
subcommand `compare`: `--baseline_learning_rate=0.001`. `teacher_` is for a RecBole model too, if `teacher` names one:
`--teacher=GRU4Rec --teacher_num_layers=2`. RecBole's own keys take prefixes as well: `--teacher_eval_step=2`.

The columns of the first tables are the files with the defaults: `run` is
[adarec.yaml](../properties/adarec.yaml), the stages are
[AdaRecTeacher.yaml](../properties/model/AdaRecTeacher.yaml),
[AdaRecSupernet.yaml](../properties/model/AdaRecSupernet.yaml),
[AdaRecStudent.yaml](../properties/model/AdaRecStudent.yaml) and [CpRec.yaml](../properties/model/CpRec.yaml).
A type `number` is an int or a float; `~` in a column is a default of no value, an empty field means that the stage has
no such key.

## Words of these tables

Further words: [glossary](architecture.md#glossary).

| word | meaning |
| --- | --- |
| w, alpha | all weights of the supernet but alpha; the architecture logits, one for each operation of each edge |
| cell, node | a small directed graph with operations on its edges; a hidden state in it |
| L_cost | the loss that grows with the cost of the drawn operations above the budget ([method](method.md#equations)) |
| window, prefix end | a piece of a history; the last item of a beginning of it |
| target | an interaction that is predicted; a batch is measured in targets |
| block | items of similar popularity; rarer blocks have narrower rows or coarser codes |
| code | the byte that stands for a few channels of an item's row |
"""


def configuration_page() -> str:
    """Docs/configuration.md."""
    parts = [_INTRODUCTION]
    for section in adarec_keys.SECTIONS:
        parts += [f"## {section.title}", _adarec_table(section)]
    parts += ["## The teacher's backbones", "\n".join(_backbone_lines())]
    parts += ["## Keys of RecBole", _RECBOLE]
    for section in recbole_keys.SECTIONS:
        parts += [f"### {section.title}", *_recbole_section(section)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


_RECBOLE = """\
Every key that RecBole 1.2.1 reads can be given; these are the ones without a default of ours. RecBole's default is that
of its overall.yaml and dataset/sample.yaml; a dataset that comes with RecBole, such as ml-100k, has some of its own.
Keys of a single RecBole model are those of its file in RecBole's properties/model/; they are known where the run names
that model."""


def _adarec_table(section: Section) -> str:
    files = [file for file in FILES if any(file in key.defaults for key in section.keys)]
    rows = [["key", "type", "values", *(_NAMES[file] for file in files), "meaning"]]
    for key in section.keys:
        defaults = [f"`{yaml_text(key.defaults[file])}`" if file in key.defaults else "" for file in files]
        rows.append([f"`{key.name}`", _type(key), _values(key), *defaults, _escaped(key.help)])
    return _table(rows)


def _recbole_section(section: Section) -> list[str]:
    """A table of the section's keys. A meaning that all of them share stands once above it, if they take any value."""
    meanings = {key.help for key in section.keys}
    if len(meanings) == 1 and not any(key.types for key in section.keys):
        names = [["key"], *([f"`{key.name}`"] for key in section.keys)]
        return [f"{meanings.pop()} Any value is accepted.", _table(names)]
    general = load_yaml(RECBOLE / "properties/overall.yaml") | load_yaml(RECBOLE / "properties/dataset/sample.yaml")
    rows = [["key", "type", "values", "RecBole's default", "meaning"]]
    for key in section.keys:
        default = f"`{yaml_text(general[key.name])}`" if key.name in general else ""
        rows.append([f"`{key.name}`", _type(key), _values(key), default, _escaped(key.help)])
    return [_table(rows)]


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;")


def _type(key: Key) -> str:
    return f"{key.type_text} or ~" if key.optional and key.types else key.type_text


def _values(key: Key) -> str:
    names = ", ".join(f"`{name}`" for name in key.choices)
    least = "" if key.each_low is None or key.each_low < 1 else f"elements at least {key.each_low:g}"
    return "; ".join(filter(None, (names, key.range_text, least)))


def _table(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([lines[0], f"|{' --- |' * len(rows[0])}", *lines[1:]])


def _backbone_lines() -> Iterator[str]:
    """A heading and a Markdown bullet for each backbone whose training defaults differ from the tables."""
    yield "Backbones that are trained otherwise than the tables say:\n"
    for path in sorted((PROPERTIES / "backbone").glob("*.yaml")):
        values = ", ".join(f"`{key}: {yaml_text(value)}`" for key, value in load_yaml(path).items())
        yield f"* [{path.stem}](../properties/backbone/{path.name}): {values}"


def write_all() -> list[Path]:
    """Write all files that are made from the schema; return their paths."""
    paths = {PROPERTIES / name: properties_text(file) for file, name in FILES.items()}
    paths[PROPERTIES.parent / "docs" / "configuration.md"] = configuration_page()
    for path, text in paths.items():
        write_text(path, text)
    return list(paths)


if __name__ == "__main__":
    for written in write_all():
        print(written)
