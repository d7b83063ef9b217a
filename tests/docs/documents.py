"""What README and docs hold: code blocks, commands, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
PAGES = [README, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md"))] + sorted(ROOT.glob("docs/**/*.md"))
DOCUMENTS = [page for page in PAGES if page == README or "docs" in page.parts and page.parent.name != "results"]
SHORT = {"-d": "dataset", "-m": "model"}


def blocks(path: Path, language: str) -> list[str]:
    """Fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(path: Path) -> Iterator[list[str]]:
    """Command lines of a document that run this package, as words; comments are left out."""
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                if words:
                    words[0] = words[0].removeprefix(".venv/bin/")
                if words[:1] == ["adarec"] or words[:2] == ["python", "run_adarec.py"] or words[:1] == ["torchrun"]:
                    yield words


def arguments(words: list[str]) -> list[str]:
    """What a command line hands to the package."""
    return words[1:] if words[0] == "adarec" else words[words.index("run_adarec.py") + 1 :]


def grouped(words: list[str]) -> list[tuple[str, list[str]]]:
    """Arguments by key: ``--key=value``, ``--key value``, ``-d value``; words without a key have the key ''."""
    groups: list[tuple[str, list[str]]] = []
    many = False
    for word in words:
        last_key, last = groups[-1] if groups else ("", [])
        if word.startswith("-") and not word[1:2].isdigit():
            key, equals, _ = word.partition("=")
            groups.append((SHORT.get(key, key.lstrip("-")), [word]))
            many = not equals
        elif many and last_key and (len(last) == 1 or last_key == "config_files"):
            last.append(word)
        else:
            groups.append(("", [word]))
    return groups


def value_of(group: list[str]) -> str:
    """The text of a key's value; a flag has none and is true."""
    if "=" in group[0]:
        return group[0].partition("=")[2]
    return " ".join(group[1:]) or "True"


def anchors(path: Path) -> set[str]:
    """Anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(path: Path) -> list[str]:
    """Targets of the relative links and images of a page."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in found if not re.match(r"[a-z]+:", target)]
