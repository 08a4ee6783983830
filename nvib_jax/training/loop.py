"""The training run, top to bottom: data, model, steps, evaluation, checkpoints, summary."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax.data import Batches, PreparedData, prepare
from nvib_jax.data.batches import default_buckets
from nvib_jax.data.config import Split
from nvib_jax.evaluation import evaluate, summarize
from nvib_jax.evaluation.summary import write_summary
from nvib_jax.models.params import Params, merge
from nvib_jax.objective import elbo_weights
from nvib_jax.text_model import TextModel
from nvib_jax.training.checkpoint import Checkpoints, saved_steps
from nvib_jax.training.config import Config, to_json
from nvib_jax.training.interrupt import Interrupt
from nvib_jax.training.logging import MetricWriter, TrainingBar
from nvib_jax.training.sharding import data_mesh, place
from nvib_jax.training.state import (
    Metrics,
    TrainState,
    add_metrics,
    loss_and_metrics,
    make_optimizer,
    make_train_step,
    means,
)

_LINE = {
    "loss": "loss",
    "cross_entropy": "nats/token",
    "kl_gaussian": "KL_G",
    "kl_dirichlet": "KL_D",
    "share_kept": "kept",
    "tokens_per_second": "tokens/s",
}
_COUNTED = 1024  # training sentences from which the number of vectors is learned
SUMMARY_SAMPLES = 1000  # prior samples scored at the end, where the language is known


def train(config: Config, *, resume: bool = False, summary: bool = True) -> dict[str, float]:
    """Run a config from text to a summary.

    Args:
      config: the whole configuration; `train.run_dir` must not hold another run's checkpoints.
      resume: continue from the last checkpoint in `train.run_dir`.
      summary: measure at the end and write a page; without, `nvib evaluate` does.

    Returns:
      The final metrics on held-out sentences (`nvib_jax.evaluation.evaluate`), with
      "tokens_per_second" of training, compilation left out.

    Raises:
      FileExistsError: the run has checkpoints and `resume` is False.
      FileNotFoundError: `resume` without a checkpoint.
      FloatingPointError: the loss is not finite; the checkpoints before are kept.
      KeyboardInterrupt: after a last checkpoint; `resume` goes on from there.
      ValueError: a config that does not fit the data or the checkpoint.
    """
    run_dir = _check_run_dir(config, resume)
    bar = TrainingBar(config.train.steps)
    data = prepare(config.data, progress=bar.print)
    _check_batches(config, data)
    model = open_model(config, data)
    texts = data.sentences(data_split(data), config.train.eval_sentences)
    samples = SUMMARY_SAMPLES if config.data.source == "grammar" else 0

    weights = effective_weights(config)
    bar.print(
        f"effective weights, where the ELBO has 1: KL_G {weights[0]:.3g}, KL_D {weights[1]:.3g}"
    )
    checkpoints = Checkpoints(run_dir, keep=config.train.keep_checkpoints)
    writer = MetricWriter(run_dir, after=max(saved_steps(run_dir), default=0))
    try:
        model, speed = _fit(config, data, model, checkpoints, writer, bar, resume=resume)
    finally:
        checkpoints.close()
        writer.close()

    if not summary:
        return {"tokens_per_second": speed}
    bar.print("measuring on held-out sentences, beside the same model untrained")
    fresh = dataclasses.replace(model, params=open_model(config, data).params)  # compiled once
    fresh = fresh.counted(data.sentences("train", _COUNTED))
    scores = evaluate(model, texts, samples=samples, seed=config.train.seed)
    untrained = evaluate(fresh, texts, samples=samples, seed=config.train.seed)
    page = summarize(model, texts, scores, untrained, seed=config.train.seed)
    write_summary(run_dir, page, {"trained": scores, "untrained": untrained})
    bar.print(
        f"\n{page}\n\nwritten to {run_dir}: {', '.join(sorted(p.name for p in run_dir.iterdir()))}"
    )
    return scores | {"tokens_per_second": speed}


def _fit(
    config: Config,
    data: PreparedData,
    model: TextModel,
    checkpoints: Checkpoints,
    writer: MetricWriter,
    bar: TrainingBar,
    *,
    resume: bool,
) -> tuple[TextModel, float]:
    """All steps; returns the trained model and the median tokens/s of the log windows."""
    settings, mesh = config.train, data_mesh(config.data.batch_size)
    optimizer = make_optimizer(settings)
    state = TrainState(jnp.int32(0), model.params, optimizer.init(model.params))
    texts = data.sentences("train", _COUNTED)
    if resume:
        state = checkpoints.restore(state, model)
        model = _with_params(model, state, texts)
        bar.print(f"resumed at step {int(state.step)}")
    (Path(settings.run_dir) / "config.json").write_text(to_json(config), encoding="utf-8")
    state = place(state, mesh)
    step_function = make_train_step(
        model.graph, optimizer, config.objective, accumulate=settings.accumulate
    )
    validate = make_validation(config, model, data)
    key = jax.random.key(settings.seed)

    start = int(state.step)
    batches = _batches(config, data, "train").iterate(start)
    window, tokens, since, speeds = None, 0, time.monotonic(), []
    with bar, Interrupt() as interrupt:
        bar.advance(start)
        for step in range(start + 1, settings.steps + 1):
            batch = next(batches)
            state, metrics = step_function(state, place(_arrays(batch), mesh, batch=True), key)
            window = add_metrics(window, metrics)
            tokens += int(batch["mask"].sum() + (batch["index"] >= 0).sum())
            bar.advance(1)
            last = step == settings.steps or interrupt.asked
            if step % settings.log_every == 0 or last:
                values = means(window)  # waits for the device, so that the clock is right
                speeds.append(tokens / (time.monotonic() - since))
                values["tokens_per_second"] = speeds[-1]
                writer.write(step, "train", values)
                bar.log(step, values, _LINE)
                window, tokens, since = None, 0, time.monotonic()
            if step % settings.eval_every == 0 or last:
                jax.block_until_ready(state)
                paused = time.monotonic()
                values = validate(state.params)
                if not np.isfinite(values["loss"]):
                    raise FloatingPointError(
                        f"the loss is {values['loss']} at step {step}, no checkpoint of it is "
                        "kept; lower train.learning_rate or train.clip"
                    )
                writer.write(step, "validation", values)
                bar.log(step, values, {name: _LINE[name] for name in values}, split="held-out")
                model = _with_params(model, state, texts)
                checkpoints.save(state, model, values["loss"])
                since += time.monotonic() - paused
            if interrupt.asked and step < settings.steps:
                bar.print(f"interrupted at step {step}; the same command with --resume continues")
                raise KeyboardInterrupt
    return model, float(np.median(speeds)) if speeds else 0.0


def _check_run_dir(config: Config, resume: bool) -> Path:
    """The run's folder, once it is known to be free, or to hold what is to be continued."""
    if not config.train.run_dir:
        raise ValueError("train.run_dir is empty; wanted the folder of the run")
    run_dir = Path(config.train.run_dir)
    saved = saved_steps(run_dir)
    if saved and not resume:
        raise FileExistsError(
            f"{run_dir} holds a run already; --resume continues it, --train.run-dir names another"
        )
    if resume and not saved:
        raise FileNotFoundError(f"{run_dir} has no checkpoint; train without --resume")
    return run_dir


