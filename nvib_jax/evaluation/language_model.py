"""A causal language model of the data, for scoring samples: texts in, log-probabilities out.

It predicts each token from the ones before it (causal_transformer.py). It uses the data's own
tokenizer, so perplexities per token may be compared only between models with the same tokenizer.

On the embedded grammar, whose probabilities are known, `LanguageModelConfig()` trained on 60,000
sentences gives 4,000 others a mean log-probability of -31.20 nats, the grammar itself -30.81: a gap
of .39 +- .01 (standard error), perplexity 19.48 a token beside the exact 18.77. By
`train_language_model(prepare(DataConfig()).sentences("train"), ...)` and `log_prob` of
`default_grammar().sentences(12345, 4000)`; 2 CPU cores shared with others' work, jax 0.10.2: 322 s,
175 s of CPU time for the whole script.
"""

import dataclasses
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nvib_jax.data.batches import choose_buckets
from nvib_jax.data.prepared import PreparedData
from nvib_jax.data.tokenizer import Tokenizer
from nvib_jax.evaluation.causal_transformer import (
    CausalTransformer,
    LanguageModelConfig,
    targets_of,
    token_log_probs,
)
from nvib_jax.files import draft_of
from nvib_jax.models.params import Params, merge, split
from nvib_jax.objective.cross_entropy import cross_entropy
from nvib_jax.progress import track

FORMAT = 1  # part of the cache's key; raise it when the same config would train another model
ROWS = 64  # sentences that are scored at a time
BUCKETS = 4  # number of padded lengths, each compiled once
TRAINING_SENTENCES = 100_000  # most sentences of a prepared corpus that are used

Progress = Callable[[str], None]


