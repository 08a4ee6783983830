"""Training as one function: the command's run, callbacks, and what comes back."""

import json
import os
from pathlib import Path

import pytest
import tiny

import nvib_jax as nvib
from nvib_jax import runs
from nvib_jax.evaluation.summary import summarize_run
from nvib_jax.presets import load_preset
from nvib_jax.training import loop
from nvib_jax.training.logging import MetricWriter


def test_callbacks_get_what_is_written(tmp_path):
    """Every metric of every record under its split's name, in order, in a dict of their own."""
    first, second = [], []

    def spoils(metrics, step):
        second.append((dict(metrics), step))
        metrics.clear()

    how = {"train": {"run_dir": str(tmp_path / "run"), "steps": 4, "eval_every": 4, "log_every": 2}}
    run = nvib.train(
        tiny.config(),
        how,
        summary=False,
        callbacks=[spoils, lambda metrics, step: first.append((metrics, step))],
    )
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    written = []
    for record in map(json.loads, lines):
        step, split, _ = (record.pop(name) for name in ("step", "split", "time"))
        written.append(({f"{split}/{name}": value for name, value in record.items()}, step))
    assert first == second == written
    assert [(step, "train/loss" in metrics) for metrics, step in first] == [
        (2, True), (4, True), (4, False),
    ]  # fmt: skip
    assert (run.folder, dict(run.scores)) == (tmp_path / "run", {})
    assert run.tokens_per_second > 0
    assert not (tmp_path / "run" / "summary.txt").exists()


def test_what_a_callback_raises_is_not_lost(tmp_path):
    writer = MetricWriter(tmp_path, callbacks=[lambda metrics, step: 1 / 0])
    with pytest.raises(ZeroDivisionError):
        writer.write(1, "train", {"loss": 2.0})
    writer.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 2.0  # written before


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What the loop is asked to train, instead of training: (config, how)."""
    seen = []

    def train(config, **how):
        seen.append((config, how))
        return loop.Trained(None, 12.0, {"exact": 0.5} if how["then"] else None)

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.chdir(tmp_path)
    return seen


def test_a_preset_by_its_name_with_changes(asked):
    run = nvib.train("quickstart", {"train": {"steps": 7}, "data": {"source": "text"}})
    config, how = asked[0]
    assert (config.train.steps, config.train.run_dir) == (7, "runs/quickstart")
    assert config.model == load_preset("quickstart").model
    assert config.data.buckets == ()  # the preset's are for the preset's text, as on a command line
    assert how.pop("claim").folder == Path("runs/quickstart")
    assert how == {"resume": False, "callbacks": (), "then": summarize_run}
    assert run == runs.Run(Path("runs/quickstart"), {"exact": 0.5}, 12.0)


def test_names_of_folders(asked):
    config = tiny.with_train(tiny.config(), run_dir="")
    names = [
        nvib.train(config, summary=False, **how).folder
        for how in ({}, {"name": "mine"}, {"name": "mine", "resume": None})
    ]
    assert names == [Path("runs/run"), Path("runs/mine"), Path("runs/mine")]
    assert [how["resume"] for _, how in asked] == [False, False, None]
    assert not any(how["then"] for _, how in asked)


def test_a_wrong_change_is_said_before_a_folder_is_made(asked, tmp_path):
    with pytest.raises(ValueError, match="train has no field 'step'; did you mean 'steps'"):
        nvib.train("quickstart", {"train": {"step": 7}})
    assert not asked
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_given_for_its_folder():
    config, scores = tiny.trained()
    run = runs.Run(Path(config.train.run_dir), scores, 1.0)
    assert os.fspath(run) == config.train.run_dir
    assert run.model is run.model
    assert nvib.load(run).sample(1) == run.model.sample(1)
    assert nvib.load(run, which="last").config == run.model.config
