"""The architecture of a student, an immutable value with a YAML form: the one result of the search."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recbole_adarec.errors import AdaRecError
from recbole_adarec.model.search_space.operations import OPERATIONS, check_operations
from recbole_adarec.storage.files import write_text
from recbole_adarec.storage.properties import find_file

FORMAT = "recbole-adarec-architecture/1"
FORMAT_2 = "recbole-adarec-architecture/2"  # with cell_form, and perhaps repeats
CELL_FORMS = ("relu", "residual")


def edges(nodes: int) -> list[tuple[int, int]]:
    """Edges ``(i, j)`` of a cell, in the order used everywhere.

    Node 0 is the input of the cell. Each node j = 1..`nodes` receives an edge from every earlier node i.
    """
    return [(i, j) for j in range(1, nodes + 1) for i in range(j)]


@dataclass(frozen=True)
class Architecture:
    """An operation for each edge of each cell, and the hidden size (AdaRec, arXiv 2107.07173, section 3.2).

    Attributes
    ----------
    hidden_size : int
        Channels C of the student.
    cells : tuple of tuple of str
        Names of the operations, for each of S cells those of its E edges in the order of `edges`.
    cell_form : str
        ``relu`` or ``residual``, see `Cell`.
    repeats : int
        How many times all cells are applied, one after the other, with the same operations and other norms.

    Raises
    ------
    AdaRecError
        If there is no cell or no repetition, cells differ in their number of edges, an operation is unknown or not
        causal, or the form is unknown.
    """

    hidden_size: int
    cells: tuple[tuple[str, ...], ...]
    cell_form: str = "relu"
    repeats: int = 1

    def __post_init__(self) -> None:
        if min(self.hidden_size, self.repeats, len(self.cells)) < 1:
            raise AdaRecError("architecture: hidden_size, repeats and the number of cells must be at least 1")
        counts = {len(cell) for cell in self.cells}
        if len(counts) != 1 or not any(len(edges(n)) == next(iter(counts)) for n in range(1, 65)):
            raise AdaRecError(
                f"architecture: cells have {sorted(counts)} edges; all must have the same number, "
                "1, 3, 6, 10, … for 1, 2, 3, 4, … nodes"
            )
        if self.cell_form not in CELL_FORMS:
            raise AdaRecError(f"architecture: cell_form is {self.cell_form!r}; known are {', '.join(CELL_FORMS)}")
        check_operations(sorted({name for cell in self.cells for name in cell}), "architecture")

    @property
    def nodes(self) -> int:
        """Number of computed nodes of a cell (its input is not one)."""
        return next(n for n in range(1, 65) if len(edges(n)) == len(self.cells[0]))

    def count(self) -> dict[str, int]:
        """Number of occurrences of each operation in all cells, without those that do not occur."""
        counts = Counter(name for cell in self.cells for name in cell)
        return {name: counts[name] for name in OPERATIONS if counts[name]}

    def to_dict(self) -> dict[str, Any]:
        """The YAML form. Node j of a cell is the list of the operations on its edges from nodes 0..j-1."""
        old = self.cell_form == "relu" and self.repeats == 1
        return {
            "format": FORMAT if old else FORMAT_2,
            "hidden_size": self.hidden_size,
            **({} if old else {"cell_form": self.cell_form, "repeats": self.repeats}),
            "cells": [
                [[cell[e] for e, (_, to) in enumerate(edges(self.nodes)) if to == j] for j in range(1, self.nodes + 1)]
                for cell in self.cells
            ],
        }

    @classmethod
    def from_dict(cls, content: Any, where: str = "architecture") -> Architecture:
        """Architecture from its YAML form. One cell with ``share_cells: n`` stands for n equal cells.

        Parameters
        ----------
        content : dict
            The YAML form, see `to_dict`.
        where : str
            Source of the content, for error messages.

        Raises
        ------
        AdaRecError
            If an entry is missing, unknown or wrong.
        """
        if not isinstance(content, dict) or content.get("format") not in (FORMAT, FORMAT_2):
            actual = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise AdaRecError(f"{where}: format is {actual!r}, expected {FORMAT!r} or {FORMAT_2!r}")
        known = ["format", "hidden_size", "cells", "share_cells"]
        if content["format"] == FORMAT_2:
            known += ["cell_form", "repeats"]
            if "cell_form" not in content:
                raise AdaRecError(f"{where}: cell_form is missing, expected one of {', '.join(CELL_FORMS)}")
        if unknown := set(content) - set(known):
            raise AdaRecError(f"{where}: unknown key {min(unknown, key=str)!r}; known are {', '.join(known)}")
        counts = {"hidden_size": content.get("hidden_size"), "share_cells": 1, "repeats": 1, **content}
        for key in ("hidden_size", "share_cells", "repeats"):
            if not isinstance(counts[key], int) or isinstance(counts[key], bool) or counts[key] < 1:
                raise AdaRecError(f"{where}: {key} is {counts[key]!r}, expected a whole number of at least 1")
        size, share, cells = counts["hidden_size"], counts["share_cells"], content.get("cells")
        if not isinstance(cells, list) or not cells:
            raise AdaRecError(f"{where}: cells is {cells!r}, expected a list of cells")
        if share > 1 and len(cells) > 1:
            raise AdaRecError(f"{where}: share_cells repeats one cell, but there are {len(cells)}; leave one of them")
        flat = []
        for number, cell in enumerate(cells, 1):
            if not isinstance(cell, list) or not cell:
                raise AdaRecError(f"{where}: cell {number} is {cell!r}, expected a list of nodes")
            for j, node in enumerate(cell, 1):
                if not isinstance(node, list) or len(node) != j or not all(isinstance(name, str) for name in node):
                    raise AdaRecError(
                        f"{where}: node {j} of cell {number} is {node!r}, expected {j} operation name(s), one for each "
                        "earlier node"
                    )
            flat.append(tuple(name for node in cell for name in node))
        return cls(size, tuple(flat) * share, content.get("cell_form", "relu"), counts["repeats"])

    def save(self, path: str | Path) -> None:
        """Write the YAML form to a file, atomically."""
        write_text(path, yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None))

    @classmethod
    def load(cls, path: str | Path) -> Architecture:
        """Architecture in a YAML file.

        Raises
        ------
        AdaRecError
            If the file cannot be read, is not YAML, or does not hold an architecture.
        """
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise AdaRecError(f"architecture: cannot read {path}: {error}") from error
        except yaml.YAMLError as error:
            raise AdaRecError(f"architecture: {path} is not YAML: {' '.join(str(error).split())}") from error
        return cls.from_dict(content, str(path))


def as_architecture(value: Any) -> Architecture:
    """Architecture from an `Architecture`, its YAML form as a dict, or the path of its file.

    A file is looked for in the current folder, then in properties/.

    Raises
    ------
    AdaRecError
        If the file is missing, or the content is not an architecture.
    """
    if isinstance(value, Architecture):
        return value
    if isinstance(value, dict):
        return Architecture.from_dict(value)
    return Architecture.load(find_file(value, "architecture"))
