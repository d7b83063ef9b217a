"""Every command, code block and link of README and docs works, and every example runs."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.documents import (
    DOCUMENTS,
    EXAMPLES,
    NOTEBOOK,
    PAGES,
    README,
    ROOT,
    anchors,
    arguments,
    blocks,
    commands,
    grouped,
    links,
    value_of,
)

# In place of what a command says itself.
SMALL = {
    "dataset": "tiny", "data_path": "data", "seed": "2020", "epochs": "1", "teacher_epochs": "1", "search_epochs": "1",
    "student_epochs": "1", "cprec_epochs": "1", "item_code_epochs": "1", "hidden_size": "16",
    "teacher_hidden_size": "16", "search_hidden_size": "8", "inner_size": "16", "block_num": "1", "n_layers": "2",
    "n_heads": "2", "nodes": "2", "distilled_layers": "2", "cost_budget": "0.5", "candidates": "1",
    "candidate_sizes": "~", "train_batch_size": "200", "latency_repeats": "2", "show_progress": "False",
}  # fmt: skip
# Keys of the subcommands themselves.
OWN = {
    "compare": {"models", "reference", "fast_baselines", "output"},
    "experiment": {"datasets", "seeds", "random", "workers", "output", "arms", "fast_baselines"},
    "tune": {"params_file", "tool", "algo", "scheduler", "ray_address", "output", "max_evals", "early_stop", "workers"},
    "benchmark": {"quick", "parts", "output"},
    "recommend": {"run_dir", "history", "users", "k", "plugins"},
    None: set(),
}
# Keys that make no run: what they print is all.
PRINTED = {"help", "version"}
# Commands that are checked and not run, and why.
NOT_RUN = {
    "torchrun --nproc_per_node=2 run_adarec.py": "two processes; tests of several processes run it",
    "python run_adarec.py --nproc=2": "two processes; tests of several processes run it",
    "python run_adarec.py tune --tool=ray --workers=4": "starts Ray; a test of tuning does",
    "python run_adarec.py tune --tool=ray --workers=64 --ray_address=auto": "needs a Ray cluster",
    "python run_adarec.py --teacher=saved/SASRec.pth": "examples/recbole_teacher.py runs it",
    "python run_adarec.py --plugins=operations.py --operations=[conv_9, skip, none] --cost_budget=0.1": (
        "README's mine.py runs one"
    ),
    "python run_adarec.py --plugins=adapter.py --teacher=GCSAN": "README's mine.py runs the same",
    "python run_adarec.py --plugins=mapping.py --layer_mapping=first": "README's mine.py runs one",
    "python run_adarec.py --backbone=BERT4Rec": "experiment teachers trains it",
    "python run_adarec.py --gamma=0": "experiment ablation trains a student without distillation",
    "python run_adarec.py --item_table=adaptive --student_total_budget=0.0625": "as with an eighth, which runs",
    "python run_adarec.py experiment item-tables": "two searches; tests of CpRec run it",
    "python run_adarec.py experiment transfer --datasets=[ml-100k, ml-1m]": "two searches; tests of experiments run it",
    "python run_adarec.py tune --params_file=mine.params --algo=random": "tests of tuning read such a file",
}
# The experiment's own keys, so that few trainings happen.
SMALL_EXPERIMENT = {
    "search-vs-random": {"random": "1"},
    "ablation": {"arms": "[single level, no distillation]"},
    "cprec": {"arms": "[CpRec]"},
}
COMMANDS = {" ".join(words): words for page in DOCUMENTS for words in commands(page)}
WITH_OPERATIONS = [name for name in COMMANDS if " --operations=" in name]
CODE = {
    f"{page.name}, Python block {n}": code for page in DOCUMENTS for n, code in enumerate(blocks(page, "python"), 1)
}
PLUGINS = {code.split()[1]: code for code in CODE.values() if code.startswith("# ") and code.split()[1].endswith(".py")}


def write_dataset(folder: Path) -> None:
    """40 users and 20 items; the next item is the one after it, with some noise."""
    tokens = ["50", "172", "181", *map(str, range(1, 18))]  # those of the documents are among them
    rng = random.Random(0)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(1, 41):
        item = rng.randrange(20)
        for time in range(rng.randrange(8, 20)):
            lines.append(f"{user}\t{tokens[item]}\t{time}")
            item = (item + 1) % 20 if rng.random() < 0.9 else rng.randrange(20)
    (folder / "tiny").mkdir(parents=True)
    (folder / "tiny/tiny.inter").write_text("\n".join(lines) + "\n")


def fill(folder: Path) -> None:
    """The files that the documents' commands name."""
    write_dataset(folder / "data")
    for name, code in PLUGINS.items():
        (folder / name).write_text(code)
    cell = "[[conv_3], [skip, none]]"
    (folder / "my.yaml").write_text(f"format: recbole-adarec-architecture/1\nhidden_size: 8\ncells: [{cell}]\n")
    (folder / "mine.params").write_text("student_gamma choice [0.0, 0.5]\n")
    (folder / "tuning/ml-100k").mkdir(parents=True)
    (folder / "tuning/ml-100k/best.yaml").write_text("student_epochs: 3\n")


