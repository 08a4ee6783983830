"""The `nvib` command as a person types it: help, texts in and out, errors in one line."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

import nvib_jax
from nvib_jax import cli
from nvib_jax.attention import FORMS, IMPLEMENTATIONS
from nvib_jax.cli import commands, doctor, options
from nvib_jax.cli.completion import script
from nvib_jax.config import Config
from nvib_jax.evaluation.summary import summarize_run
from nvib_jax.generate import DecodingConfig
from nvib_jax.presets import load_preset, to_json
from nvib_jax.text_model import TextModel
from nvib_jax.training import loop

TEXTS = ["the dog sees a cat", "a cat that often waits runs"]
COMMANDS = [
    *("train", "prepare", "reconstruct", "sample", "interpolate", "merge", "edit", "paraphrase"),
    *("drop", "embed", "play", "fit-prior", "export", "evaluate", "sweep", "report", "metrics"),
    *("regularise", "finetune", "generate", "score", "inspect", "bench", "doctor", "completion"),
]


@pytest.fixture(scope="module")
def run():
    return tiny.trained()[0].train.run_dir


@pytest.fixture(scope="module")
def model(run):
    return TextModel.load(run)


@pytest.fixture(autouse=True)
def one_model(model, monkeypatch):
    """Loaded once, since compiling is slow; `options.load` has a test of its own."""
    load = TextModel.load
    monkeypatch.setattr(
        TextModel, "load", lambda run, which: model if run == "RUN" else load(run, which=which)
    )


def nvib(*arguments):
    return cli.main([str(a) for a in arguments])


def stdin(monkeypatch, data: bytes):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


# ---- help


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_usage(arguments, capsys):
    assert nvib(*arguments) == 0
    out = capsys.readouterr().out
    assert all(f"nvib {name} " in out for name in COMMANDS)
    assert max(map(len, out.splitlines())) <= 100


def test_unknown_command(capsys):
    assert nvib("trian") == 2
    assert capsys.readouterr().err == (
        "nvib: no command 'trian'; did you mean 'train'? There are train, prepare, reconstruct, "
        "sample, interpolate, merge, edit, paraphrase, drop, embed, play, fit-prior, export, "
        "evaluate, sweep, report, metrics, regularise, finetune, generate, score, inspect, bench, "
        "doctor, completion\n"
    )
    assert nvib("xyz") == 2
    assert capsys.readouterr().err.startswith("nvib: no command 'xyz'; there are train, prepare")


def test_version(capsys):
    assert nvib("--version") == 0
    assert capsys.readouterr().out == f"{nvib_jax.__version__}\n"


def test_doctor_tries_every_implementation(capsys):
    assert nvib("doctor") == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in re.findall(r"^  \w.*", out, flags=re.MULTILINE)}
    assert list(lines) == list(IMPLEMENTATIONS)
    for name in ("reference", "xla"):
        errors = [float(x) for x in re.findall(r"\d+e[-+]\d+", lines[name])]
        assert len(errors) == len(FORMS)
        assert max(errors) < 1e-4
    assert lines["xla"].endswith("(float32); taken where none is named")
    assert "no: it is for TPUs, this is a CPU" in lines["pallas_tpu"]
    assert f"jax {jax.__version__}" in out
    assert f"{jax.device_count()} x cpu" in out
    assert max(map(len, out.splitlines())) <= 120


def test_doctor_without_a_device_says_why(monkeypatch):
    def none():
        raise RuntimeError("no  TPU\nhere")

    monkeypatch.setattr(jax, "devices", none)
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    assert list(doctor.lines())[-1] == "devices      none, with JAX_PLATFORMS=tpu: no TPU here"


def test_doctor_names_what_is_missing_and_what_fails(monkeypatch):
    def broken(*args, implementation, **kwargs):
        raise RuntimeError("this  driver\nis too old")

    monkeypatch.setattr(doctor, "denoising_attention", broken)
    monkeypatch.setattr(doctor, "TRAINING", ("no-such-package",))
    out = "\n".join(doctor.lines())
    assert "no-such-package missing" in out
    assert "pip install 'nvib-jax[train]' has what is missing" in out
    assert "  xla        no: this driver is too old" in out


def test_the_usage_names_every_command():
    assert list(commands.COMMANDS) == list(cli._NAMES) == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_every_option_with_its_default(name, capsys):
    with pytest.raises(SystemExit) as stop:
        nvib(name, "--help")
    assert stop.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    shown = {
        "train": [
            "--train.steps INT",
            "(default: 1000)",
            "--data.clean.lowercase",
            "--resume",
            "--mesh.fsdp INT",
            "--dry-run",
            "--processes {None}|INT",
        ],
        "prepare": ["--data.vocab-size INT", "(default: 4000)"],
        "reconstruct": ["RUN", "TEXT ...", "--file PATH", "--jsonl", "(default: best)"],
        "sample": ["RUN", "--count INT", "(default: 10)", "(default: sample)"],
        "play": ["RUN", "--form", "--seed INT", "(default: 0)"],
        "fit-prior": ["RUN", "--out {None}|PATH", "--kind {flow,gaussians}", "(default: 0.4)"],
        "export": ["RUN", "--out PATH", "(default: best)"],
        "bench": ["attention", "nvib bench table FILE.json"],
        "doctor": ["which implementations of attention run here"],
        "evaluate": ["RUN ...", "--split {test,validation}", "--draws INT", "(default: 100)"],
        "sweep": ["SWEEP.py", "--jobs INT", "(default: 1)", "--lm.steps INT"],
        "report": ["RUN ...", "--out PATH", "(default: report.html)"],
        "metrics": ["RUN ...", "--split {None,train,validation}"],
        "completion": ["{bash,zsh}"],
        "interpolate": ["RUN", "TEXT ...", "--steps INT", "(default: 5)", "(default: greedy)"],
        "merge": ["RUN", "TEXT ...", "--weights", "--form"],
        "edit": ["RUN", "--towards PATH", "--away PATH", "--strength FLOAT", "(default: 1.0)"],
        "paraphrase": ["RUN", "--count INT", "(default: 5)", "--temperature FLOAT"],
        "drop": ["RUN", "--alone", "--figure {None}|PATH"],
        "embed": ["RUN", "--out PATH", "--how {mean,whitened}", "--like PATH"],
        "regularise": ["MODEL", "--prior PATH", "--trials INT", "(default: 48)", "--revision"],
        "finetune": ["MODEL", "--classify", "--training.train {nvib,nvib+norms,all}", "--out PATH"],
        "generate": ["MODEL", "TEXT ...", "--num-beams {None}|INT", "--seed INT"],
        "score": ["MODEL", "--file PATH", "(default: float32)"],
        "inspect": ["MODEL", "--revision {None}|STR"],
    }[name]
    assert [text for text in shown if text not in out] == []


def test_help_of_a_preset_shows_its_values(capsys):
    preset = Path(__file__).parents[2] / "configs" / "quickstart.py"
    with pytest.raises(SystemExit):
        nvib("train", preset, "--help")
    assert f"(default: {load_preset(preset).train.steps})" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["nvib_jax", "nvib_jax.cli"])
def test_as_a_module_and_without_the_slow_imports(module):
    code = (
        f"import sys, runpy; sys.argv = ['nvib']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "slow = {'tyro', 'flax', 'optax', 'orbax', 'tensorflow_datasets'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: nvib COMMAND")


# ---- texts


def test_load_is_the_runs_model(run, model):
    assert options.load(run, "last").config == model.config


def test_reconstruct_from_arguments(model, capsys):
    assert nvib("reconstruct", "RUN", *TEXTS) == 0
    assert capsys.readouterr().out.splitlines() == model.reconstruct(TEXTS)


def test_reconstruct_with_a_budget(model, capsys):
    for given, keep in (("0.3", 0.3), ("2", 2), ("1.0", 1.0), ("1", 1)):
        assert nvib("reconstruct", "RUN", *TEXTS, "--keep", given) == 0
        assert capsys.readouterr().out.splitlines() == model.reconstruct(TEXTS, keep=keep)
    assert nvib("reconstruct", "RUN", *TEXTS, "--keep", "1.5") == 1
    assert capsys.readouterr().err.startswith("nvib reconstruct: keep is 1.5; wanted a share")


def test_reconstruct_from_files_arguments_and_standard_input(model, capsys, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text(TEXTS[0] + "\r\n\n  \n")
    stdin(monkeypatch, (TEXTS[1] + "\n").encode())
    command = [
        "reconstruct",
        "RUN",
        "the queen sees a cat",
        "--file",
        tmp_path / "a.txt",
        "--file",
        "-",
    ]
    assert nvib(*command, "--jsonl") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["text"] for r in records] == ["the queen sees a cat", *TEXTS]
    assert [r["reconstruction"] for r in records] == model.reconstruct([r["text"] for r in records])


def test_standard_input_where_nothing_is_given(capsys, monkeypatch):
    stdin(monkeypatch, "\n".join(TEXTS).encode())
    assert nvib("reconstruct", "RUN", "--jsonl") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_options_reach_the_model(model, capsys):
    given = ["--form", "drawn", "--decoding.method", "sample", "--decoding.top-k", "3"]
    assert nvib("reconstruct", "RUN", TEXTS[0], *given, "--seed", 5) == 0
    how = DecodingConfig(method="sample", top_k=3)
    want = model.reconstruct(TEXTS[:1], form="drawn", decoding=how, seed=5)
    assert capsys.readouterr().out.splitlines() == want


def test_sample(model, capsys):
    assert nvib("sample", "RUN", "--count", 3, "--length", 4, "--jsonl") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    how = DecodingConfig(method="sample")
    assert [r["sample"] for r in records] == model.sample(3, lengths=[4] * 3, decoding=how)


def test_interpolate(model, capsys):
    assert nvib("interpolate", "RUN", *TEXTS, "--steps", 3) == 0
    lines = capsys.readouterr().out.splitlines()
    path = model.interpolate(*TEXTS, steps=3)
    want = [f"{t:.2f} {text}" for t, text in zip((0, 0.5, 1), path, strict=True)]
    assert lines == want


def test_interpolate_several_pairs(capsys, tmp_path):
    (tmp_path / "pairs.txt").write_text("\n".join(TEXTS * 2))
    assert nvib("interpolate", "RUN", "--file", tmp_path / "pairs.txt", "--jsonl") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["t"] for r in records] == [0, 0.25, 0.5, 0.75, 1] * 2
    assert {(r["a"], r["b"]) for r in records} == {tuple(TEXTS)}


def test_merge(model, capsys):
    assert nvib("merge", "RUN", *TEXTS, "--weights", 3, 1, "--jsonl") == 0
    record = json.loads(capsys.readouterr().out)
    assert record == {"texts": TEXTS, "merged": model.merge(TEXTS, [3, 1])}


def test_edit(model, capsys, tmp_path):
    sets = {"towards": ["the dog saw a cat"], "away": ["the dog sees a cat", "a cat waits"]}
    for name, texts in sets.items():
        (tmp_path / name).write_text("\n".join(texts))
    files = [word for name in sets for word in (f"--{name}", tmp_path / name)]
    assert nvib("edit", "RUN", *TEXTS, *files, "--strength", 2, "--bandwidth", 1.5) == 0
    want = model.edit(TEXTS, **sets, strength=2.0, bandwidth=1.5, clean=False)
    assert capsys.readouterr().out.splitlines() == want


def test_paraphrase(model, capsys):
    assert nvib("paraphrase", "RUN", *TEXTS, "--count", 2, "--seed", 3, "--jsonl") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["text"] for r in records] == [TEXTS[0]] * 2 + [TEXTS[1]] * 2
    want = [p for text in TEXTS for p in model.paraphrase(text, 2, seed=3)]
    assert [r["paraphrase"] for r in records] == want


def test_drop_and_its_figure(model, capsys, tmp_path):
    figure = tmp_path / "lost.png"
    assert nvib("drop", "RUN", TEXTS[0], "--alone", "--figure", figure) == 0
    lines = capsys.readouterr().out.splitlines()
    steps = model.drop(TEXTS[0], alone=True)
    assert [line[7:] for line in lines] == [step.text for step in steps]
    assert [line[:7].strip() for line in lines[1:]] == [f"-{w}" for w in TEXTS[0].split()]
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_embed(model, capsys, tmp_path):
    out = tmp_path / "vectors.npz"
    assert nvib("embed", "RUN", *TEXTS, "--out", out) == 0
    assert capsys.readouterr().out == f"{out}\n"
    with np.load(out) as found:
        assert found["texts"].tolist() == TEXTS
        np.testing.assert_array_equal(found["vectors"], model.embed(TEXTS))
    (tmp_path / "like.txt").write_text("the queen waits\na cat runs here\nthe dog sleeps")
    white = ["--how", "whitened", "--like", tmp_path / "like.txt"]
    assert nvib("embed", "RUN", *TEXTS, "--out", tmp_path / "v.npy", *white) == 0
    like = (tmp_path / "like.txt").read_text().splitlines()
    want = model.embed(TEXTS, how="whitened", like=like, clean=False)
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), want)


# ---- errors: one line on standard error, exit status 1, nothing on standard output


@pytest.mark.parametrize(
    ("arguments", "data", "match"),
    [
        (["reconstruct", "nowhere", "hi"], b"", "nowhere is no run: it has no folder checkpoints"),
        (["sample", "nowhere"], b"", "nowhere is no run"),
        (["reconstruct", "RUN"], b" \n\n", "no sentence was given"),
        (["reconstruct", "RUN"], b"caf\xe9", "standard input is not UTF-8 at byte 3"),
        (["reconstruct", "RUN", "--file", "no.txt"], b"", "No such file or directory: 'no.txt'"),
        (["reconstruct", "RUN", "the dog " * 30], b"", "has 60 tokens; wanted 1 to 24"),
        (["interpolate", "RUN", "the dog"], b"", "there are 1 sentences; wanted pairs"),
        (["reconstruct", "RUN", "the dog", " "], b"", "sentence 2 is empty; wanted words"),
        (["interpolate", "RUN", "the dog", "a cat", "--steps", "1"], b"", "steps is 1; wanted at"),
        (["sample", "RUN", "--count", "0"], b"", "count is 0; wanted at least 1"),
        (["sample", "RUN", "--count", "2", "--length", "99"], b"", "[99, 99]; wanted 2 of 1 to 24"),
        (
            ["merge", "RUN", TEXTS[0], "--weights", "1", "2"],
            b"",
            "weights is [1.0, 2.0]; wanted",
        ),
        (["embed", "RUN", "the dog", "--out", "a.txt"], b"", "out is a.txt; wanted a name that"),
        (["paraphrase", "RUN", TEXTS[0], "--temperature", "0"], b"", "temperature is 0.0; wanted"),
        (
            ["drop", "RUN", "the dog", "a cat", "--figure", "a.png"],
            b"",
            "there are 2 sentences;",
        ),
        (["train"], b"", "wanted a config first, as in: nvib train quickstart"),
        (["train", "--train.steps", "3"], b"", "wanted a config first"),
        (["train", "no.py"], b"", "config no.py does not exist"),
        (["prepare", "no.py"], b"", "config no.py does not exist"),
    ],
)
def test_errors(arguments, data, match, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    stdin(monkeypatch, data)
    assert nvib(*arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"nvib {arguments[0]}: ")
    assert err.count("\n") == 1
    assert match in err
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_an_option_cannot_have(capsys):
    assert nvib("sample", "RUN", "--decoding.temperature", 0) == 1
    assert "wanted temperature > 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lenght", "3"], "Unrecognized options: --lenght, 3; see nvib train PRESET --help"),
        (["--model.heads", "3"], "model.heads is 3; wanted a divisor of model.dim, 16; see nvib"),
        (["--train.steps", "abc"], "--train.steps is 'abc'; wanted a number; see nvib train"),
        (["--processes", "abc"], "--processes is 'abc'; wanted a number; see nvib train"),
        (["--model.threshold", "x"], "--model.threshold is 'x'; wanted a number; see nvib train"),
        (["--train.clip", "nan"], "train.clip is nan; wanted a number; see nvib train"),
        (["--model.kind", "F"], "model.kind is 'F'; wanted one of 'NVAE', 'T', 'VTV'"),
    ],
)
def test_a_wrong_option_is_one_line(preset, arguments, said, capsys):
    assert nvib("train", preset, *arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("nvib train: " + said.replace("PRESET", str(preset)))


def test_debug_gives_the_traceback(tmp_path):
    with pytest.raises(FileNotFoundError):
        nvib("sample", tmp_path / "nowhere", "--debug")


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["--train.step", "3"], "--train.steps"),
        (["--model.pseudo-counts", "x"], "--model.pseudo-count"),
    ],
)
def test_a_typo_names_the_nearest_field(preset, arguments, near, capsys):
    assert nvib("train", preset, *arguments) == 1
    assert f"; did you mean {near}?; see nvib train" in capsys.readouterr().err


def test_unknown_words_are_named(capsys):
    assert nvib("reconstruct", "RUN", "the zebra sees a xylophone") == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert err == "2 of 5 words are unknown to this model: zebra, xylophone\n"
    assert nvib("reconstruct", "RUN", TEXTS[0]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["reconstruct", "interpolate"])
def test_what_is_unusual_is_said_in_lines_beside_the_texts(command, capsys):
    """Cleaned as the training text was, like in Python; and standard output stays for texts."""
    assert nvib(command, "RUN", "The dog sees a cat.", "a cat") == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        "1 of 2 texts: 'The dog sees a cat.' is read as 'the dog sees a cat', cleaned as the "
        "training text was",
        "1 of 2 texts: 'a cat' has 2 tokens where training sentences have 4 to 24: what is written "
        "for it may be made up",
    ]
    assert nvib(command, "RUN", "the dog sees a cat", "a cat") == 0
    assert capsys.readouterr().out == out


def test_a_reader_that_stops_early_is_no_error():
    """`nvib ... | head -1`"""
    command = f"(sleep 1; {sys.executable} -m nvib_jax --help) | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_broken_pipe_is_silent(monkeypatch, capfd):
    def broken(name, rest):
        raise BrokenPipeError

    monkeypatch.setattr(cli, "_run", broken)
    stdout = os.dup(1)
    try:
        assert nvib("sample", "RUN") == 1
    finally:
        os.dup2(stdout, 1)
    assert capfd.readouterr().err == ""


def test_without_the_extra_the_cure_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)
    for name in ("commands", "text_commands", "studies", "options"):
        monkeypatch.delitem(sys.modules, f"nvib_jax.cli.{name}")
    assert nvib("sample", "RUN") == 1
    assert "pip install 'nvib-jax[train]'" in capsys.readouterr().err


# ---- metrics, and the shell's completion


def test_metrics_as_comma_separated_values(run, capsys):
    assert nvib("metrics", run, run, "--split", "validation") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    lines = Path(run, "metrics.jsonl").read_text().splitlines()
    wanted = [r for r in map(json.loads, lines) if r["split"] == "validation"]
    assert len(rows) == 2 * len(wanted) > 0
    assert list(rows[0])[:3] == ["run", "split", "step"]
    for row, record in zip(rows, wanted * 2, strict=True):
        assert row.pop("run") == run
        assert row == {name: str(value) for name, value in record.items()}
    assert nvib("metrics", run) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["split"] for row in rows] == [json.loads(line)["split"] for line in lines]
    assert "" in {row["tokens_per_second"] for row in rows}  # what a record lacks


def test_metrics_of_what_is_no_run(tmp_path, capsys):
    assert nvib("metrics", tmp_path) == 1
    assert "has no metrics.jsonl; wanted the folder of a run" in capsys.readouterr().err
    assert nvib("metrics") == 1
    assert "no run was given; wanted folders" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["nvib", "comp"], "completion"),
        (["nvib", "train", "quickstart", "--train.ste"], "--train.steps"),
        (["nvib", "train", "--data.clean.no-low"], "--data.clean.no-lowercase"),
        (["nvib", "sample", "runs/a", "--checkpoint", ""], "best last"),
        (["nvib", "completion", "bas"], ""),
        (["nvib", "sample", "conf"], ""),
    ],
)
def test_bash_completes(words, found, completion):
    """What the Tab key gives at the end of the words; where it gives nothing, bash names files."""
    line = " ".join(map(shlex.quote, words))
    program = f'. "$1"; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _tyro_nvib; '
    command = [
        "bash",
        "-c",
        program + 'echo "${COMPREPLY[*]}"; complete -p nvib',
        "bash",
        completion,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [found, "complete -o default -F _tyro_nvib nvib"]


@pytest.fixture(scope="module")
def completion(tmp_path_factory):
    """The script for bash in a file."""
    file = tmp_path_factory.mktemp("completion") / "nvib"
    kinds = {name: command.kind for name, command in commands.COMMANDS.items()}
    file.write_text(script(kinds, "bash"))
    return file


def test_completion_is_printed(capsys):
    assert nvib("completion", "zsh") == 0
    out = capsys.readouterr().out
    assert out.startswith("#compdef nvib")
    assert "--train.steps" in out
    assert nvib("completion", "cmd") == 1


# ---- train and prepare


@pytest.fixture
def preset(tmp_path):
    """A preset file of the tiny config."""
    config = to_json(tiny.config())
    path = tmp_path / "little.py"
    path.write_text(
        f"from nvib_jax.presets import from_json\ndef config():\n    return from_json({config!r})\n"
    )
    return path


@pytest.fixture
def asked(monkeypatch):
    """What the loop is asked to train, instead of training: (config, how)."""
    seen = []

    def train(config, **how):
        seen.append((config, how))
        return loop.Trained(None, 0.0)

    monkeypatch.setattr(loop, "train", train)
    return seen


def test_overrides_reach_the_training(preset, asked):
    assert nvib("train", preset, "--train.steps", 7, "--data.buckets", 8, 24, "--resume") == 0
    config, how = asked[0]
    assert isinstance(config, Config)
    assert (config.train.steps, config.data.buckets) == (7, (8, 24))
    assert config.train.run_dir == tiny.config().train.run_dir
    assert str(how.pop("claim").folder) == config.train.run_dir
    assert how == {"resume": True, "callbacks": (), "then": summarize_run}


@pytest.mark.parametrize(
    ("flags", "how"),
    [
        ([], (False, True)),
        (["--auto-resume", "--no-summary"], (None, False)),
        (["--resume"], (True, True)),
    ],
)
def test_flags_may_stand_on_either_side_of_the_preset(preset, asked, flags, how):
    assert nvib("train", *flags, preset) == nvib("train", preset, *flags) == 0
    assert [(k["resume"], bool(k["then"])) for _, k in asked] == [how, how]


@pytest.mark.usefixtures("asked")
def test_where_to_run_reaches_the_launch(preset, monkeypatch):
    seen = []
    monkeypatch.setattr("nvib_jax.processes.initialize", lambda *a: seen.append(a))
    where = ["--coordinator", "host:1", "--processes=2", "--process", 0]
    assert nvib("train", preset, *where) == nvib("train", preset) == 0
    assert seen == [("host:1", 2, 0), (None, None, None)]


def test_a_run_without_a_name_gets_a_free_one(preset, asked, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    nvib("train", preset, "--train.run-dir", "")
    for name in ("little", "little-2"):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "config.json").write_text("{}")
    nvib("train", preset, "--train.run-dir", "")
    nvib("train", preset, "--train.run-dir", "", "--resume")
    folders = [config.train.run_dir for config, _ in asked]
    assert folders == ["runs/little", "runs/little-3", "runs/little-2"]


def test_a_preset_is_known_by_its_name(asked, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert nvib("train", "quickstart", "--train.steps", 7) == 0
    config, _ = asked[0]
    assert config.train.run_dir == "runs/quickstart"
    assert (config.train.steps, config.model) == (7, load_preset("quickstart").model)


@pytest.mark.parametrize("option", ["--train.steps", "--model.dim", "--mesh.fsdp"])
def test_prepare_takes_no_option_of_training(preset, option, capsys):
    assert nvib("prepare", preset, option, 8) == 1
    assert capsys.readouterr().err == f"nvib prepare: {option} has no effect on nvib prepare\n"


def test_prepare_says_what_it_made(preset, capsys):
    assert nvib("prepare", preset) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "300 train, 40 validation, 10 test sentences, vocabulary " in last


def test_an_interrupt_is_one_line(monkeypatch, capsys):
    def interrupted(name, rest):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    assert nvib("train", "x.py") == 130
    assert capsys.readouterr().err == "nvib train: interrupted\n"


def test_the_installed_command(run):
    """From another process, as installed, with a pipe: the whole way once."""
    command = shutil.which("nvib", path=os.path.dirname(sys.executable))
    if command is None:
        pytest.skip("nvib is not installed beside this python")
    # What this session has compiled already is not compiled again there.
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    done = subprocess.run(
        [command, "reconstruct", run, "--jsonl"],
        input=TEXTS[0], capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"] == TEXTS[0]
    assert done.stderr == ""  # nothing of what the libraries below have to say
