"""The training run from start to end: data, model, steps, validation, checkpoints."""

import contextlib
import dataclasses
import json
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import nvib_jax
from nvib_jax.checkpoint.description import Description
from nvib_jax.checkpoint.retention import saved_steps
from nvib_jax.checkpoint.store import Checkpoints
from nvib_jax.config import Config
from nvib_jax.data import PreparedData, prepare
from nvib_jax.effects import remarks
from nvib_jax.files import write_whole
from nvib_jax.presets import to_json
from nvib_jax.processes import check_same, is_first
from nvib_jax.progress import to_standard_error
from nvib_jax.text.engine import COUNTED
from nvib_jax.text_model import TextModel
from nvib_jax.training.claim import CLAIM, Claim
from nvib_jax.training.feed import arrays_of, describe, open_batches
from nvib_jax.training.guards.bad_steps import BadSteps
from nvib_jax.training.guards.interrupt import Interrupt
from nvib_jax.training.guards.memory import check_memory, memory_explained
from nvib_jax.training.guards.replicas import make_agree
from nvib_jax.training.guards.watchdog import Watchdog
from nvib_jax.training.logging import Callback, TrainingBar, open_writer
from nvib_jax.training.loss import effective_weights
from nvib_jax.training.sharding import batch_placer, check_fits, make_mesh, plan_state, whole
from nvib_jax.training.step import TrainState, add_metrics, make_train_step, means
from nvib_jax.training.validation import make_validation

_LINE = {
    "loss": "loss",
    "cross_entropy": "nats/token",
    "kl_gaussian": "KL_G",
    "kl_dirichlet": "KL_D",
    "kl_codes": "KL_codes",
    "share_kept": "kept",
    "tokens_per_second": "tokens/s",
}
FINISHED = "finished.json"  # written at the very end, for scripts that wait for the run
Say = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """What a run gives.

    Attributes:
      model: the trained model.
      tokens_per_second: median over the log windows, compilation left out; 0 if there is none.
      result: what `then` returned.
    """

    model: TextModel
    tokens_per_second: float
    result: Any = None


def train(
    config: Config,
    *,
    resume: bool | None = False,
    claim: Claim | None = None,
    callbacks: Sequence[Callback] = (),
    then: Callable[[TextModel, PreparedData, Say], Any] | None = None,
) -> Trained:
    """Run a config from text to a trained model, on all devices of all processes.

    Args:
      config: the whole configuration; `train.run_dir` must not hold another run's checkpoints.
      resume: continue from the last undamaged checkpoint in `train.run_dir`. None does so if there
        is a checkpoint, and starts a new run otherwise.
      claim: of the run's folder, if the caller holds it already; it is released at the end.
      callbacks: called by the first process with a dict of metrics, named "train/loss" and so on,
        and the step, whenever metrics are written.
      then: called with the trained model, the data and a function that prints a line, by all
        processes under the run's mesh, before the run is called finished. `nvib_jax.train` gives
        `nvib_jax.evaluation.summary.summarize_run`.

    Raises:
      FileExistsError: the run has checkpoints and `resume` is False, or another process is using
        its folder.
      FileNotFoundError: `resume` is True and there is no checkpoint.
      FloatingPointError: a bad step, by `train.bad_step`; the checkpoints before are kept.
      KeyboardInterrupt: after Ctrl-C and a last checkpoint; `resume` goes on from there.
      OSError: a checkpoint cannot be written; the ones before are kept.
      SystemExit: after SIGTERM or a notice of preemption, and a last checkpoint; status 143.
      ValueError: a config that does not fit the data, the devices or the checkpoint.
    """
    if not config.train.run_dir:
        raise ValueError("train.run_dir is empty; wanted the folder of the run")
    bar = TrainingBar(config.train.steps, quiet=not is_first())
    with claim or Claim([config.train.run_dir], say=bar.print):
        saved = _check_run_dir(config, resume)
        data = prepare(config.data, progress=bar.print)
        check_same("the prepared data", data.fingerprint)
        # The digest goes into the run's config, so that a reader finds the prepared data by their
        # content, wherever they are stored.
        noted = dataclasses.replace(config.data, digest=data.digest)
        config = dataclasses.replace(config, data=noted)
        mesh = make_mesh(config.mesh)
        with jax.set_mesh(mesh):
            return _train(config, data, mesh, bar, saved, callbacks, then)