def replaced(groups: list[tuple[str, list[str]]], values: dict[str, str]) -> list[str]:
    """The same arguments with other values, each in the form that the document has; what is missing is added."""
    words: list[str] = []
    for key, group in groups:
        if key not in values or not key:
            words += group
        elif "=" in group[0]:
            words.append(f"{group[0].partition('=')[0]}={values[key]}")
        else:
            words += [group[0], values[key]]
    given = {key for key, _ in groups}
    return words + [f"--{key}={value}" for key, value in values.items() if key not in given]


def command_job(name: str, folder: Path) -> dict[str, Any]:
    """What the driver does with a document's command."""
    groups = grouped(arguments(COMMANDS[name]))
    words = [group[0] for key, group in groups if not key]
    verb = words[0] if words else None
    assert verb in OWN, f"{name}: the test knows no subcommand {verb!r}"
    job: dict[str, Any] = {"name": name, "kind": "command", "folder": str(folder), "files": [], "share": False}
    given = {key: value_of(group) for key, group in groups if key and key not in OWN[verb] | PRINTED}
    job["files"] = given.pop("config_files", "").split()
    job["given"] = given
    if PRINTED & {key for key, _ in groups}:
        return job | {"given": {}, "arguments": replaced(groups, {})}
    if verb == "recommend":  # from the run of an example: on MovieLens-100k, as the documents have it
        return job | {"given": {}, "arguments": replaced(groups, {"run_dir": "saved/first-run"})}
    if name in NOT_RUN:
        if "teacher" in given:  # a checkpoint that is not there
            del given["teacher"]
        return job | {"arguments": None}
    values: dict[str, str] = dict(SMALL)
    number = list(COMMANDS).index(name)
    if verb is None:
        groups = [(key, group) for key, group in groups if key != "run_dir"]
        if given.get("cost") == "latency":  # which differs between machines
            values["cost_budget"] = "~"
        small = {**given, **values}
        small.pop("run_dir", None)
        return job | {"share": True, "small": small, "arguments": replaced(groups, values)}
    if verb == "experiment":
        values |= {"seeds": "[1]", "workers": "1"} | SMALL_EXPERIMENT.get(words[1], {})
        values.pop("seed")
        if any(key == "arms" for key, _ in groups):
            values.pop("arms")
    if verb == "tune":
        values |= {"max_evals": "1", "output": f"tuning-{number}"}
    if verb == "benchmark":
        values |= {"parts": "[inference]", "output": f"benchmark-{number}.json"}
        groups += [] if any(key == "quick" for key, _ in groups) else [("quick", ["--quick"])]
    return job | {"arguments": replaced(groups, values)}