@dataclass(frozen=True)
class LanguageModel:
    """A trained causal language model.

    Attributes:
      config: architecture and training.
      graph: the module's static structure.
      params: flat dict of arrays.
      tokenizer: text <-> ids.
      buckets: padded lengths, rising. For longer sentences the last one is doubled until they fit.
    """

    config: LanguageModelConfig
    graph: nnx.GraphDef
    params: Params
    tokenizer: Tokenizer
    buckets: tuple[int, ...]
    _compiled: dict[str, Callable[..., Any]] = field(default_factory=dict, repr=False)

    def log_prob(self, texts: Sequence[str]) -> np.ndarray:
        """`log p(text)`: the sum over its tokens and end-of-sentence.

        Args:
          texts: any; "" is a sentence of an end-of-sentence only, and no text is too long.

        Returns:
          float64 nats, shape (len(texts),).

        Raises:
          ValueError: no texts.
        """
        rows = _tokenize(texts, self.tokenizer)
        widths = np.array([self._width(len(row)) for row in rows])
        log_p = np.empty(len(rows))
        for width in np.unique(widths):
            members = np.flatnonzero(widths == width)
            for start in range(0, len(members), ROWS):
                part = members[start : start + ROWS]
                tokens, lengths = _pad([rows[i] for i in part], int(width), ROWS)
                scores = np.asarray(self._score(tokens, lengths), np.float64)
                log_p[part] = scores.sum(axis=1)[: len(part)]
        return log_p

    def token_counts(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of each text, end-of-sentence included: int64, shape (len(texts),).

        Raises:
          ValueError: no texts.
        """
        return np.array([len(row) + 1 for row in _tokenize(texts, self.tokenizer)], np.int64)

    def perplexity(self, texts: Sequence[str]) -> float:
        """`exp(-sum of log p / sum of tokens)`, where each end-of-sentence counts as a token.

        Raises:
          ValueError: no texts.
        """
        return float(np.exp(-self.log_prob(texts).sum() / self.token_counts(texts).sum()))

    def save(self, path: str | Path) -> None:
        """Write one .npz file: the parameters, and JSON with config, buckets and tokenizer hash."""
        about = {
            "format": FORMAT,
            "config": dataclasses.asdict(self.config),
            "buckets": self.buckets,
            "tokenizer": _digest(self.tokenizer.to_bytes()),
        }
        arrays = {name: np.asarray(array) for name, array in self.params.items()}
        with draft_of(path) as draft, draft.open("wb") as file:
            np.savez(file, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path, tokenizer: Tokenizer) -> "LanguageModel":
        """Read what `save` wrote.

        Args:
          path: the file.
          tokenizer: the one that the model was trained with.

        Raises:
          FileNotFoundError: no such file.
          ValueError: the file has another tokenizer or format, or is not a language model.
        """
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as saved:
                arrays = {name: jnp.asarray(saved[name]) for name in saved.files if name != "about"}
                about = json.loads(str(saved["about"]))
        except (ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is no saved language model: {error}") from error
        if about["format"] != FORMAT:
            raise ValueError(f"{path} has format {about['format']}; this version reads {FORMAT}")
        if about["tokenizer"] != _digest(tokenizer.to_bytes()):
            raise ValueError(f"{path} was trained with another tokenizer than the one given")
        config = LanguageModelConfig(**about["config"])
        graph, _ = split(_build(config, tokenizer))
        return cls(config, graph, arrays, tokenizer, tuple(about["buckets"]))

    def _score(self, tokens: np.ndarray, lengths: np.ndarray) -> jax.Array:
        if "score" not in self._compiled:
            graph = self.graph
            self._compiled["score"] = jax.jit(
                lambda params, *arrays: token_log_probs(merge(graph, params), *arrays)
            )
        return self._compiled["score"](self.params, tokens, lengths)

    def _width(self, length: int) -> int:
        width = next((bucket for bucket in self.buckets if bucket >= length), self.buckets[-1])
        while width < length:
            width *= 2
        return width


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
    rows = _tokenize(texts, tokenizer)
    lengths = np.array([len(row) for row in rows])
    buckets = choose_buckets(np.maximum(lengths, 1), BUCKETS)
    graph, params = split(_build(config, tokenizer))
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
    key = json.dumps([FORMAT, data.metadata["hash"], dataclasses.asdict(config)], sort_keys=True)
    root, digest = data.path.parent, _digest(key.encode())[:16]
    final = root / f"language_model-{digest}.npz"
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
    _tokenize(held_out, tokenizer)  # raises for bad texts before the training instead of after it
    model = train_language_model(samples, tokenizer, config, progress=progress)
    return model.perplexity(held_out)


def _build(config: LanguageModelConfig, tokenizer: Tokenizer) -> CausalTransformer:
    return CausalTransformer(config, tokenizer.vocab_size, rngs=nnx.Rngs(config.seed))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _tokenize(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    if isinstance(texts, str) or not texts:
        raise ValueError(f"texts is {texts!r}; wanted a list of at least one text")
    return tokenizer.encode_batch(list(texts))


def _pad(rows: Sequence[list[int]], width: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Ragged ids -> int32 tokens (count, width) and lengths (count,), -1 for rows of padding."""
    tokens = np.full((count, width), Tokenizer.special.pad, np.int32)
    lengths = np.full(count, -1, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        lengths[i] = len(row)
    return tokens, lengths


def _batches(
    rows: Sequence[list[int]], buckets: Sequence[int], config: LanguageModelConfig
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Endless epochs, each with every sentence once, in batches of one bucket, in random order."""
    rng = np.random.default_rng(config.seed)
    bucket_of = np.searchsorted(buckets, [len(row) for row in rows])
    while True:
        plan = []
        for bucket, width in enumerate(buckets):
            members = rng.permutation(np.flatnonzero(bucket_of == bucket))
            for start in range(0, len(members), config.batch_size):
                plan.append((members[start : start + config.batch_size], width))
        for index in rng.permutation(len(plan)):
            members, width = plan[index]
            yield _pad([rows[i] for i in members], width, config.batch_size)
