"""Benchmarks of a pretrained Transformer, re-read, beside the same one as it is: forward.

The weights are random, which does not matter to time. A reading changes what the projections read
and adds a gate; `attend` is asked for its log-sum-exp, and a plain cache stays one.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nvib_jax.bench.timing import Case, Program, compile_program
from nvib_jax.models.params import merge, split
from nvib_jax.pretrained.architecture import Architecture
from nvib_jax.pretrained.attention import View
from nvib_jax.pretrained.config_json import architecture
from nvib_jax.pretrained.transformer import Transformer
from nvib_jax.reading import Reading, Tau
from nvib_jax.types import Prior

Implementation = Literal["plain", "expected_logit", "simplified", "published", "exact"]
# Base size, but for the vocabulary, whose product is no part of what is compared.
BERT = {
    "model_type": "bert",
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_positions": 1024}


@dataclass(frozen=True, kw_only=True)
class PretrainedSuite:
    """A stack of BERT-base's or GPT-2's layers, plain and read in each form."""

    implementation: tuple[Implementation, ...] = (
        *("plain", "expected_logit", "simplified", "published", "exact"),
    )
    """The model as it is, and its readings."""
    family: tuple[Literal["bert", "gpt2"], ...] = ("bert", "gpt2")
    """Whose layers."""
    batch: int = 8
    """Texts."""
    length: tuple[int, ...] = (128,)
    """Tokens of each."""
    layers: int = 2
    """Layers; all are alike."""
    vocab_size: int = 1000
    """Vocabulary."""
    seed: int = 0
    """Seed of parameters and tokens."""

    def groups(self) -> Iterator[list[Case]]:
        """A group for each family and length."""
        for family in self.family:
            for length in self.length:
                yield [self._case(name, family, length) for name in self.implementation]

    def _case(self, name: str, family: str, length: int) -> Case:
        shape = (self.batch, length)
        rng = np.random.default_rng(self.seed)
        tokens = jnp.asarray(rng.integers(3, self.vocab_size, shape), jnp.int32)
        mask = jnp.asarray(np.arange(length)[None] < length - np.arange(self.batch)[:, None])

        def prepare() -> Program:
            about = self._architecture(family)
            graph, params = split(Transformer(about, rngs=nnx.Rngs(self.seed)))
            readings = {} if name == "plain" else self._readings(about, name)

            def value(params: Any, readings: Any, tokens: jax.Array, mask: jax.Array) -> jax.Array:
                return merge(graph, params).states(tokens, mask, view=View(readings))

            return compile_program(value, params, readings, tokens, mask)

        return Case(
            implementation=name,
            labels={
                "model": f"{family}, {self.layers} layers of 768",
                "shape": f"B {self.batch} N {length}",
                "dtype": "float32",
            },
            prepare=prepare,
            amount=float(np.prod(shape)),
            unit="tokens",
        )

    def _architecture(self, family: str) -> Architecture:
        depth = {"bert": "num_hidden_layers", "gpt2": "n_layer"}[family]
        config = {**{"bert": BERT, "gpt2": GPT2}[family], depth: self.layers}
        about = architecture({**config, "vocab_size": self.vocab_size})
        return dataclasses.replace(about, dropout=0.0)

    def _readings(self, about: Architecture, form: str) -> dict[str, Reading]:
        """Of a prior that is like the data: layer norm gives numbers of size 1."""
        dim = about.dim
        energy = jnp.float32(dim / (2 * about.head_dim**0.5))
        prior = Prior(jnp.full(dim, 0.1), jnp.full(dim, -0.1), energy, jnp.float32(0.0))
        sigma = 0.0 if form == "expected_logit" else 0.3
        tau = Tau(jnp.float32(1.0), jnp.float32(sigma), jnp.float32(1.0))
        return {name: Reading(prior, tau, form) for name in about.attentions}
