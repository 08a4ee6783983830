"""Kills, other topologies, several processes: a run ends as the one that nothing happened to."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from processes import (
    assert_same_losses,
    command,
    environment,
    finish,
    losses,
    records,
    said,
    saving,
    start,
    start_group,
    wait_for,
)

from nvib_jax.checkpoint.retention import saved_steps
from nvib_jax.config import MeshConfig
from nvib_jax.evaluation import summary
from nvib_jax.text_model import TextModel
from nvib_jax.training import loop

KILLS = 5
ONE = MeshConfig(data=1)


def config(name, mesh=None, **train):
    train = {"steps": 20, "eval_every": 5, "log_every": 1, "eval_sentences": 19, **train}
    settings = tiny.config(name, **train)
    return dataclasses.replace(settings, mesh=mesh or MeshConfig())


def assert_same_params(run, other):
    found, wanted = (TextModel.load(r, which="last").params for r in (run, other))
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.fixture(scope="module")
def alone():
    """Twenty steps on one device, in this process, and their summary of nineteen sentences."""
    settings = config("alone", ONE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "SUMMARY_SAMPLES", 1000)
        loop.train(settings, then=summary.summarize_run)
    return settings


# ---- several processes


@pytest.fixture(scope="module")
def pair():
    """The same by two processes, which nothing happens to."""
    settings = config("pair", keep_checkpoints=2)
    finish(settings, start_group(settings, 2))
    return settings


def assert_as_one(settings, alone, devices):
    """The same losses of twenty steps, of held-out sentences too; one process writes and speaks."""
    assert_same_losses(settings.train.run_dir, alone.train.run_dir, 1e-5)
    assert said(settings).count("held-out     20") == 1
    assert f"{devices} devices of 2 processes" in said(settings)


@pytest.mark.long
def test_processes_train_as_one(alone, pair):
    assert_as_one(pair, alone, devices=2)


@pytest.mark.long
def test_processes_that_divide_a_model_train_evaluate_and_write_as_one(alone):
    """Two of two devices, sentences and model split over both: losses, scores and page of one."""
    settings = config("divided", MeshConfig(tensor=2, fsdp=2))
    finish(settings, start_group(settings, 2, "--summary", devices=2))
    assert_as_one(settings, alone, devices=4)
    runs = [Path(c.train.run_dir) for c in (settings, alone)]
    found, wanted = (json.loads((r / "scores.json").read_text())["trained"] for r in runs)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == (value if value is None else pytest.approx(value, rel=1e-4)), name
    page, other = ((r / "summary.txt").read_text() for r in runs)
    assert page == other
    assert said(settings).count("Samples from the prior") == 1


@pytest.mark.long
def test_mpirun(alone):
    """Open MPI's own variables are enough."""
    if shutil.which("mpirun") is None:
        pytest.skip("no mpirun on this machine (Debian: openmpi-bin); the launcher is not tested")
    settings = config("mpi")
    many = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
    run = subprocess.run(
        [*many, *command(settings)], env=environment(), capture_output=True, text=True, timeout=1200
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert_same_losses(settings.train.run_dir, alone.train.run_dir, 1e-5)


@pytest.mark.long
def test_sigterm_to_one_process_stops_all_at_one_step():
    """As a preempted worker of a slice is told: all save the same step."""
    settings = config("told", steps=400, eval_every=400)
    group = start_group(settings, 2)
    wait_for(lambda: len(records(settings.train.run_dir)) > 3)
    group[1].send_signal(signal.SIGTERM)
    finish(settings, group, 128 + signal.SIGTERM)
    (step,) = saved_steps(settings.train.run_dir)
    assert f"interrupted at step {step}; the same command with --resume" in said(settings)
    assert 3 < step < 400


FAILS = """
import sys
from nvib_jax.cli import main
from nvib_jax.checkpoint.store import Checkpoints
whole = Checkpoints._read_items
def read(self, step, shapes):
    if step == 20:
        raise OSError("this disk alone")
    return whole(self, step, shapes)
if sys.argv[-1] == "1":
    Checkpoints._read_items = read
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.long
def test_one_process_that_cannot_read_takes_the_others_along(pair):
    """Process 1 fails at step 20 alone: both go on from 15, and end as if nothing had happened."""
    settings = config("one-fails", keep_checkpoints=2)
    shutil.copytree(pair.train.run_dir, settings.train.run_dir)
    before = saved_steps(pair.train.run_dir)
    finish(settings, start_group(settings, 2, "--auto-resume", python=["-c", FAILS]))
    assert f"resumed at step {before[-2]}" in said(settings)
    assert "damaged (another process could not read it)" in said(settings)
    assert saved_steps(settings.train.run_dir) == before
    found, wanted = (TextModel.load(c.train.run_dir, which="last").params for c in (settings, pair))
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6, err_msg=name)


@pytest.mark.long
def test_a_killed_process_of_two_costs_the_steps_since_the_checkpoint(pair):
    """kill -9 of one; the other does not hang, and both together end bit-equal."""
    cut = config("pair-cut", keep_checkpoints=2)
    group = start_group(cut, 2)
    wait_for(lambda: saved_steps(cut.train.run_dir)[-1:] >= [10])
    group[1].kill()
    group[1].wait()
    assert group[0].wait(timeout=1200) != 0
    finish(cut, start_group(cut, 2, "--auto-resume"))
    assert "resumed at step" in said(cut)
    assert_same_params(cut.train.run_dir, pair.train.run_dir)
    assert losses(cut.train.run_dir) == losses(pair.train.run_dir)


@pytest.mark.long
def test_sigterm_saves_and_says_so(tmp_path):
    """One process, told as a preempted machine tells it; status 143."""
    settings = config("term", ONE, steps=4000, eval_every=4000)
    process = start(settings)
    wait_for(lambda: len(records(settings.train.run_dir)) > 2)
    process.send_signal(signal.SIGTERM)
    finish(settings, [process], 143)
    (step,) = saved_steps(settings.train.run_dir)
    assert f"interrupted at step {step}; the same command with --resume continues" in said(settings)


# ---- kills


@pytest.mark.long
def test_kills_cost_nothing():
    """kill -9 at random moments, half of them inside a save: the final parameters are bit-equal."""
    settings = config("killed", ONE, steps=700, eval_every=15, log_every=15)
    whole = dataclasses.replace(
        settings, train=dataclasses.replace(settings.train, run_dir=str(tiny.folder() / "unhurt"))
    )
    finish(whole, [start(whole)])  # where there is one core, 8 devices round otherwise than one
    rng, run, inside = random.Random(0), settings.train.run_dir, 0
    for kill in range(KILLS):
        process = start(settings, "--auto-resume")
        if kill % 2:
            wait_for(lambda process=process: process.poll() is not None or saving(run))
        else:
            time.sleep(rng.uniform(0, 8))
        inside += saving(run)
        assert process.poll() is None, f"done before kill {kill}: {said(settings)[-2000:]}"
        process.kill()
        process.wait()
    assert inside
    finish(settings, [start(settings, "--auto-resume")])
    assert "damaged" not in said(settings)
    assert_same_params(run, whole.train.run_dir)
    assert losses(run) == losses(whole.train.run_dir)


# ---- other topologies


@pytest.mark.long
def test_a_run_moves_between_topologies(alone):
    """4 x 2 devices, then 1, then 8: the data go on, the losses are those of one device."""
    settings = config("moved")
    for steps, mesh in (
        (8, MeshConfig(fsdp=4, tensor=2)),
        (12, ONE),
        (20, MeshConfig(data=4, fsdp=2)),
    ):
        part = dataclasses.replace(
            settings, mesh=mesh, train=dataclasses.replace(settings.train, steps=steps)
        )
        loop.train(part, resume=None)
    found, wanted = losses(settings.train.run_dir), losses(alone.train.run_dir)
    trained = [(step, split) for step, split in wanted if split == "train"]
    assert len(trained) == 20
    for step in trained:
        assert found[step] == pytest.approx(wanted[step], rel=1e-5), step


@pytest.mark.long
def test_exact_resume_on_a_mesh():
    """2N steps are N, a stop, and N: bit-equal parameters, the same records."""
    mesh = MeshConfig(fsdp=2, tensor=2)
    whole = config("exact-whole", mesh, steps=20)
    parts = config("exact-parts", mesh, steps=10)
    loop.train(whole)
    loop.train(parts)
    more = dataclasses.replace(parts, train=dataclasses.replace(parts.train, steps=20))
    loop.train(more, resume=True)
    assert_same_params(parts.train.run_dir, whole.train.run_dir)
    assert losses(parts.train.run_dir) == losses(whole.train.run_dir)
    assert len(jax.devices()) == 8
    assert Path(os.fspath(parts.train.run_dir), "finished.json").exists()