def budget_job(name: str, folder: Path) -> dict[str, Any]:
    """What the driver does to find out whether a command's operations fit into its budget."""
    given = {key: value_of(group) for key, group in grouped(arguments(COMMANDS[name])) if key}
    job = {"name": f"budget of {name}", "kind": "budget", "folder": str(folder), "dataset": SMALL["dataset"]}
    return job | {"files": given.pop("config_files", "").split(), "given": given}


def notebook_code() -> str:
    """The code cells of the notebook."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of every command, code block and example, all run in one process."""
    folder, of_examples = tmp_path_factory.mktemp("documents"), tmp_path_factory.mktemp("examples")
    fill(folder)
    demo = {"name": "demo", "kind": "command", "folder": str(folder), "files": [], "given": {}, "share": True}
    jobs = [demo | {"small": SMALL, "arguments": [f"--{key}={value}" for key, value in SMALL.items()]}]
    of_commands = [command_job(name, folder) for name in COMMANDS]
    jobs += [job for job in of_commands if " recommend " not in job["name"]]
    jobs += [budget_job(name, folder) for name in WITH_OPERATIONS]
    for name, code in CODE.items():
        if code not in PLUGINS.values():  # those run with their commands
            values = {key: yaml.safe_load(value) for key, value in SMALL.items() if key != "dataset"}
            jobs.append({"name": name, "kind": "code", "folder": str(folder), "code": code, "dataset": "tiny"})
            jobs[-1]["small"] = values
    ordered = sorted(EXAMPLES, key=lambda path: path.stem == "serve")  # which goes on with the first run
    jobs += [{"name": path.name, "kind": "script", "folder": str(of_examples), "path": str(path)} for path in ordered]
    notebook = {"name": NOTEBOOK.name, "kind": "code", "folder": str(of_examples), "code": notebook_code()}
    jobs.append(notebook | {"small": None})
    jobs += [job | {"folder": str(of_examples)} for job in of_commands if " recommend " in job["name"]]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.docs.driver", "jobs.json", "results.json"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    found: dict[str, dict[str, Any]] = {}
    if (folder / "results.json").is_file():
        found = json.loads((folder / "results.json").read_text())
    for job in jobs:
        found.setdefault(job["name"], {"error": f"was not reached: {done.stderr[-2000:]}", "printed": ""})
    return found


def check(result: dict[str, Any]) -> None:
    assert result["error"] is None, f"{result['error']}\n{result['printed']}"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_of_the_documents_is_accepted_and_runs(name, results):
    check(results[name])


@pytest.mark.parametrize("name", WITH_OPERATIONS)
def test_a_student_can_have_the_operations_that_a_command_names(name, results):
    check(results[f"budget of {name}"])


@pytest.mark.parametrize("name", [name for name, code in CODE.items() if code not in PLUGINS.values()])
def test_a_python_block_of_the_documents_runs(name, results):
    check(results[name])


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_of_the_documents_has_a_command_that_runs_it(name):
    assert any(f"--plugins={name}" in command for command in COMMANDS)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_runs(path, results):
    check(results[path.name])
    assert results[path.name]["printed"].strip()


def test_the_notebook_runs_and_holds_no_output(results):
    check(results[NOTEBOOK.name])
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert content["nbformat"] == 4
    assert all(not cell.get("outputs") for cell in content["cells"])


def test_commands_that_are_not_run_stand_in_the_documents():
    assert set(NOT_RUN) <= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_point_to_what_is_there(page):
    for target in links(page):
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(path), f"{page.name}: {target}"


def test_the_readme_is_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 240


def test_the_readme_has_its_two_commands():
    first, second = blocks(README, "bash")[:2]
    head = "python3.11 -m venv .venv && .venv/bin/pip install "
    assert first == head + "--no-compile torch==2.13.0 . && .venv/bin/python run_adarec.py\n"
    assert second == head + 'torch==2.13.0 ".[test]" && .venv/bin/python -m pytest\n'


def test_figures_have_a_digit_before_the_point():
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        assert not re.search(r"(?<![\w.])[+-]?\.\d", text), page.name
