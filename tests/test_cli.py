"""The command line: its forms, its refusals in one line, its help, and that none of these takes long."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from recbole_adarec import load_student, run_adarec
from recbole_adarec.cli import main, parse_arguments
from recbole_adarec.config.command_line import read_words, split_arguments
from recbole_adarec.config.resolve import resolve_user_config
from recbole_adarec.config.stages import stage_config
from recbole_adarec.data.loading import load_data
from recbole_adarec.errors import AdaRecError
from recbole_adarec.studies.benchmark.benchmark import PARTS
from recbole_adarec.studies.comparison import RUN_STAGES
from recbole_adarec.studies.experiments import EXPERIMENTS
from recbole_adarec.studies.tuning.command import ALGOS, SCHEDULERS, TOOLS
from recbole_adarec.subcommands import BENCHMARKS, FROM_A_RUN, SUBCOMMANDS
from recbole_adarec.subcommands import EXPERIMENTS as NAMED_EXPERIMENTS
from recbole_adarec.version import __version__
from tests.helpers import refused, write_dataset


@pytest.fixture
def called(monkeypatch):
    """What a subcommand is called with, in place of doing it."""
    calls = {}
    for name, row in list(SUBCOMMANDS.items()):
        noted = replace(row, act=lambda call, name=name: calls.update({name: call}) or 0)
        monkeypatch.setitem(SUBCOMMANDS, name, noted)
    return calls


# ---------------------------------------------------------------------- forms


def test_values_are_yaml():
    files, values = parse_arguments(
        ["--config_files=a.yaml b.yaml", "--learning_rate=1e-3", "--topk=[5, 10]", "--cost_budget=~", "--seed=7"]
    )
    assert files == ["a.yaml", "b.yaml"]
    assert values == {"learning_rate": 0.001, "topk": [5, 10], "cost_budget": None, "seed": 7}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--dataset=ml-1m", "--model=SASRec", "--epochs=3", "--config_files=a.yaml b.yaml"],
        ["--dataset", "ml-1m", "--model", "SASRec", "--epochs", "3", "--config_files", "a.yaml b.yaml"],
        ["-d", "ml-1m", "-m", "SASRec", "--epochs", "3", "--config_files", "a.yaml", "b.yaml"],
        ["--config_files", "a.yaml", "b.yaml", "-d=ml-1m", "--epochs=3", "-m=SASRec"],
        [
            "--config_files=a.yaml",
            "--config_files",
            "b.yaml",
            "-d",
            "ml-1m",
            "-d",
            "ml-1m",
            "-m",
            "SASRec",
            "--epochs=3",
        ],
    ],
)
def test_all_forms_say_the_same(arguments):
    files, values = parse_arguments(arguments)
    assert files == ["a.yaml", "b.yaml"] and values == {"dataset": "ml-1m", "model": "SASRec", "epochs": 3}


PLAIN = (
    st.integers() | st.booleans() | st.floats(allow_nan=False) | st.sampled_from(["emd", "a b", "[0,inf)", "007", ""])
)


@given(PLAIN | st.lists(PLAIN) | st.dictionaries(st.sampled_from("abc"), PLAIN))
def test_a_value_written_as_yaml_is_read_back(value):
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
    assert parse_arguments([f"--neg_sampling={text}"]) == ([], {"neg_sampling": value})
    assume(not text.startswith("-") or text[1:2].isdigit() or text[1:2] == ".")
    assert parse_arguments(["--neg_sampling", text]) == ([], {"neg_sampling": value})


@given(st.text(st.characters(exclude_categories=["C"]), min_size=1).filter(str.strip), st.booleans())
def test_a_name_stays_text(name, separate):
    value = parse_arguments(["--dataset", name] if separate and name[0] != "-" else [f"--dataset={name}"])[1]["dataset"]
    assert value is None or isinstance(value, (str, list, dict))


@pytest.mark.parametrize("name", ["2020", "1e3", "2020-01-01", "007", "true", "1.0"])
def test_a_name_that_yaml_reads_as_something_else_stays_as_it_is(name):
    assert parse_arguments([f"--dataset={name}", "-m", name])[1] == {"dataset": name, "model": name}


def test_a_negative_number_is_a_value():
    assert parse_arguments(["--served_prior", "-1", "--repeat_bias", "-0.5", "--world_size=-1"])[1] == {
        "served_prior": -1, "repeat_bias": -0.5, "world_size": -1,
    }  # fmt: skip


def test_pythons_none_is_none_where_a_key_can_be_none():
    assert parse_arguments(["--train_neg_sample_args=None", "--cost_budget", "None"])[1] == {
        "train_neg_sample_args": None, "cost_budget": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epochs=3", "--epochs=4"], "--epochs is given twice, as 3 and as 4"),
        (["--bilevel=True", "--bilevel", "1"], "--bilevel is given twice"),
        (["-m", "SASRec", "--model=GRU4Rec"], "--model is given twice"),
        (["--epochs"], "argument '--epochs' has no value"),
        (["--epochs", "--seed=3"], "argument '--epochs' has no value"),
        (["-x", "3"], "argument '-x' is not of the form --key=value"),
        (["--=3"], "not of the form --key=value"),
        (["epochs=3"], "not of the form --key=value; did you mean --epochs=3?"),
        (["run", "epoch"], "not of the form --key=value; did you mean --epochs=value?"),
        (["--teacher_epoch=3"], "unknown key 'teacher_epoch' in the command line; the nearest known key is "
                                "'teacher_epochs'"),
        (["--student_gama", "0.3"], "nearest known key is 'student_gamma'"),
        (["--epoch=3"], "nearest known key is 'epochs'"),
        (["--layer_maping=emd"], "nearest known key is 'layer_mapping'"),
        (["--epochs=many"], "epochs in the command line is 'many', expected a whole number"),
        (["--search_epochs=1.5"], "search_epochs in the command line is 1.5, expected a whole number"),
        (["--gamma=2"], "gamma in the command line is 2, expected between 0 and 1"),
        (["--gamma=.nan"], "gamma in the command line is nan, expected between 0 and 1"),
        (["--repeat_bias=-.inf"], "repeat_bias in the command line is -inf, expected a finite number"),
        (["--served_prior", "-1"], "served_prior in the command line is -1, expected between 0 and 1"),
        (["--share_cells=3"], "expected True or False"),
        (["--operations=[conv_3, conv_7]"], "unknown operation 'conv_7'; the nearest is 'conv_5'; known are conv_3"),
        (["--backbone=GPT"], "unknown value 'GPT'; known are auto, BERT4Rec, CausalBSARec, LRURec, NextItNet"),
        (["--layer_mapping=best"], "unknown value 'best'; known are emd, left"),
        (["--config_files=nowhere.yaml"], "config_files: no file 'nowhere.yaml', looked in"),
        (["--baselines=[NoSuchModel]"], "RecBole has no model 'NoSuchModel'"),
        (["--cost_budget=-1"], "cost_budget in the command line is -1, expected at least 0"),
        (["frobnicate"], "unknown subcommand 'frobnicate'; known are run, benchmark, experiment, compare, tune"),
        (["--threads=1", "frobnicate"], "unknown subcommand 'frobnicate'"),
        (["experiment"], "experiment: name one of search-vs-random, ablation"),
        (["experiment", "ablate"], "ablation, transfer, teachers, teacher-choice, cprec, item-tables, not 'ablate'"),
        (["experiment", "cprec", "teachers"], "not 'cprec teachers'"),
        (["experiment", "cprec", "--seeds=[a]"], "experiment: seeds is ['a'], expected a list of whole numbers"),
        (["experiment", "cprec", "--workers=0"], "experiment: workers is 0, expected at least 1"),
        (["experiment", "cprec", "--epoch=1"], "nearest known key is 'epochs'"),
        (["benchmark", "--parts=[teachers]"], "benchmark: parts: unknown part 'teachers'; the nearest is 'teacher'"),
        (["compare"], "compare: name the models, --models="),
        (["compare", "--models=GRU4Rec", "--baseline_epoch=3"], "nearest known key is 'baseline_epochs'"),
        (["compare", "--models=GRU5Rec"], "the nearest is 'GRU4Rec'"),
        (["tune", "--tool=optuna"], "tune: unknown tool 'optuna'; known are hyperopt, ray"),
        (["tune", "--max_evals=ten"], "tune: max_evals is 'ten', expected a whole number"),
        (["recommend", "--history=1"], "recommend: give --run_dir= and one of --history="),
        (["recommend", "--run_dir=nowhere", "--history=1"], "run_dir is 'nowhere', and there is no such folder"),
        (["recommend", "--run_dir=."], "recommend: give --run_dir= and one of --history="),
        (["recommend", "--run_dir=.", "--users=1", "--history=1"], "recommend: give --run_dir= and one of --history="),
        (["recommend", "--run_dir=.", "--user=1"], "recommend: unknown key 'user'; known are run_dir, history, users"),
        (["recommend", "--run_dir=.", "--users=1", "--k=0"], "recommend: k is 0, expected at least 1"),
    ],
)  # fmt: skip
def test_refused(arguments, words):
    assert words in refused(*arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--architecture=nowhere.yaml"], "architecture: no file 'nowhere.yaml'"),
        (["--distilled_layers=99"], "99 of 4 layers"),
        (["--metrics=[Recal]"], "Recal"),
    ],
)
def test_refused_by_the_run(arguments, words):
    assert words in refused(*arguments)


def test_values_are_never_evaluated(tmp_path):
    trap = tmp_path / "executed"
    for text in (f"__import__('pathlib').Path('{trap}').touch()", f"!!python/object/apply:os.mkdir ['{trap}']"):
        _, values = parse_arguments([f"--dataset={text}"])
        with pytest.raises(AdaRecError):
            load_data(stage_config(resolve_user_config(None, [], values), "teacher"))
    assert not trap.exists()


# ---------------------------------------------------------------------- subcommands


@pytest.mark.parametrize(
    "arguments",
    [
        ["benchmark", "--quick"],
        ["--threads=1", "benchmark", "--quick", "True"],
        ["--quick", "benchmark"],
        ["--quick=true", "--threads", "1", "benchmark"],
    ],
)
def test_a_flag_needs_no_value(called, arguments):
    assert main(arguments) == 0
    assert called["benchmark"].own == {"quick": True}


def test_keys_of_a_subcommand_and_of_a_run_are_kept_apart(called):
    words = ["compare", "--models", "SASRec", "AdaRecStudent", "--fast_baselines", "--output", "o", "--epochs", "3"]
    assert main([*words, "--config_files", "a.yaml", "b.yaml"]) == 0
    call = called["compare"]
    assert call.own == {"models": ["SASRec", "AdaRecStudent"], "fast_baselines": True, "output": "o"}
    assert call.values == {"epochs": 3} and call.files == ["a.yaml", "b.yaml"]
    assert main(["experiment", "ablation", "--arms=[single level, no distillation]", "--scenes=ml-100k ml-1m"]) == 0
    assert called["experiment"].names == ["ablation"]
    assert called["experiment"].own == {"arms": ["single level", "no distillation"], "scenes": ["ml-100k", "ml-1m"]}
    assert main(["experiment", "ablation", "--arms=single level", "--seeds=[1, 2]"]) == 0
    assert called["experiment"].own == {"arms": ["single level"], "seeds": [1, 2]}
    assert main(["run", "--epochs=3"]) == 0 and called["run"].values == {"epochs": 3}


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("[007]", ["007"]), ("[1, 2]", ["1", "2"]), ("1", ["1"]), ("050 172", ["050", "172"]), ("[]", []),
        ("[0x1F, 1e3, ~, true]", ["0x1F", "1e3", "~", "true"]), ("[Blade Runner, 'a, b']", ["Blade Runner", "a, b"]),
        ("a: b", ["a:", "b"]), ("[open", ["[open"]), ("  3   4 ", ["3", "4"]),
    ],
)  # fmt: skip
def test_tokens_are_text(text, tokens):
    assert read_words(text) == tokens


@given(st.lists(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1), min_size=1))
def test_tokens_are_read_alike_in_every_form(tokens):
    assert read_words(f"[{', '.join(tokens)}]") == read_words(" ".join(tokens)) == tokens
    assert split_arguments(["--users", *tokens], several=["users"]).texts == [("users", " ".join(tokens))]


def test_the_table_knows_the_names_of_what_it_calls():
    assert NAMED_EXPERIMENTS == EXPERIMENTS and tuple(PARTS) == BENCHMARKS and set(FROM_A_RUN) == set(RUN_STAGES)
    options = {option.key.name: option.key.choices for option in SUBCOMMANDS["tune"].options}
    assert options["tool"] == TOOLS and options["algo"] == ALGOS and options["scheduler"] == SCHEDULERS


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on items and users whose tokens are numbers with zeros before them, filtered."""
    folder = tmp_path_factory.mktemp("cli")
    write_dataset(folder, "zeros", [[(u + i) % 9 + 1 for i in range(6 + u % 4)] for u in range(12)])
    path = folder / "zeros" / "zeros.inter"
    head, *rows = path.read_text().splitlines()
    rows = [f"00{user}\t0{item}\t{time}" for user, item, time in (row.split("\t") for row in rows)]
    path.write_text("\n".join([head, *rows]) + "\n")
    architecture = {"format": "recbole-adarec-architecture/1", "hidden_size": 8, "cells": [[["skip"]]]}
    values = {
        "data_path": str(folder), "architecture": architecture, "epochs": 1, "hidden_size": 8, "block_num": 1,
        "distilled_layers": 1, "latency_repeats": 2, "show_progress": False, "user_inter_num_interval": "[7,inf)",
    }  # fmt: skip
    run_adarec("zeros", config_dict=values, run_dir=folder / "run")
    return folder / "run"


