"""Trains the causal language model of `language_model.py`, once for each corpus.

`python -m nvib_jax.evaluation.language_model_training CACHE CONFIG` is what `begin_language_model`
runs beside an evaluation.
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

from nvib_jax.data.batches import choose_buckets, endless_epochs
from nvib_jax.data.prepared import PreparedData
from nvib_jax.data.tokenizer import Tokenizer
from nvib_jax.evaluation.causal_transformer import LanguageModelConfig, targets_of
from nvib_jax.evaluation.language_model import (
    FORMAT,
    LanguageModel,
    Progress,
    build,
    digest,
    padded,
    tokenize,
)
from nvib_jax.models.params import merge, split
from nvib_jax.objective.cross_entropy import cross_entropy
from nvib_jax.progress import track

BUCKETS = 4  # number of padded lengths, each compiled once
TRAINING_SENTENCES = 100_000  # most sentences of a prepared corpus that are used
BESIDE_STEPS = 500  # shorter training ends about when another process has started


def train_language_model(
    texts: Sequence[str],
    tokenizer: Tokenizer,
    config: LanguageModelConfig,
    *,
    validation: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> LanguageModel:
    """Train by maximum likelihood for `config.steps` steps, without early stopping.

    Args:
      texts: training sentences; empty ones count too.
      tokenizer: the data's tokenizer.
      config: architecture and training.
      validation: sentences whose perplexity is reported at the end; training does not see them.
      progress: called with a line of text, ten times or more.

    Raises:
      ValueError: no texts.
    """
    import optax

    from nvib_jax.config import TrainConfig
    from nvib_jax.training.optimizer import make_optimizer

    report = progress or (lambda line: None)
    rows = tokenize(texts, tokenizer)
    lengths = np.array([len(row) for row in rows])
    buckets = choose_buckets(np.maximum(lengths, 1), BUCKETS)
    graph, params = split(build(config, tokenizer))
    warmup, peak = min(100, config.steps // 10), config.learning_rate
    optimizer = make_optimizer(
        TrainConfig(steps=config.steps, learning_rate=peak, warmup_steps=warmup)
    )
    # The loss is divided by a constant and not by the batch's own number of tokens, because that
    # would give tokens of short sentences more weight.
    tokens_a_batch = config.batch_size * float(np.mean(lengths + 1))

    @jax.jit
    def step(params, state, index, tokens, lengths):
        key = jax.random.fold_in(jax.random.key(config.seed), index)

        def loss(params):
            model = merge(graph, params)
            targets, counted = targets_of(tokens, lengths)
            kernel, bias = model.output_layer()
            nll = cross_entropy(model.states(tokens, key), kernel, bias, targets, counted)
            return nll / tokens_a_batch

        value, grads = jax.value_and_grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to int32 powers
            updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    batches = _batches(rows, buckets, config)
    for index in track(range(config.steps), "language model", total=config.steps, unit="steps"):
        params, state, loss = step(params, state, np.int32(index), *next(batches))
        losses.append(loss)
        if (index + 1) % max(config.steps // 10, 1) == 0:
            mean = np.mean(jax.device_get(losses))
            report(f"language model: step {index + 1:,}, {mean:.3f} nats a token in training")
            losses.clear()
    model = LanguageModel(config, graph, params, tokenizer, buckets)
    if validation is not None:
        report(f"language model: perplexity {model.perplexity(validation):.3f} on held-out text")
    return model


def cached_language_model(
    data: PreparedData, config: LanguageModelConfig, progress: Progress | None = None
) -> LanguageModel:
    """The language model of a corpus's training split; it is trained once and saved by the cache.

    Args:
      data: the corpus; at most `TRAINING_SENTENCES` are used, spread evenly over the split.
      config: architecture and training.
      progress: called with a line of text.
    """
    report = progress or (lambda line: None)
    final = _path(data, config)
    if final.is_file():
        try:
            return LanguageModel.load(final, data.tokenizer)
        except ValueError as error:
            report(f"{error}; training it again")
    size = len(data.split_lengths("train"))
    chosen = np.linspace(0, size - 1, min(size, TRAINING_SENTENCES)).astype(int)
    texts = [data.tokenizer.decode(ids) for ids in data.tokens("train", chosen)]
    model = train_language_model(texts, data.tokenizer, config, progress=progress)
    model.save(final)
    report(f"language model: kept in {final}")
    return model


def _path(data: PreparedData, config: LanguageModelConfig) -> Path:
    """Where the language model of a corpus is kept."""
    key = json.dumps([FORMAT, data.metadata["hash"], dataclasses.asdict(config)], sort_keys=True)
    return data.path.parent / f"language_model-{digest(key.encode())[:16]}.npz"


@contextmanager
def begin_language_model(
    data: PreparedData, config: LanguageModelConfig, progress: Progress
) -> Iterator[Callable[[], LanguageModel]]:
    """Train a corpus's language model while other things are measured.

    On CPUs it trains in a process of its own: a model this small keeps one core busy, however many
    there are, and threads of one process would wait for each other in XLA's pool.

    Args:
      data: as in `cached_language_model`.
      config: architecture and training.
      progress: called with a line of text.

    Yields:
      A function that waits for the training and returns the model. At the end of the `with`
      statement a process that nobody waited for is killed.
    """
    process = None
    if (
        jax.default_backend() == "cpu"
        and config.steps >= BESIDE_STEPS
        and not _path(data, config).is_file()
    ):
        progress("language model: trained by a process beside this one")
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                __name__,
                str(data.path),
                json.dumps(dataclasses.asdict(config)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait() -> LanguageModel:
        if process is not None and process.wait():
            progress("language model: the process beside this one failed")
        return cached_language_model(data, config, progress)  # if it failed, training says why

    try:
        yield wait
    finally:
        if process is not None:
            process.kill()
            process.wait()


def reverse_perplexity(
    samples: Sequence[str],
    *,
    held_out: Sequence[str],
    tokenizer: Tokenizer,
    config: LanguageModelConfig,
    progress: Progress | None = None,
) -> float:
    """Perplexity per token of held-out texts under a language model trained only on samples.

    It is high if samples are wrong or lack variety (Zhao et al. 2018). It also falls with the
    number of samples, so compare equal numbers only. The value for equally many training sentences
    shows how good it can get.

    Raises:
      ValueError: no samples, or no held-out texts.
    """
    tokenize(held_out, tokenizer)  # raises for bad texts before the training instead of after it
    model = train_language_model(samples, tokenizer, config, progress=progress)
    return model.perplexity(held_out)


def _batches(
    rows: Sequence[list[int]], buckets: Sequence[int], config: LanguageModelConfig
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless epochs, each with every sentence once, in batches of one bucket, in random order."""
    lengths = [len(row) for row in rows]
    for members, width in endless_epochs(lengths, buckets, config.batch_size, config.seed):
        yield padded([rows[i] for i in members], width, config.batch_size)


if __name__ == "__main__":
    from nvib_jax.compilation_cache import use_compilation_cache

    use_compilation_cache()
    cached_language_model(
        PreparedData.load(sys.argv[1]), LanguageModelConfig(**json.loads(sys.argv[2]))
    )
