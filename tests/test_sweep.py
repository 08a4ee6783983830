"""A sweep goes on where it stopped, keeps runs apart, and names what failed."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import tiny

from nvib_jax import sweep
from nvib_jax.evaluation.protocol import RESULT, EvaluationConfig
from nvib_jax.presets import from_json
from nvib_jax.sweep import as_arguments, load_sweep, run_sweep, variants

FILE = """
from nvib_jax.config import Config
def sweep():
    return {value}
"""


@pytest.fixture
def commands(monkeypatch):
    """The commands of a sweep, carried out by writing what each would leave."""
    seen = []

    def run(step, folder, cores):
        seen.append((folder.name, *step))
        if "bad" in folder.name:
            return False
        if step[0] == "train":
            steps = from_json((folder / sweep.CONFIG).read_text()).train.steps
            (folder / "checkpoints" / str(steps)).mkdir(parents=True)
        else:
            (folder / RESULT).write_text("{}")
        return True

    monkeypatch.setattr(sweep, "_run", run)
    monkeypatch.setattr(sweep, "saved_steps", lambda folder: [
        int(path.name) for path in (folder / "checkpoints").glob("*")
    ])  # fmt: skip
    return seen


def configs(*names):
    return {name: tiny.config(name) for name in names}


def test_trains_then_evaluates_and_does_nothing_twice(tmp_path, commands):
    folders = run_sweep(configs("a", "b"), tmp_path, progress=lambda line: None)
    assert folders == [tmp_path / "a", tmp_path / "b"]
    assert [(name, step) for name, step, *_ in commands] == [
        ("a", "train"), ("a", "evaluate"), ("b", "train"), ("b", "evaluate"),
    ]  # fmt: skip
    # Its config is the run's, in the folder of the sweep.
    saved = from_json((tmp_path / "a" / sweep.CONFIG).read_text())
    assert saved == tiny.with_train(tiny.config("a"), run_dir=str(tmp_path / "a"))
    run_sweep(configs("a", "b"), tmp_path, progress=lambda line: None)
    assert len(commands) == 4


def test_goes_on_where_it_stopped(tmp_path, commands):
    run_sweep(configs("a"), tmp_path, progress=lambda line: None)
    (tmp_path / "a" / RESULT).unlink()
    run_sweep(configs("a"), tmp_path, progress=lambda line: None)
    assert [step for _, step, *_ in commands] == ["train", "evaluate", "evaluate"]
    # Stopped half way through training: it resumes, and what was measured before is old.
    (tmp_path / "a" / "checkpoints" / "20").rename(tmp_path / "a" / "checkpoints" / "10")
    run_sweep(configs("a"), tmp_path, progress=lambda line: None)
    assert commands[-2][1] == "train"
    assert commands[-2][-1] == "--resume"
    assert commands[-1][1] == "evaluate"


def test_another_config_is_another_run(tmp_path, commands):
    run_sweep(configs("a"), tmp_path, progress=lambda line: None)
    other = {"a": tiny.with_train(tiny.config("a"), steps=30)}
    with pytest.raises(ValueError, match="a holds a run of another config"):
        run_sweep(other, tmp_path)
    assert len(commands) == 2


def test_a_sweep_whose_folder_and_cache_have_moved_goes_on(tmp_path, commands):
    run_sweep(configs("a"), tmp_path / "one", progress=lambda line: None)
    (tmp_path / "one").rename(tmp_path / "two")
    moved = tiny.config("a")
    moved = dataclasses.replace(
        moved, data=dataclasses.replace(moved.data, cache_dir=str(tmp_path / "cache"))
    )
    run_sweep({"a": moved}, tmp_path / "two", progress=lambda line: None)
    assert len(commands) == 2


def test_a_run_that_fails_is_named_and_the_rest_is_done(tmp_path, commands):
    with pytest.raises(ValueError, match=r"1 of 3 runs failed: bad \(.*bad/log.txt\)"):
        run_sweep(configs("a", "bad", "c"), tmp_path, jobs=2, progress=lambda line: None)
    assert (tmp_path / "c" / RESULT).is_file()
    with pytest.raises(ValueError, match="jobs is 0; wanted at least 1"):
        run_sweep(configs("a"), tmp_path, jobs=0)


def test_cores_are_shared_out():
    shares = sweep._shares(2)
    if len(os.sched_getaffinity(0)) >= 2:
        assert shares[0]
        assert not shares[0] & shares[1]
    assert sweep._shares(10_000) == [set()] * 10_000


def test_evaluation_options_arrive():
    options = EvaluationConfig(samples=0, forms=False, reverse_samples=50, split="validation")
    options = dataclasses.replace(options, lm=dataclasses.replace(options.lm, steps=7))
    arguments = as_arguments(options)
    import tyro

    from nvib_jax.cli.studies import Evaluate

    parsed = tyro.cli(Evaluate, args=["runs/x", *arguments], config=(tyro.conf.FlagCreatePairsOff,))
    assert parsed.options == options
    assert as_arguments(EvaluationConfig()) == []


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("[]", r"sweep\(\) of .* gives \[\]; wanted a dict of name to Config"),
        ("{'a': 3}", "run 'a' of .* is int; wanted Config"),
        ("{'a/b': Config()}", "run 'a/b' of .* is no name of a folder"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_files_that_are_no_sweep(tmp_path, value, match):
    file = tmp_path / "s.py"
    file.write_text(FILE.format(value=value))
    with pytest.raises(ValueError, match=match):
        load_sweep(file)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_sweep(tmp_path / "none.py")


def test_variants_change_what_they_name_and_the_seed():
    base = tiny.config("x")
    runs = variants(base, {"a": {"model": {"kind": "VTV"}}, "b": {"train": {"steps": 3}}}, (0, 4))
    assert list(runs) == ["a-s0", "b-s0", "a-s4", "b-s4"]
    assert runs["a-s4"].model == dataclasses.replace(base.model, kind="VTV")
    assert (runs["a-s4"].train.seed, runs["b-s4"].train.seed) == (4, 4)
    assert runs["b-s0"].train == dataclasses.replace(base.train, steps=3, seed=0)
    assert runs["b-s0"].model == base.model


def test_the_sweeps_of_the_repository_load():
    runs = load_sweep("configs/sweeps/grammar.py")
    assert len({config.train.seed for config in runs.values()}) >= 3
    kinds = {config.model.kind for config in runs.values()}
    assert kinds == {"NVAE", "T", "VTV", "VTP", "VTS", "VTQ"}
    rivals = load_sweep("configs/sweeps/rivals.py")
    assert {config.model.kind for config in rivals.values()} == {"NVAE", "VTS", "VTP", "VQ", "AAE"}


@pytest.mark.long
def test_a_sweep_for_real(tmp_path):
    """Two runs, two processes: trained, evaluated, tabulated; a second call has nothing to do."""
    file = tmp_path / "two.py"
    file.write_text(
        "import sys; sys.path.insert(0, 'tests')\nimport tiny\n"
        "def sweep(): return {'s0': tiny.config('x'), 's1': tiny.config('x', seed=1)}\n"
    )
    command = [
        *(sys.executable, "-m", "nvib_jax", "sweep", str(file), "--out", str(tmp_path / "out")),
        *("--jobs", "2", "--sentences", "16", "--samples", "20", "--draws", "2", "--pairs", "3"),
        *("--lm.steps", "20", "--no-forms"),
    ]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert "s0: train" in first.stdout
    assert "s1: evaluate" in first.stdout
    assert "BLEU" in first.stdout
    # One of them is asked for; the scores of both are kept.
    again = subprocess.run([*command, "--only", "s1"], capture_output=True, text=True)
    # The table's legend speaks of training sentences, so the word alone says nothing.
    assert ": train" not in again.stdout
    assert ": evaluate" not in again.stdout
    assert "BLEU" in again.stdout
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [row["name"] for row in scores] == ["s0", "s1"]
