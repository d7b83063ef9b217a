"""The table of subcommands: for each its keys, what its help says, and what it does.

What a subcommand does is imported when it is called: the table itself is read before the arguments are known to be
right.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from recbole_adarec.config.key import Key
from recbole_adarec.errors import AdaRecError

EXPERIMENTS = ("search-vs-random", "ablation", "transfer", "teachers", "teacher-choice", "cprec", "item-tables")
BENCHMARKS = ("teacher", "search", "inference", "growth", "ranking")
FROM_A_RUN = ("AdaRecTeacher", "AdaRecStudent")  # what compare takes from a run; all other models are trained alone


class Option(NamedTuple):
    """A key that only a subcommand has.

    Attributes
    ----------
    key : Key
        Its name, type, choices and meaning.
    default : str
        What it is if it is not given, in words; empty: nothing.
    words : bool
        Whether blanks separate the names of its list; otherwise only a YAML list has several.
    flag : bool
        Whether it can stand without a value.
    needed : str
        What is said if it is not given; empty if it need not be.
    """

    key: Key
    default: str = ""
    words: bool = False
    flag: bool = False
    needed: str = ""


class Call(NamedTuple):
    """What a subcommand is called with.

    Attributes
    ----------
    names : list of str
        Words after the subcommand.
    files, values : list, dict
        Config files and values of a run, as `resolve_user_config` takes them.
    own : dict
        Values of the subcommand's own keys.
    arguments : list of str
        The whole command line.
    main : callable
        Runs a command line; for further processes.
    """

    names: list[str]
    files: list[str]
    values: dict[str, Any]
    own: dict[str, Any]
    arguments: list[str]
    main: Callable[..., int]


@dataclass(frozen=True)
class Subcommand:
    """A row of the table of subcommands.

    Attributes
    ----------
    name, summary, about : str
        The word on the command line, one line for the overview, and the text of its help.
    act : callable
        What is done; returns the exit code.
    kept : str
        What is left when it is interrupted.
    examples : tuple of str
        Arguments, without the program and the subcommand.
    options : tuple of Option
        Its own keys.
    names : tuple of str
        Names of which one must be given after the subcommand.
    shown : tuple of str
        Keys of a run that its help lists.
    takes_run_keys : bool
        Whether it takes the keys of a run and config files.
    """

    name: str
    summary: str
    about: str
    act: Callable[[Call], int]
    kept: str
    examples: tuple[str, ...]
    options: tuple[Option, ...] = ()
    names: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    takes_run_keys: bool = True


# ---------------------------------------------------------------------- what the subcommands do


def _run(call: Call) -> int:
    from recbole_adarec.config.resolve import COMMAND_LINE, resolve_user_config

    values = resolve_user_config(None, call.files, call.values, COMMAND_LINE)

    from recbole_adarec.distributed import is_first, launch, stop
    from recbole_adarec.memory import keep_freed_memory
    from recbole_adarec.quick_start import make_run
    from recbole_adarec.report.text import comparison_table

    # RecBole's keys of several processes; where torchrun has started them the environment says so.
    nproc, world = values.get("nproc") or 1, values.get("world_size") or -1
    if max(nproc, world) > 1 and "WORLD_SIZE" not in os.environ:
        one_machine = world <= nproc
        return launch(
            call.main, call.arguments, nproc, ip=values.get("ip") or "localhost",
            port=int(values.get("port") or (0 if one_machine else 5678)),
            world=nproc if one_machine else world, offset=values.get("group_offset") or 0,
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


def _benchmark(call: Call) -> int:
    _check_run_keys(call)

    from recbole_adarec.memory import keep_freed_memory
    from recbole_adarec.studies.benchmark.benchmark import FULL, QUICK, run_benchmark

    output = call.own.get("output", "benchmark.json")
    sizes = QUICK if call.own.get("quick") else FULL
    keep_freed_memory()
    run_benchmark(call.files, call.values, call.own.get("parts", list(BENCHMARKS)), sizes, output)
    print(f"\nbenchmark: {output}")
    return 0


def _experiment(call: Call) -> int:
    _check_run_keys(call)

    from recbole_adarec.memory import keep_freed_memory
    from recbole_adarec.studies.experiment_tables import experiment_table
    from recbole_adarec.studies.experiments import run_experiment

    own = {"number" if name == "random" else name: value for name, value in call.own.items()}
    keep_freed_memory()
    print(experiment_table(run_experiment(call.names[0], call.files, call.values, **own)))
    return 0


def _compare(call: Call) -> int:
    alone = [name for name in call.own["models"] if name not in FROM_A_RUN]
    _check_run_keys(call, baselines=alone)  # so that their keys are known

    from recbole_adarec.memory import keep_freed_memory
    from recbole_adarec.studies.comparison import run_comparison
    from recbole_adarec.studies.comparison_tables import models_table, significance_table

    own = dict(call.own)
    keep_freed_memory()
    found = run_comparison(own.pop("models"), call.files, call.values, **own)
    print(f"{models_table(found)}\n\n{significance_table(found)}")
    print(f"\ncomparison: {os.path.join(own.get('output', 'compare'), found['dataset'], 'compare.html')}")
    return 0


def _tune(call: Call) -> int:
    _check_run_keys(call)

    from recbole_adarec.memory import keep_freed_memory
    from recbole_adarec.studies.tuning.command import run_tuning

    def print_record(record: dict[str, Any]) -> None:
        score = record["error"] if record["status"] == "failed" else f"{record['metric']} {record['score']}"
        print(f"{record['status']}: {score}  {record['params']}", flush=True)

    keep_freed_memory()
    found = run_tuning(call.files, call.values, on_record=print_record, **call.own)
    folder = os.path.join(call.own.get("output", "tuning"), found["dataset"])
    if found["best"] is None:
        raise AdaRecError(f"tune: no trial finished; {os.path.join(folder, 'study.md')} says why")
    print(f"\nbest: {found['metric']} {found['best']['score']}  --config_files={os.path.join(folder, 'best.yaml')}")
    return 0


def _recommend(call: Call) -> int:
    if ("history" in call.own) == ("users" in call.own):
        raise AdaRecError(f"recommend: {_WHOM}")
    if not os.path.isdir(call.own["run_dir"]):
        raise AdaRecError(f"recommend: run_dir is {call.own['run_dir']!r}, and there is no such folder")

    from recbole_adarec.deployment.case_study import recommend

    print(recommend(**call.own))
    return 0


def _check_run_keys(call: Call, **more: Any) -> None:
    """Refuse wrong keys of a run before the import of what a subcommand needs."""
    from recbole_adarec.config.resolve import COMMAND_LINE, resolve_user_config

    resolve_user_config(None, call.files, call.values | more, COMMAND_LINE)


# ---------------------------------------------------------------------- the table of subcommands

_MODELS = 'name the models, --models="SASRec GRU4Rec AdaRecStudent"'
_WHOM = 'give --run_dir= and one of --history="50 172 181" and --users="1 2"'
CONTINUES = "finished stages are kept, --run_dir= with the run's folder continues"
MATTER_MOST = (
    "dataset", "data_path", "run_dir", "backbone", "teacher", "architecture", "baselines", "model", "plugins", "nproc",
    "threads", "seed",
)  # fmt: skip


def _text(name: str, help_: str, default: str = "", **more: Any) -> Option:
    return Option(Key(name, (str,), help_, **more), default)


def _count(name: str, help_: str, default: str = "") -> Option:
    return Option(Key(name, (int,), help_, low=1), default)


def _names(name: str, help_: str, default: str = "", **more: Any) -> Option:
    return Option(Key(name, (list,), help_, each=(str,), nonempty=True, **more), default, words=True)


_FAST = Option(Key("fast_baselines", (bool,), "Train causal RecBole models on every position."), "False", flag=True)

SUBCOMMANDS = {
    row.name: row
    for row in (
        Subcommand(
            "run", "train teacher and student, and report on both; this is done without a subcommand too",
            "Trains a teacher, searches a small student under its distillation, trains the student, and writes a "
            "report on both. The same command with the same --run_dir continues a run.",
            _run, CONTINUES,
            ("--dataset=ml-100k", "-d ml-1m --config_files adarec.yaml mine.yaml",
             "--teacher_epochs=20 --student_gamma=0.3", "--teacher=GRU4Rec --cost_budget=0.1", "-m SASRec"),
            shown=MATTER_MOST,
        ),
        Subcommand(
            "benchmark", "measure training, search, inference and growth on this machine",
            "Measures, instead of training: the teacher's training against RecBole's, the search step, inference, "
            "growth on synthetic data, and the ten best of a million items.",
            _benchmark, "finished parts are in the output file",
            ("--threads=1", "--quick --parts=\"[ranking]\""),
            (
                Option(Key("quick", (bool,), "Less of everything."), "False", flag=True),
                _names("parts", "What is measured.", "all", choices=BENCHMARKS),
                _text("output", "The file with the results.", "benchmark.json"),
            ),
        ),
        Subcommand(
            "experiment", "several runs, compared on the same users",
            "Makes several runs and compares them on the same users. search-vs-random: the searched architecture "
            "against random ones; ablation: each part left out; transfer: each dataset's architecture on each dataset; "
            "teachers: each backbone; teacher-choice: the chosen teacher against its candidates, choices without a "
            "part, and RecBole's models (--baselines); cprec: NextItNet against CpRec; item-tables: the student with a "
            "full and an adaptive item table.",
            _experiment, "finished runs are kept, the same command continues",
            ("search-vs-random --workers=2", "transfer --datasets=\"[ml-100k, ml-1m]\"",
             "ablation --arms=\"[single level, no distillation]\""),
            (
                _names("datasets", "Datasets of transfer."),
                _names("scenes", "The name of datasets in version 0.1."),
                Option(Key("seeds", (list,), "Each run is made with all of them.", each=(int,), each_low=0,
                           nonempty=True), "[2020, 2021, 2022]"),
                _count("random", "Random architectures of search-vs-random.", "20"),
                _count("workers", "Runs at a time.", "1"),
                _names("arms", "Runs of ablation or cprec to make.", "all")._replace(words=False),
                _FAST,
                _text("output", "The folder.", "experiments"),
            ),
            EXPERIMENTS,
        ),
        Subcommand(
            "compare", "models of RecBole and ours side by side, with significance",
            "Trains the models that are not there yet and compares them on the same users: accuracy with significance, "
            "size, speed and training time.",
            _compare, "finished models are kept, the same command continues",
            ("--models=\"SASRec GRU4Rec AdaRecStudent\"", "--models SASRec AdaRecStudent --fast_baselines"),
            (
                _names("models", "AdaRecStudent, AdaRecTeacher, CpRec, and RecBole's models.")._replace(needed=_MODELS),
                _text("reference", "The model with which the others are compared.", "AdaRecStudent if it is there"),
                _FAST,
                _text("output", "The folder.", "compare"),
            ),
        ),
        Subcommand(
            "tune", "search for better values of any keys",
            "Makes runs over a space of any keys and compares them by the student's validation metric. best.yaml is "
            "for --config_files.",
            _tune, "finished trials are kept, the same command continues",
            ("--params_file=tuning/student.yaml", "--tool=ray --workers=2"),
            (
                _text("params_file", "The space: YAML, or RecBole's params file.", "tuning/student.yaml"),
                _text("tool", "RecBole's HyperTuning, one trial at a time, or Ray Tune.", "hyperopt",
                      choices=("hyperopt", "ray")),
                _text("algo", "How trials are drawn.", "exhaustive for choices, else bayes, with ray random",
                      choices=("exhaustive", "random", "bayes")),
                _count("max_evals", "Trials at most.", "20"),
                _count("early_stop", "Trials without a better one before hyperopt stops.", "10"),
                _count("workers", "Trials at a time, with ray.", "1"),
                _text("scheduler", "How ray stops trials early.", "asha", choices=("asha", "fifo")),
                _text("ray_address", "A Ray cluster.", "this machine"),
                _text("output", "The folder.", "tuning"),
            ),
        ),
        Subcommand(
            "recommend", "what student and teacher of a run recommend",
            "Prints what the student and the teacher of a run recommend after a history of item tokens, or to users "
            "of its dataset.",
            _recommend, "nothing was written",
            ("--run_dir=saved/demo --history=\"50 172 181\" --k=5", "--run_dir=saved/demo --users=\"[1, 2]\""),
            (
                _text("run_dir", "Folder of a finished run.")._replace(needed=_WHOM),
                _names("history", "Item tokens, oldest first; needs no dataset."),
                _names("users", "User tokens: their histories up to the item that is held out for the test."),
                _count("k", "How many items.", "10"),
                _text("data_path", "Folder above the dataset's folder.", "that of the run"),
                _names("plugins", "Plugin files that the run was made with.")._replace(words=False),
            ),
            takes_run_keys=False,
        ),
    )
}  # fmt: skip
FLAGS = frozenset(option.key.name for row in SUBCOMMANDS.values() for option in row.options if option.flag)
# Keys that several words may follow.
SEVERAL = frozenset(o.key.name for row in SUBCOMMANDS.values() for o in row.options if o.words) | {"config_files"}
