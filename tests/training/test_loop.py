"""A run from text to a summary: what is written, what comes back, and how it stops."""

import dataclasses
import json
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
from tensorboardX.proto.event_pb2 import Event

from nvib_jax.checkpoint.retention import saved_steps
from nvib_jax.config import MeshConfig
from nvib_jax.data import DataConfig, prepare
from nvib_jax.data.config import CleanConfig
from nvib_jax.evaluation.report.runs import read_run
from nvib_jax.presets import from_json
from nvib_jax.text_model import TextModel
from nvib_jax.training import loop
from nvib_jax.training.guards.interrupt import Interrupt
from nvib_jax.training.logging import MetricWriter, TrainingBar
from nvib_jax.training.sharding import make_mesh, whole


def records(run):
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def board(run):
    """(tag, step) -> value of a run's TensorBoard files, read by their framing."""
    found = {}
    for file in sorted((Path(run) / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
            data = data[12 + size + 4 :]
    return found


# ---- what a run leaves


def test_everything_is_written():
    config, _ = tiny.trained()
    run = Path(config.train.run_dir)
    assert {p.name for p in run.iterdir()} == {
        "checkpoints", "config.json", "finished.json", "metrics.jsonl", "scores.json",
        "summary.txt", "tensorboard",
    }  # fmt: skip
    # As it was given, with the name of its data: whoever reads the run finds them by that.
    digest = prepare(config.data).digest
    noted = dataclasses.replace(config, data=dataclasses.replace(config.data, digest=digest))
    assert from_json((run / "config.json").read_text()) == noted
    assert TextModel.load(str(run)).config == noted
    assert saved_steps(run) == [10, 20]


def test_metrics_are_at_the_steps_that_were_asked_for():
    found = records(tiny.trained()[0].train.run_dir)
    assert [(r["step"], r["split"]) for r in found] == [
        (5, "train"), (10, "train"), (10, "validation"), (15, "train"), (20, "train"),
        (20, "validation"),
    ]  # fmt: skip
    for record in found:
        assert record["cross_entropy"] > 0
        assert 0 <= record["share_kept"] <= 1
        assert ("tokens_per_second" in record) == (record["split"] == "train")
    assert found[-1]["cross_entropy"] < found[2]["cross_entropy"]


def test_tensorboard_holds_the_same():
    run = tiny.trained()[0].train.run_dir
    found = board(run)
    for record in records(run):
        for name, value in record.items():
            if name not in ("step", "split", "time"):
                tag = (f"{record['split']}/{name}", record["step"])
                np.testing.assert_allclose(found[tag], value, rtol=1e-6)


def test_the_figures_come_back():
    config, scores = tiny.trained()
    saved = json.loads((Path(config.train.run_dir) / "scores.json").read_text())
    assert set(saved) == {"trained", "untrained"}
    for name in ("exact", "bleu", "kept_hard", "kept_soft", "elbo_token", "in_language"):
        assert scores[name] == saved["trained"][name]
        assert name in saved["untrained"]
    assert scores["tokens_per_second"] > 0
    assert saved["trained"]["reconstruction_token"] > saved["untrained"]["reconstruction_token"]


def test_training_beats_no_training():
    """Through everything: the data's batches, the step, and what is given back."""
    config, _ = tiny.trained()
    data = prepare(config.data)
    mesh = make_mesh(config.mesh)
    untrained = tiny.open_model(config, data)
    validate = loop.make_validation(config, untrained.graph, data, mesh)
    trained = TextModel.load(config.train.run_dir)
    before = validate(untrained.params)
    placed = jax.device_put(trained.params, whole(mesh))
    after = validate(placed)
    assert after["cross_entropy"] < before["cross_entropy"] - 0.2
    assert validate(placed) == after  # the same draws always
    assert records(config.train.run_dir)[-1]["loss"] == pytest.approx(after["loss"], rel=1e-4)


# ---- other data


@pytest.mark.long
def test_text_without_a_validation_split(tmp_path):
    """Prepared unasked; training watches its own sentences where there are no others."""
    names, verbs = ("ann", "bob", "the old cat"), ("sees", "likes", "hears")
    lines = [f"{a} {v} {b} and {c} ." for a in names for v in verbs for b in names for c in names]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    config = tiny.config()
    config = dataclasses.replace(
        tiny.with_train(config, run_dir=str(tmp_path / "run"), steps=3, eval_every=3),
        data=DataConfig(
            source="text", train=(str(tmp_path / "train.txt"),), layout="lines", vocab_size=60,
            clean=CleanConfig(min_tokens=2), cache_dir=str(tmp_path / "cache"), batch_size=16,
            buckets=(49,),
        ),
    )  # fmt: skip
    asked = []
    loop.train(config, then=lambda model, data, say: asked.append(data.held_out))
    assert [r["step"] for r in records(tmp_path / "run") if r["split"] == "validation"] == [3]
    assert asked == ["train"]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"buckets": (8,)}, ValueError, r"longest sentence.*longest bucket"),
        (
            {"batch_size": 12},
            ValueError,
            r"batch_size is 12; wanted a multiple of mesh.data times mesh.fsdp, 8",
        ),
        ({"source": "text", "train": ("nowhere.txt",)}, FileNotFoundError, r"nowhere.txt"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(tmp_path, change, error, match):
    config = tiny.with_train(tiny.config(), run_dir=str(tmp_path / "run"))
    data = dataclasses.replace(config.data, **change)
    with pytest.raises(error, match=match):
        loop.train(dataclasses.replace(config, data=data, mesh=MeshConfig()))
    assert not (tmp_path / "run").exists()


def test_a_run_needs_a_folder():
    with pytest.raises(ValueError, match=r"train.run_dir is empty"):
        loop.train(tiny.with_train(tiny.config(), run_dir=""))


# ---- stopping


def at_batch(monkeypatch, step, act):
    """Call `act` when training takes batch number `step`."""
    plain = loop.arrays_of
    taken = []

    def arrays(batch):
        taken.append(0)
        if len(taken) == step:
            act()
        return plain(batch)

    monkeypatch.setattr(loop, "arrays_of", arrays)


@pytest.fixture
def ctrl_c():
    """Python's own Ctrl-C: a shell's background job, CI's perhaps, starts with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_go_on(monkeypatch, capsys):
    config = tiny.with_train(tiny.trained()[0], run_dir=str(tiny.folder() / "interrupted"))
    with monkeypatch.context() as patch:
        at_batch(patch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            loop.train(config)
    out = capsys.readouterr().out
    assert "interrupted at step 3; the same command with --resume continues" in out
    assert saved_steps(config.train.run_dir) == [3]
    # Nothing is measured between the signal and the checkpoint.
    assert [(r["step"], r["split"]) for r in records(config.train.run_dir)] == [(3, "train")]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    loop.train(config, resume=True)
    assert saved_steps(config.train.run_dir)[-1] == 20
    whole = TextModel.load(tiny.trained()[0].train.run_dir, which="last")
    again = TextModel.load(config.train.run_dir, which="last")
    for name, value in whole.params.items():
        np.testing.assert_array_equal(again.params[name], value, err_msg=name)


@pytest.mark.long
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_at_the_last_step(monkeypatch):
    """The run is measured and saved as ever, and then stops; what is left is the summary."""
    config = tiny.with_train(tiny.trained()[0], run_dir=str(tiny.folder() / "at-the-end"))
    with monkeypatch.context() as patch:
        at_batch(patch, 20, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            loop.train(config)
    run = Path(config.train.run_dir)
    assert saved_steps(run) == [10, 20]
    assert records(run)[-1]["split"] == "validation"
    assert not (run / "finished.json").exists()
    loop.train(config, resume=True)
    assert (run / "finished.json").exists()
    with monkeypatch.context() as patch:
        there = []
        at_batch(patch, 1, lambda: there.append((run / "finished.json").exists()))
        loop.train(tiny.with_train(config, steps=21), resume=True)
    assert there == [False]  # scripts wait for it
    assert json.loads((run / "finished.json").read_text())["steps"] == 21


def test_a_loss_that_is_no_number_stops_the_run(monkeypatch, tmp_path):
    config = tiny.with_train(tiny.trained()[0], run_dir=str(tmp_path / "run"))
    losses = iter([1.0, float("nan")])
    monkeypatch.setattr(loop, "make_validation", lambda *a: lambda params: {"loss": next(losses)})
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 20, .*learning_rate"):
        loop.train(config)
    assert saved_steps(tmp_path / "run") == [10]


def test_ctrl_c_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGINT)
        assert not interrupt.asked
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_interrupt_asks_once_then_stops():
    with Interrupt() as interrupt:
        assert not interrupt.asked
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_of_several_processes_the_service_is_asked_from_one_on(monkeypatch):
    """It names a number beyond the largest it was asked for, and waits for exactly that one."""
    asked = []

    def sync_point(number):
        asked.append(number)
        return number == 3

    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr("nvib_jax.training.guards.interrupt.multihost_utils.reached_preemption_sync_point",
                        sync_point)  # fmt: skip
    with Interrupt() as interrupt:
        assert [interrupt.asked_to_stop() for _ in range(3)] == [False, False, True]
    assert asked == [1, 2, 3]
    with pytest.raises(SystemExit) as stop:
        interrupt.leave()
    assert stop.value.code == 143


def test_interrupt_outside_the_main_thread():
    seen = []

    def work():
        with Interrupt() as interrupt:
            seen.append(interrupt.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]


# ---- logging


def test_a_writer_drops_what_will_be_run_again(tmp_path):
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        writer = MetricWriter(tmp_path, after=start)
        for step in steps:
            writer.write(step, "train", {"loss": float(10 * start + step)})
        writer.close()
    assert [(r["step"], r["loss"]) for r in records(tmp_path)] == [
        (1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0),
    ]  # fmt: skip


WRONG = (b"{}", b"5", b"[]", b"\xff\xfe", b'{"step": "3"}', b'{"step": null}', b'{"step": true}',
         b'{"step": 1, "loss": "much"}', b"[" * 10**5, b'{"step": 2, "lo')  # fmt: skip


def test_lines_that_are_no_records_are_left_out_and_said(tmp_path):
    """Each of them ended a resumed run, and a report, in a traceback."""
    good = [json.dumps({"step": n, "split": "train", "loss": n / 3}).encode() for n in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([good[0], *WRONG, *good[1:], b'{"st']))
    (tmp_path / "config.json").write_text("{}")
    assert [r["step"] for r in read_run(tmp_path).metrics] == [1, 2, 3]
    said = []
    writer = MetricWriter(tmp_path, after=2, say=said.append)
    writer.write(3, "train", {"loss": 7.0})
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert lines[:2] == good[:2]
    assert [json.loads(line)["loss"] for line in lines[2:]] == [7.0]
    assert said == [
        f"{tmp_path / 'metrics.jsonl'} has {len(WRONG)} lines that are no records, "
        "the first is 2; they are left out"
    ]


def test_a_last_line_that_is_cut_off_is_nothing_to_speak_of(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    said = []
    MetricWriter(tmp_path, after=5, say=said.append).close()
    assert [r["step"] for r in records(tmp_path)] == [1]
    assert not said


def test_lines_are_plain_where_there_is_no_terminal(capsys):
    with TrainingBar(10) as bar:
        bar.log(5, {"loss": 1234.5, "x": 0.12345}, {"loss": "loss", "x": "[kept]"})
        bar.advance(5)
    assert capsys.readouterr().out == "train         5  loss 1,234  [kept] 0.123\n"


@pytest.mark.long
def test_speed_is_of_tokens_and_training_time_alone(monkeypatch, tmp_path):
    """A slow evaluation between two log lines is not in tokens/s; an hour by a clock of ours."""
    late = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + late[0])
    monkeypatch.setattr(loop, "time", clock)
    config = tiny.with_train(
        tiny.trained()[0], run_dir=str(tmp_path / "run"), steps=8, log_every=4, eval_every=6
    )

    def slow(params):
        late[0] += 3600
        return {"loss": 1.0}

    monkeypatch.setattr(loop, "make_validation", lambda *a: slow)
    loop.train(config)
    second = [r for r in records(tmp_path / "run") if r["split"] == "train"][1]
    batches = loop.open_batches(config, prepare(config.data), make_mesh(config.mesh), "train")
    seen = [batches[i] for i in range(4, 8)]
    tokens = sum(int(b["mask"].sum() + (b["index"] >= 0).sum()) for b in seen)
    assert tokens / second["tokens_per_second"] < 1800