def test_recommendations_to_users_of_a_filtered_dataset(finished, capsys):
    for users in (["--users=[003, 004]"], ["--users", "003", "004"], ["--users", "[003, 004]"]):
        assert main(["recommend", "--run_dir", str(finished), *users, "--k", "5"]) == 0
        out = capsys.readouterr().out
        assert "user 003: … 05 06 07 08 09, then 01" in out and "user 004: " in out and out.count("\n|") == 14
    assert main(["recommend", f"--run_dir={finished}", "--users=[001]"]) == 2  # of 6 interactions: filtered out
    assert "has no user '001'" in capsys.readouterr().err
    assert main(["recommend", f"--run_dir={finished}", "--users=3"]) == 2
    assert "has no user '3'" in capsys.readouterr().err


def test_recommendations_after_a_history(finished, capsys):
    best = load_student(finished).recommend(["05", "06"], k=2)
    for history in (["--history=05 06"], ["--history", "05", "06"], ["--history=[05, 06]"]):
        assert main(["recommend", f"--run_dir={finished}", *history, "--k=2"]) == 0
        out = capsys.readouterr().out
        assert all(f"| {token}" in out and f"{score:.4g}" in out for token, score in best)
    assert main(["recommend", f"--run_dir={finished}", "--history=5 6", "--k=2"]) == 2
    assert "unknown item '5'" in capsys.readouterr().err