def _check_batches(config: Config, data: PreparedData) -> None:
    """Everything that does not fit the data or the devices, before a run is written."""
    data_mesh(config.data.batch_size, config.train.accumulate)
    for split in {"train", data_split(data)}:
        _batches(config, data, split)


def _with_params(model: TextModel, state: TrainState, texts: list[str]) -> TextModel:
    params = jax.tree.map(jnp.copy, state.params)  # the state's are donated
    return dataclasses.replace(model, params=params).counted(texts)


def make_validation(
    config: Config, model: TextModel, data: PreparedData
) -> Callable[[Params], dict[str, float]]:
    """The loss on held-out sentences: no dropout, the KLs at full weight, the same draws always."""
    graph, objective = model.graph, dataclasses.replace(config.objective, anneal="constant")
    batches = _batches(config, data, data_split(data), shuffle=False)
    count = min(len(batches), -(-config.train.eval_sentences // config.data.batch_size))
    chosen = np.linspace(0, len(batches) - 1, count).astype(int)  # every length has its share

    @jax.jit
    def measure(params: Params, batch: Any, key: jax.Array) -> Metrics:
        still = merge(graph, params)
        return loss_and_metrics(still, batch, key, jnp.int32(0), objective, train=False)[1]

    def part(params: Params, i: int) -> Metrics:
        key = jax.random.fold_in(jax.random.key(config.train.seed), i)
        return measure(params, _arrays(batches[i]), key)

    def validate(params: Params) -> dict[str, float]:
        return means(functools.reduce(add_metrics, (part(params, i) for i in chosen)))

    return validate


def effective_weights(config: Config) -> tuple[float, float]:
    """What both KLs weigh against a sentence's negative log-likelihood at full annealing."""
    lambdas = config.objective.lambda_gaussian, config.objective.lambda_dirichlet
    return lambdas if config.objective.units == "elbo" else elbo_weights(*lambdas, config.model.dim)


def open_model(config: Config, data: PreparedData) -> TextModel:
    """An untrained model that fits the data."""
    buckets = config.data.buckets or default_buckets(data)
    return TextModel.create(config, data.tokenizer, buckets, data.length_distribution)


def data_split(data: PreparedData) -> Split:
    """The split that training watches: validation where there is one."""
    return "validation" if "validation" in data.lengths else "train"


def _batches(config: Config, data: PreparedData, split: Split, *, shuffle: bool = True) -> Batches:
    return Batches(
        data,
        split,
        batch_size=config.data.batch_size,
        buckets=config.data.buckets,
        seed=config.train.seed,
        shuffle=shuffle,
    )


def _arrays(batch: Any) -> dict[str, Any]:
    return {"tokens": batch["tokens"], "mask": batch["mask"]}
