"""The command line: RecBole's habit of ``--key=value``, config files and defaults."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from recbole_adarec.errors import AdaRecError

USAGE = """\
usage: python run_adarec.py [--dataset=ml-100k] [--config_files="adarec.yaml mine.yaml"] [--key=value ...]

Trains a teacher, searches a small student under its distillation, trains the student, and reports on both.
Any RecBole key, and those of properties/adarec.yaml and properties/model/*.yaml, can be set; a stage's own value has
its prefix: --teacher_epochs=20 --search_learning_rate=0.002 --student_gamma=0.3
  --run_dir=DIR         the folder of the run; the same command with the same folder continues it
  --architecture=FILE   train this architecture without searching
  --baselines="[SASRec, GRU4Rec]"   train these RecBole models too
  --teacher=saved/SASRec-….pth   a RecBole model as the teacher: its checkpoint, or its name to train it here
  --model=SASRec        train and report that RecBole model alone
  --plugins=mine.py     your own operations, teacher adapters and layer mappings
  --nproc=2             in as many processes, on GPUs or CPUs; torchrun works too

       python run_adarec.py benchmark [--quick] [--threads=1] [--parts="[teacher, search]"] [--output=benchmark.json]

Measures, instead of training: the teacher's training against RecBole's, the search step, inference, growth on
synthetic data, and the ten best of a million items (parts teacher, search, inference, growth, ranking). Takes the keys
of a run too. --quick: less of everything.

       python run_adarec.py experiment NAME [--seeds="[2020, 2021, 2022]"] [--workers=2] [--output=experiments]

Several runs, compared on the same users; NAME is search-vs-random (--random=20 architectures), ablation, teachers,
transfer (--datasets="[ml-100k, ml-1m]"), cprec (NextItNet against CpRec), or item-tables (AdaRec's student with a full
and an adaptive item table). --arms="[single level]": not all that ablation or cprec would run. Takes the keys of a run
too; the same command continues it.

       python run_adarec.py compare --models="SASRec GRU4Rec AdaRecStudent" [--reference=AdaRecStudent]
                                    [--fast_baselines] [--output=compare]

Trains the models that are not there yet, and compares them on the same users: accuracy with significance, size, speed,
training time. AdaRecStudent, AdaRecTeacher, and RecBole's models; --fast_baselines: causal ones on every position.

       python run_adarec.py tune [--params_file=tuning/student.yaml] [--tool=hyperopt] [--algo=bayes] [--max_evals=20]
                                 [--early_stop=10] [--output=tuning]
       python run_adarec.py tune --tool=ray [--workers=2] [--scheduler=asha] [--ray_address=auto] ...

Runs over a space of any keys, by the validation metric of the student; best.yaml is for --config_files=. algo:
exhaustive, random, bayes (hyperopt). Takes the keys of a run too; the same command continues it.

       python run_adarec.py recommend --run_dir=DIR (--history="50 172 181" | --users="[1, 2]") [--k=10]

What the student and the teacher of a run recommend after a history of item tokens, or to users of its dataset.
"""


def parse_arguments(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Config files and single values of ``--key=value`` arguments; values are YAML, never evaluated.

    Raises
    ------
    AdaRecError
        If an argument has another form, or a key is given twice with different values.
    """
    from recbole_adarec.storage.yaml_files import parse_value

    files: list[str] = []
    values: dict[str, Any] = {}
    for argument in arguments:
        key, text = _key_and_text(argument)
        if key == "config_files":
            files += text.split()
            continue
        value = parse_value(text)
        if key in values and values[key] != value:
            raise AdaRecError(f"--{key} is given twice, as {values[key]!r} and as {value!r}; give it once")
        values[key] = value
    return files, values


def _key_and_text(argument: str) -> tuple[str, str]:
    key, equals, text = argument.partition("=")
    if not key.startswith("--") or not equals or len(key) == 2:
        raise AdaRecError(f"argument {argument!r} is not of the form --key=value; --help shows how")
    return key[2:], text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0, 2 for input that cannot be used, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if any(argument in ("-h", "--help") for argument in arguments):
        print(USAGE, end="")
        return 0
    kept = _ACTS[None][1]
    try:
        verb, arguments = _split_verb(arguments)
        act, kept = _ACTS[verb]
        return act(arguments)
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


def _complain(line: str) -> None:
    """One line, from one process: another one speaks only if the first has not ended all of them by then."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(5)
        line = f"process {os.environ['RANK']}: {line}"
    print(f"adarec: {line}", file=sys.stderr)


def _split_verb(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """What to do, None for a run, and the other arguments."""
    others = list(arguments)
    verb = next((argument for argument in others if not argument.startswith("-") and "=" not in argument), None)
    if verb is None:
        return None, others
    if verb not in _ACTS:
        known = ", ".join(filter(None, _ACTS))
        raise AdaRecError(f"unknown verb {verb!r}; known are {known}; values are given as --key=value")
    others.remove(verb)
    return verb, others


def _run(arguments: list[str]) -> int:
    from recbole_adarec.config.resolve import resolve_user_config
    from recbole_adarec.distributed import is_first, launch, stop
    from recbole_adarec.memory import keep_freed_memory
    from recbole_adarec.quick_start import make_run
    from recbole_adarec.report.text import comparison_table

    values = resolve_user_config(None, *parse_arguments(arguments))
    # RecBole's keys of several processes; where torchrun has started them the environment says so.
    nproc, world = values.get("nproc", 1), values.get("world_size", -1)
    if max(nproc, world) > 1 and "WORLD_SIZE" not in os.environ:
        one_machine = world <= nproc
        return launch(
            main, arguments, nproc, ip=values.get("ip", "localhost"),
            port=int(values.get("port", 0 if one_machine else 5678)),
            world=nproc if one_machine else world, offset=values.get("group_offset", 0),
        )  # fmt: skip
    keep_freed_memory()
    run = make_run(values)
    if is_first():
        print(f"run folder: {run.folder.path}")
    report = run.execute()
    stop()
    if not is_first():
        return 0
    print()
    print(comparison_table(report))
    print(f"\nreport: {os.path.join(run.folder.path, 'report.html')}")
    return 0


def _benchmark(arguments: list[str]) -> int:
    from recbole_adarec.memory import keep_freed_memory
    from recbole_adarec.studies.benchmark.benchmark import FULL, PARTS, QUICK, run_benchmark

    sizes = QUICK if "--quick" in arguments else FULL
    files, values = parse_arguments([argument for argument in arguments if argument != "--quick"])
    parts, output = values.pop("parts", list(PARTS)), values.pop("output", "benchmark.json")
    if not isinstance(output, str):
        raise AdaRecError(f"output is {output!r}, expected the name of a file")
    keep_freed_memory()
    run_benchmark(files, values, parts if isinstance(parts, list) else [parts], sizes, output)
    print(f"\nbenchmark: {output}")
    return 0


def _experiment(arguments: list[str]) -> int:
    from recbole_adarec.memory import keep_freed_memory
    from recbole_adarec.studies.experiment_tables import experiment_table
    from recbole_adarec.studies.experiments import EXPERIMENTS, run_experiment

    names = [argument for argument in arguments if not argument.startswith("--")]
    if len(names) != 1:
        raise AdaRecError(f"experiment: name one of {', '.join(EXPERIMENTS)}")
    files, values = parse_arguments([argument for argument in arguments if argument.startswith("--")])
    own = {"datasets": list, "scenes": list, "seeds": list, "random": int, "workers": int, "output": str, "arms": list}
    given = _own(values, "experiment", own)
    if "random" in given:
        given["number"] = given.pop("random")
    keep_freed_memory()
    print(experiment_table(run_experiment(names[0], files, values, **given)))
    return 0


def _compare(arguments: list[str]) -> int:
    from recbole_adarec.memory import keep_freed_memory
    from recbole_adarec.studies.comparison import run_comparison
    from recbole_adarec.studies.comparison_tables import models_table, significance_table

    arguments = ["--fast_baselines=True" if argument == "--fast_baselines" else argument for argument in arguments]
    files, values = parse_arguments(arguments)
    models = values.pop("models", [])
    given = _own(values, "compare", {"reference": str, "fast_baselines": bool, "output": str})
    keep_freed_memory()
    found = run_comparison(models.split() if isinstance(models, str) else models, files, values, **given)
    print(f"{models_table(found)}\n\n{significance_table(found)}")
    print(f"\ncomparison: {os.path.join(given.get('output', 'compare'), found['dataset'], 'compare.html')}")
    return 0


def _tune(arguments: list[str]) -> int:
    from recbole_adarec.memory import keep_freed_memory
    from recbole_adarec.studies.tuning.command import run_tuning

    files, values = parse_arguments(arguments)
    own = {"params_file": str, "tool": str, "algo": str, "scheduler": str, "ray_address": str, "output": str}
    given = _own(values, "tune", own | {"max_evals": int, "early_stop": int, "workers": int})
    keep_freed_memory()

    def print_record(record: dict[str, Any]) -> None:
        score = record["error"] if record["status"] == "failed" else f"{record['metric']} {record['score']}"
        print(f"{record['status']}: {score}  {record['params']}", flush=True)

    found = run_tuning(files, values, on_record=print_record, **given)
    folder = os.path.join(given.get("output", "tuning"), found["dataset"])
    if found["best"] is None:
        raise AdaRecError(f"tune: no trial finished; {os.path.join(folder, 'study.md')} says why")
    print(f"\nbest: {found['metric']} {found['best']['score']}  --config_files={os.path.join(folder, 'best.yaml')}")
    return 0


def _own(values: dict[str, Any], verb: str, types: dict[str, type]) -> dict[str, Any]:
    """Take a verb's own keys out of the values, each of its type."""
    given = {key: values.pop(key) for key in types if key in values}
    for key, value in given.items():
        if not isinstance(value, types[key]):
            raise AdaRecError(f"{verb}: {key} is {value!r}, expected {types[key].__name__}")
    return given


def _recommend(arguments: list[str]) -> int:
    from recbole_adarec.deployment.case_study import recommend

    texts = dict(_key_and_text(argument) for argument in arguments)
    unknown = set(texts) - {"run_dir", "history", "users", "k", "data_path", "plugins"}
    if unknown:
        raise AdaRecError(f"recommend: unknown key {sorted(unknown)[0]!r}; known are run_dir, history, users, k")
    print(recommend(**texts))
    return 0


_CONTINUES = "finished stages are kept, --run_dir= with the run's folder continues"
# What each verb does, and what is left when it is interrupted; without a verb it is a run.
_ACTS: dict[str | None, tuple[Callable[[list[str]], int], str]] = {
    None: (_run, _CONTINUES),
    "benchmark": (_benchmark, "finished parts are in the output file"),
    "experiment": (_experiment, "finished runs are kept, the same command continues"),
    "compare": (_compare, "finished models are kept, the same command continues"),
    "tune": (_tune, "finished trials are kept, the same command continues"),
    "recommend": (_recommend, _CONTINUES),
}


def entry() -> NoReturn:
    """What the command runs."""
    from recbole_adarec.distributed import leave

    leave(main())


if __name__ == "__main__":
    entry()
