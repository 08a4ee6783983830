"""Benchmarks of training steps of the published model: the library's and a plain version.

Both process the same sentences in a round: the plain one in batches padded to the longest length,
the library in batches of one bucket each. Work is counted in valid tokens, with end-of-sentence and
without padding.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from nvib_jax.bench import plain
from nvib_jax.bench.timing import Case, Program, memory_of
from nvib_jax.checks import check_choice
from nvib_jax.config import ObjectiveConfig, TrainConfig
from nvib_jax.data.batches import choose_buckets
from nvib_jax.models.nvae import NVAE, NVAEConfig
from nvib_jax.models.params import Params, split
from nvib_jax.training.optimizer import make_optimizer
from nvib_jax.training.step import TrainState, make_train_step

Implementation = Literal["plain", "nvib_jax"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)
SHORTEST, LONGEST = 8, 50
_FIRST_WORD = 4  # the ids below are PAD, BOS, EOS, UNK
_POOL = 20_000  # lengths from which buckets are chosen, as many as in a small epoch

Batch = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Training steps: the published model on synthetic sentences of 8 to 50 tokens."""

    implementation: tuple[Implementation, ...] = IMPLEMENTATIONS
    """plain: reference attention, everything padded to 50, whole logits; nvib_jax: the loop's."""
    vocab_size: int = 8000
    """V."""
    batch_size: int = 64
    """Sentences in a batch."""
    batches: int = 16
    """Batches in a round."""
    buckets: int = 8
    """Lengths that the library compiles for."""
    dim: int = 256
    """Width D; feed-forward layers have 4 D."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype."""
    seed: int = 0
    """Seed of sentences, parameters and draws."""

    def groups(self) -> Iterator[list[Case]]:
        """One group of the implementations that were asked for."""
        config = model_config(self.dim, self.dtype)
        buckets, sentences = shard(
            self.batches,
            self.batch_size,
            vocab_size=self.vocab_size,
            count=self.buckets,
            seed=self.seed,
        )
        lengths = [len(sentence) for sentence in sentences]
        labels = {"model": f"D{self.dim} V{self.vocab_size} B{self.batch_size}"}
        labels["dtype"] = self.dtype

        def case(name: str) -> Case:
            check_choice("implementation", name, IMPLEMENTATIONS)
            padded = [LONGEST] if name == "plain" else buckets
            batches = regroup(sentences, padded, self.batch_size, seed=self.seed)
            steps = Steps(name, config, self.vocab_size, batches, self.seed)
            return Case(
                implementation=name,
                labels=labels,
                prepare=steps.compile,
                flops=flops(config, self.vocab_size, lengths),
                amount=float(sum(lengths) + len(lengths)),
                unit="tokens",
                extra={"padded share": padded_share(batches), "steps": float(len(batches))},
            )

        yield [case(name) for name in self.implementation]


def model_config(dim: int = 256, dtype: Any = "float32") -> NVAEConfig:
    """The architecture of Henderson & Fehr (2023)."""
    return NVAEConfig(
        dim=dim,
        heads=1,
        latent_heads=1,
        hidden=4 * dim,
        encoder_layers=1,
        decoder_layers=1,
        norm="post",
        dropout=0.1,
        tied=False,
        pseudo_count="relu",
        alpha_delta=0.3,
        dtype=dtype,
    )


def shard(
    batches: int, batch_size: int, *, vocab_size: int, count: int, seed: int
) -> tuple[tuple[int, ...], list[np.ndarray]]:
    """(buckets, batches * batch_size sentences): lengths uniform in 8 ... 50, Zipf ids.

    Each bucket gets a number of full batches in proportion to its share of a large pool. In a real
    epoch of thousands of sentences the padding rows of the last batches hardly count, but in a
    shard of hundreds they would.
    """
    rng = np.random.default_rng(seed)
    pool = rng.integers(SHORTEST, LONGEST + 1, _POOL)
    buckets = choose_buckets(pool, count)
    of_bucket = np.searchsorted(buckets, pool)
    wanted = np.bincount(of_bucket, minlength=len(buckets)) / len(pool) * batches
    counts = np.floor(wanted).astype(int)
    counts[np.argsort(counts - wanted)[: batches - counts.sum()]] += 1
    lengths = np.concatenate(
        [rng.choice(pool[of_bucket == b], count * batch_size) for b, count in enumerate(counts)]
    )
    words = np.arange(_FIRST_WORD, vocab_size)
    zipf = 1.0 / np.arange(1, len(words) + 1)
    drawn = rng.choice(words, lengths.sum(), p=zipf / zipf.sum()).astype(np.int32)
    sentences = np.split(drawn, np.cumsum(lengths)[:-1])
    return buckets, [sentences[i] for i in rng.permutation(len(sentences))]