def _train(
    config: Config,
    data: PreparedData,
    mesh: jax.sharding.Mesh,
    bar: TrainingBar,
    saved: list[int],
    callbacks: Sequence[Callback],
    then: Callable[[TextModel, PreparedData, Say], Any] | None,
) -> Trained:
    settings, run_dir = config.train, Path(config.train.run_dir)
    description = describe(config, data)
    shapes, length = description.structure.shapes, description.max_length
    check_fits(config, mesh, shapes)
    check_memory(config, mesh, shapes, length)
    for split in ("train", data.held_out):
        open_batches(config, data, mesh, split)  # raises for batches that do not fit the data
    bar.print(f"the run is {run_dir}")
    for line in (*effective_weights(config), *remarks(config)):
        bar.print(line)
    if mesh.size > 1:
        sizes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
        bar.print(f"{mesh.size} devices of {jax.process_count()} processes: {sizes}")
    checkpoints = Checkpoints(
        run_dir,
        keep=settings.keep_checkpoints,
        best=settings.keep_best,
        every=settings.keep_every,
        say=bar.print,
    )
    with contextlib.closing(checkpoints), memory_explained(config, shapes, length):
        model, speed = _fit(
            description, data, mesh, checkpoints, bar, callbacks, resume=bool(saved)
        )
    result = then(model, data, bar.print) if then else None
    # A run of more steps than were asked for is as unfinished, or as finished, as it was.
    if is_first() and max(saved_steps(run_dir), default=0) <= settings.steps:
        finished = {"steps": settings.steps, "nvib_jax": nvib_jax.__version__}
        write_whole(run_dir / FINISHED, json.dumps(finished) + "\n")
    names = ", ".join(sorted(p.name for p in run_dir.iterdir() if p.name != CLAIM))
    bar.print(f"\nwritten to {run_dir}: {names}")
    return Trained(model, speed, result)