# ---------------------------------------------------------------------- help, exit codes, time


def test_help_lists_subcommands_and_each_lists_its_keys(capsys):
    assert main(["--help"]) == main(["-h"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name:<12}{row.summary}" in out for name, row in SUBCOMMANDS.items())
    for name, row in SUBCOMMANDS.items():
        assert main([name, "--help"]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"usage: python run_adarec.py {name} ") and max(map(len, out.splitlines())) <= 100
        assert all(f"  --{option.key.name} " in out for option in row.options)
        assert ("every key of a run" in out) == row.takes_run_keys


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_examples_of_the_help_are_read(called, name, monkeypatch):

    for example in SUBCOMMANDS[name].examples:
        assert main([name, *shlex.split(example)]) == 0
        call = called.pop(name)
        files = [] if "mine.yaml" in call.files else call.files
        resolve_user_config(None, files, call.values)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"recbole-adarec {__version__}\n"


def test_an_interrupted_command_says_what_is_kept(monkeypatch, capsys):
    def interrupted(call):
        raise KeyboardInterrupt

    row = SUBCOMMANDS["tune"]
    monkeypatch.setitem(SUBCOMMANDS, "tune", replace(row, act=interrupted))
    assert main(["tune"]) == 130
    assert "interrupted; finished trials are kept, the same command continues" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"], ["--version"], *([name, "--help"] for name in SUBCOMMANDS), ["--epoch=3"], ["--epochs=many"],
        ["--gamma=2"], ["--operations=[conv_7]"], ["--backbone=GPT"], ["frobnicate"], ["recommend", "--users=1"],
        ["--baselines=[SASRecc]"], ["compare", "--models=SASRec", "--epoch=3"], ["benchmark", "--epoch=3"],
        ["experiment", "cprec", "--epoch=3"], ["tune", "--epoch=3"], ["--config_files=nowhere.yaml"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_help_and_refusals_import_nothing_heavy(arguments):
    code = (
        "import sys\nfrom recbole_adarec.cli import main\ncode = main(sys.argv[1:])\n"
        "heavy = {'torch', 'numpy', 'pandas', 'recbole.config', 'recbole.utils', 'recbole.model'} & set(sys.modules)\n"
        "assert not heavy, heavy\nsys.exit(code)"
    )
    root = Path(__file__).parents[1]  # a checkout need not be installed
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=root)
    assert result.returncode == (0 if {"--help", "--version"} & set(arguments) else 2), result.stderr
    assert result.returncode == 0 or result.stderr.count("\n") == 1