def regroup(
    sentences: Sequence[np.ndarray], buckets: Sequence[int], batch_size: int, *, seed: int
) -> list[Batch]:
    """Batches of one bucket each, in random order; every sentence is in exactly one."""
    place = np.searchsorted(np.asarray(buckets), [len(s) for s in sentences])
    batches = []
    for bucket, length in enumerate(buckets):
        members = [sentences[int(i)] for i in np.flatnonzero(place == bucket)]
        for start in range(0, len(members), batch_size):
            rows = members[start : start + batch_size]
            mask = np.zeros((batch_size, length), bool)
            tokens = np.zeros((batch_size, length), np.int32)
            for i, sentence in enumerate(rows):
                mask[i, : len(sentence)] = True
                tokens[i, : len(sentence)] = sentence
            batches.append({"tokens": tokens, "mask": mask})
    order = np.random.default_rng(seed).permutation(len(batches))
    return [batches[i] for i in order]


def padded_share(batches: Sequence[Batch]) -> float:
    """Share of positions without a token; end-of-sentence has a position and is a token."""
    places = sum(b["mask"].shape[0] * (b["mask"].shape[1] + 1) for b in batches)
    tokens = sum(b["mask"].sum() + b["mask"].any(-1).sum() for b in batches)
    return float(1 - tokens / places)


def flops(config: NVAEConfig, vocab_size: int, lengths: Sequence[int]) -> float:
    """Operations that a step needs, summed over sentences of these lengths, without padding.

    It counts matrix products only, 2 operations per multiply-add, times 3 for forward and backward.
    With n tokens, m = n + 1 targets and components, and hidden width h, the multiply-adds are:
    encoder layer 4 n D^2 + 2 n D h + 2 n^2 D; bottleneck 2 n D^2; decoder layer 6 m D^2 + 2 m D h
    + m^2 D (causal, so half) + 2 m^2 D; keys and values of the mixture 2 m D^2; output m D V.
    """
    d, h = config.dim, config.hidden
    n = np.asarray(lengths, np.float64)
    m = n + 1
    encoder = 4 * n * d * d + 2 * n * d * h + 2 * n * n * d
    decoder = 8 * m * d * d + 2 * m * d * h + 3 * m * m * d
    products = config.encoder_layers * encoder + 2 * n * d * d + config.decoder_layers * decoder
    return float(6 * np.sum(products + m * d * vocab_size))


class Steps:
    """One implementation's steps over a fixed list of batches; each step updates its state.

    Args:
      name: "plain" or "nvib_jax".
      config: the model.
      vocab_size: V.
      batches: from `regroup`; a round runs them all.
      seed: of parameters and draws.
    """

    def __init__(
        self, name: str, config: NVAEConfig, vocab_size: int, batches: list[Batch], seed: int
    ):
        self.batches = [{k: jnp.asarray(v) for k, v in batch.items()} for batch in batches]
        self.key = jax.random.key(seed)
        optimizer = make_optimizer(
            TrainConfig(
                optimizer="adam", learning_rate=1e-4, schedule="constant", warmup_steps=0, clip=0.1
            )
        )
        self.step = self._step(name, config, vocab_size, optimizer)
        sizes: dict[str, Any] = {"vocab_size": vocab_size, "max_length": LONGEST}
        params: Params = split(NVAE(config, **sizes, rngs=nnx.Rngs(seed)))[1]
        self.state = TrainState.create(params, optimizer)
        self.compiled: dict[tuple[int, ...], Any] = {}

    def _step(
        self,
        name: str,
        config: NVAEConfig,
        vocab_size: int,
        optimizer: optax.GradientTransformation,
    ) -> Callable[..., tuple[TrainState, Any]]:
        sizes: dict[str, Any] = {"vocab_size": vocab_size, "max_length": LONGEST}
        if name == "plain":
            return plain.make_step(split(plain.model(config, **sizes))[0], optimizer)
        graph = split(NVAE(config, **sizes, rngs=nnx.Rngs(0)))[0]
        return make_train_step(graph, optimizer, ObjectiveConfig())

    def compile(self) -> Program:
        """Compile every bucket's step; the program's memory is that of the largest."""
        start, memory = time.perf_counter(), []
        for batch in self.batches:
            shape = batch["tokens"].shape
            if shape not in self.compiled:
                step: Any = self.step
                self.compiled[shape] = step.lower(self.state, batch, self.key).compile()
                memory.append(memory_of(self.compiled[shape]))
        known = [m for m in memory if m is not None]
        seconds = time.perf_counter() - start
        return Program(self.run, (), seconds, max(known) if known else None)

    def run(self) -> Any:
        """Run all batches once; return the last step's metrics or loss."""
        report = None
        for batch in self.batches:
            step = self.compiled[batch["tokens"].shape]
            self.state, report = step(self.state, batch, self.key)
        return report