def _fit(
    description: Description,
    data: PreparedData,
    mesh: jax.sharding.Mesh,
    checkpoints: Checkpoints,
    bar: TrainingBar,
    callbacks: Sequence[Callback],
    *,
    resume: bool,
) -> tuple[TextModel, float]:
    """Run all steps; return the trained model and the median tokens/s of the log windows."""
    config, structure = description.config, description.structure
    settings, texts = config.train, data.sentences("train", COUNTED)
    plan = plan_state(config, mesh, structure)
    if resume:
        state = TrainState.of_items(checkpoints.resume(plan.state.items, description)[1])
        bar.print(f"resumed at step {int(state.step)}")
    else:
        state = plan.create()
    model = TextModel(description, state.params)
    if resume:
        model = model.counted(texts)
    start = int(state.step)
    if start > settings.steps:
        bar.print(f"the run is at step {start} already; train.steps is {settings.steps}")
    elif is_first():
        write_whole(Path(settings.run_dir) / "config.json", to_json(config))
    step_function = make_train_step(
        structure.graph,
        plan.optimizer,
        config.objective,
        accumulate=settings.accumulate,
        spike=settings.spike,
        shardings=(plan.shardings, whole(mesh)),
    )
    agree = make_agree(mesh, plan.shardings)
    validate = make_validation(config, structure.graph, data, mesh)
    place = batch_placer(mesh, config.data.batch_size)
    key = jax.random.key(settings.seed)

    batches = open_batches(config, data, mesh, "train")
    stream = batches.iterate(start)
    if start < settings.steps and is_first():
        # A run that is continued with more steps is not finished any more.
        (Path(settings.run_dir) / FINISHED).unlink(missing_ok=True)
    bad = BadSteps(batches, checkpoints, settings, bar.print)
    window, since, speeds = None, time.monotonic(), []
    with (
        contextlib.closing(open_writer(settings.run_dir, start, bar.print, callbacks)) as writer,
        bar,
        Interrupt() as interrupt,
        Watchdog(settings.watchdog, bar.print if is_first() else to_standard_error) as watchdog,
    ):
        bar.advance(start)
        for step in range(start + 1, settings.steps + 1):
            batch = place(arrays_of(next(stream)))
            state, metrics = step_function(state, batch, key)
            window = add_metrics(window, metrics)
            bad.add(step, metrics["bad_steps"][0])
            bar.advance(1)
            watchdog.at(f"step {step} was begun")
            # The stop request is read once per step; a signal that arrives later is handled after
            # the next step. After the last step the run ends anyway.
            stopping = interrupt.asked_to_stop() and step < settings.steps
            last = stopping or step == settings.steps
            evaluating = step % settings.eval_every == 0 or last
            if step % settings.log_every == 0 or evaluating:
                values = means(window)  # waits for the device, so that the clock is right
                bad.check()
                checkpoints.check()
                speeds.append(float(window["cross_entropy"][1]) / (time.monotonic() - since))
                values["tokens_per_second"] = speeds[-1]
                writer.write(step, "train", values)
                bar.log(step, values, _shown(values))
                window, since = None, time.monotonic()
            if evaluating:
                state = _agreed(agree, state, mesh, bar)
                # The model shares the state's arrays, which the next step's donation deletes.
                model, objective = dataclasses.replace(model, params=state.params), None
                if not stopping:  # a preempted machine has half a minute, too short to evaluate
                    watchdog.at(f"the evaluation at step {step}")
                    values = validate(state.params)
                    if not np.isfinite(values["loss"]):
                        raise FloatingPointError(
                            f"the loss is {values['loss']} at step {step}, no checkpoint of it is "
                            "kept; lower train.learning_rate or train.clip"
                        )
                    writer.write(step, "validation", values)
                    bar.log(step, values, _shown(values), split="held-out")
                    model, objective = model.counted(texts), values["loss"]
                watchdog.at(f"the checkpoint of step {step}")
                checkpoints.save(step, state.items, model.description, objective)
                if last:
                    checkpoints.wait()  # inside `Interrupt`, so that no signal ends the process
                since = time.monotonic()
            if stopping or (last and interrupt.asked is not None):
                bar.print(f"interrupted at step {step}; the same command with --resume continues")
                interrupt.leave()
    return model, float(np.median(speeds)) if speeds else 0.0


def _agreed(agree: Any, state: TrainState, mesh: jax.sharding.Mesh, bar: TrainingBar) -> TrainState:
    """The state with equal copies on all devices, so that the run goes on with what is saved."""
    if mesh.size == 1:
        return state
    state, unequal = agree(state)
    if int(unequal):
        bar.print(f"copies of the state differed in {int(unequal)} numbers; the first are kept")
    return state


def _check_run_dir(config: Config, resume: bool | None) -> list[int]:
    """The saved steps, after checking that they fit `resume` and are the same on all processes."""
    run_dir = Path(config.train.run_dir)
    saved = saved_steps(run_dir)
    check_same(f"the config of {run_dir}", zlib.crc32(to_json(config).encode()) >> 1)
    check_same(f"the last checkpoint in {run_dir}", max(saved, default=-1) + 1)
    if saved and resume is False:
        raise FileExistsError(
            f"{run_dir} holds a run already; --resume continues it, --train.run-dir names another"
        )
    if resume and not saved:
        raise FileNotFoundError(f"{run_dir} has no checkpoint; train without --resume")
    return saved


def _shown(values: dict[str, float]) -> dict[str, str]:
    """The metrics of a line on the terminal -> their names there."""
    return {name: text for name, text in _LINE.items() if name in values}
