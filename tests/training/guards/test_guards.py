"""What a run does when a step goes bad or nothing moves, and how processes find each other."""

import re
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from processes import wait_for

from nvib_jax import processes as distributed
from nvib_jax.checkpoint.retention import saved_steps
from nvib_jax.data import prepare
from nvib_jax.training import loop
from nvib_jax.training.guards import watchdog as watchdogs
from nvib_jax.training.guards.watchdog import Watchdog
from nvib_jax.training.sharding import make_mesh


@pytest.fixture
def bad_from(monkeypatch):
    """Make the steps with these numbers bad: their parameters' gradient meets no number."""
    plain = loop.make_train_step

    def patch(steps):
        def make(*args, **options):
            step = plain(*args, **options)

            def run(state, batch, key):
                if int(state.step) + 1 in steps:
                    broken = state.params["output.bias"] * np.float32("nan")
                    good = state.params["output.bias"] + 0
                    poisoned = {**state.params, "output.bias": broken}
                    state, metrics = step(
                        type(state)(**{**vars(state), "params": poisoned}), batch, key
                    )
                    mended = {**state.params, "output.bias": good}
                    return type(state)(**{**vars(state), "params": mended}), metrics
                return step(state, batch, key)

            return run

        monkeypatch.setattr(loop, "make_train_step", make)

    return patch


def sentences(config, step):
    """The ids of the training sentences in the batch of a step."""
    mesh = make_mesh(config.mesh)
    return loop.open_batches(config, prepare(config.data), mesh, "train").sentences(step - 1)


def test_a_bad_step_stops_the_run_and_names_its_batch(bad_from, tmp_path):
    """Step, sentences, and the checkpoint that is left; nothing later is saved."""
    config = tiny.with_train(tiny.trained()[0], run_dir=str(tmp_path / "run"))
    bad_from({13})
    with pytest.raises(FloatingPointError) as error:
        loop.train(config)
    said = str(error.value)
    assert "step 13 has a loss or a gradient that is no finite number, or a spike" in said
    assert "the last good checkpoint is of step 10 in" in said
    assert "--train.bad-step skip" in said
    named = [int(i) for i in re.search(r"sentences ([\d, ]+)", said)[1].split(",")]
    assert named == sentences(config, 13)
    assert saved_steps(tmp_path / "run") == [10]
    assert not (tmp_path / "run" / "finished.json").exists()


def test_a_bad_step_may_be_skipped(bad_from, tmp_path, capsys):
    """The same run without that batch's update; the metrics leave it out; it ends."""
    config = tiny.with_train(tiny.trained()[0], run_dir=str(tmp_path / "run"), bad_step="skip")
    bad_from({7, 13})
    loop.train(config)
    out = capsys.readouterr().out
    assert "step 7 has a loss" in out
    assert f"sentences {', '.join(map(str, sentences(config, 13)))}" in out
    assert out.count("it is skipped") == 2
    assert saved_steps(tmp_path / "run") == [10, 20]
    assert "nan" not in (tmp_path / "run" / "metrics.jsonl").read_text().lower()


@pytest.mark.long
@pytest.mark.parametrize("eval_every", [10, 3])
def test_skipping_without_end_stops(bad_from, tmp_path, eval_every):
    """As many bad steps in a row as are logged together are no accident, however they are cut."""
    config = tiny.with_train(
        tiny.trained()[0],
        run_dir=str(tmp_path / "run"),
        bad_step="skip",
        eval_every=eval_every,
        log_every=5,
    )
    bad_from(set(range(11, 21)))
    with pytest.raises(FloatingPointError, match=r"has a loss or .*checkpoint is of step"):
        loop.train(config)


# ---- the watchdog


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves; told to, it waits until the watchdog has looked at it."""
    now, looks = [0.0], [0]

    def monotonic():
        looks[0] += threading.current_thread().name == "watchdog"
        return now[0]

    def forward(seconds):
        now[0] += seconds
        before = looks[0]
        wait_for(lambda: looks[0] > before + 2)  # the first may have read the time before

    monkeypatch.setattr(watchdogs, "time", SimpleNamespace(monotonic=monotonic))
    return forward


def test_the_watchdog_says_where_nothing_moves(clock):
    said = []
    with Watchdog(0.04, said.append) as watchdog:
        for step in range(6):  # moving
            watchdog.at(f"step {step} was begun")
            clock(0.03)
        assert not said
        clock(0.02)
        assert len(said) == 1
        clock(0.02)
        assert len(said) == 1  # its patience doubles
        clock(0.02)
        assert len(said) == 2
    assert re.match(
        r"nothing has moved for 0 s since step 5 was begun; it is in \w+, .*\.py:\d+$", said[0]
    )


def test_a_watchdog_that_moves_again_is_quiet(clock):
    said = []
    with Watchdog(0.04, said.append) as watchdog:
        clock(0.05)
        watchdog.at("the checkpoint of step 7")
        clock(0.03)
        assert len(said) == 1
        clock(0.03)
    assert "since the start" in said[0]
    assert "since the checkpoint of step 7" in said[1]


def test_the_longest_patience_that_there_is(monkeypatch):
    """More seconds than a lock can wait ended the watchdog in an OverflowError."""
    failed = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    with Watchdog(1e300, print) as watchdog:
        watchdog._thread.join(0.3)
        assert watchdog._thread.is_alive()
    assert not failed


def test_no_watchdog():
    said = []
    with Watchdog(0, said.append):
        time.sleep(0.1)
    assert not said


# ---- processes


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, False),  # a shell of salloc
    ],
)
def test_a_launcher_is_told_by_its_variables(monkeypatch, variables, found):
    for name in ("OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert distributed.launched() == found


def test_some_of_the_launch_is_not_enough():
    with pytest.raises(ValueError, match=r"processes, process missing; wanted all of coordinator,"):
        distributed.initialize(coordinator="127.0.0.1:1234")


def test_one_process_agrees_with_itself():
    assert distributed.is_first()
    assert distributed.from_first(7) == 7
    assert distributed.everywhere(True)
    assert not distributed.everywhere(False)
    distributed.check_same("it", 3)
