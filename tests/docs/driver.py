"""Runs what README, docs and examples hold, in one process of its own: ``python -m tests.docs.driver jobs results``.

A job is a command, a script or code. One process for all: importing torch and RecBole takes longer than most jobs, and
plugins and patches stay out of the process of the tests.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import runpy
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import yaml

import recbole_adarec
from recbole_adarec.cli import main
from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.config.run_config import RunConfig
from recbole_adarec.data.loading import load_data
from recbole_adarec.model.registry import get_model
from recbole_adarec.model.search_space.limits import student_limits


def resolved(files: list[str], texts: dict[str, str]) -> dict[str, Any]:
    """The values of keys, each of which has to be known and of its type."""
    return dict(resolve_user_config(None, files, {key: yaml.safe_load(text) for key, text in texts.items()}))


def run_command(job: dict[str, Any]) -> None:
    """Check the keys of the document's command; run it with small settings, unless that is left out."""
    resolved(job["files"], job["given"])
    if job["arguments"] is None:
        return
    words = list(job["arguments"])
    if job["share"]:  # what gives the same run continues it, and is not run again in the same form
        values = resolved(job["files"], job["small"])
        run = digest({key: value for key, value in values.items() if key not in ("run_dir", "baselines")})
        words.append(f"--run_dir=saved/{'demo' if run == RUNS.setdefault('demo', run) else run}")
        same = digest(values)
        if same in RUNS and all("=" in word for word in words):
            return
        RUNS[same] = run
    code = main(words)
    assert code == 0, f"exit code {code} of {words}"


RUNS: dict[str, str] = {}  # the first command makes saved/demo


def digest(values: dict[str, Any]) -> str:
    """The same for the same values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]


def run_script(job: dict[str, Any]) -> None:
    """Run a file as ``python FILE`` does."""
    sys.path.insert(0, str(Path(job["path"]).parent))
    try:
        runpy.run_path(job["path"], run_name="__main__")
    finally:
        sys.path.pop(0)


def run_code(job: dict[str, Any]) -> None:
    """Run code of a document, whose runs are the small one that is there."""
    original = recbole_adarec.run_adarec

    def small_run(dataset: Any = None, config_file_list: Any = None, config_dict: Any = None, **_: Any) -> Any:
        resolve_user_config(dataset, config_file_list, config_dict)
        return original(job["dataset"], config_dict=job["small"], run_dir="saved/demo")

    if job["small"] is not None:
        recbole_adarec.run_adarec = small_run
    try:
        exec(compile(job["code"], job["name"], "exec"), {"__name__": "__main__"})
    finally:
        recbole_adarec.run_adarec = original


def check_budget(job: dict[str, Any]) -> None:
    """Every operation that a document's command names fits into its budget, with the default sizes of all models."""
    config = RunConfig(resolved(job["files"], job["given"] | {"dataset": job["dataset"], "data_path": "data"}))
    first = config.candidates[0] if config.candidates else {}
    data_config = config.stage("teacher")
    dataset = load_data(data_config).train._dataset
    config.set_history_length(data_config)
    stages = {"teacher": config.stage("teacher", **first), "search": config.stage("search")}
    teacher, supernet = (get_model(stage["model"])(stage, dataset) for stage in stages.values())
    supernet.limit(student_limits(stages["search"], teacher))
    assert not supernet.beyond_budget(), f"no student within the budget has {supernet.beyond_budget()}"


KINDS = {"command": run_command, "script": run_script, "code": run_code, "budget": check_budget}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One job in its folder: its error, none if it ended well, and what it printed."""
    printed = io.StringIO()
    sys.argv = [job["name"]]  # RecBole reads it
    os.chdir(job["folder"])
    error, start = None, time.perf_counter()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            KINDS[job["kind"]](job)
        except SystemExit as end:
            error = None if end.code in (0, None) else f"exit code {end.code}"
        except BaseException:
            error = traceback.format_exc()
    seconds = round(time.perf_counter() - start, 2)
    return {"error": error, "printed": printed.getvalue()[-4000:], "seconds": seconds}


if __name__ == "__main__":
    jobs, results = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    found: dict[str, Any] = {}
    for each in json.loads(jobs.read_text()):
        found[each["name"]] = run(each)
        results.write_text(json.dumps(found))
