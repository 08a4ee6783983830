"""Benchmarks of generation: cached decoding, and decoding that recomputes the whole prefix."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nvib_jax.bench import plain
from nvib_jax.bench.timing import Case, Program, compile_program
from nvib_jax.bench.train import model_config
from nvib_jax.generate import DecodingConfig, write
from nvib_jax.mixture import sample_prior
from nvib_jax.models.nvae import NVAE
from nvib_jax.models.params import Params, merge, split
from nvib_jax.models.special_ids import EOS
from nvib_jax.types import Mixture

_NEVER = -1e9  # the logit of end-of-sentence, so that every sentence has the same length
_BEAMS = 4
Implementation = Literal["prefix recomputed", "prefix, last logits only", "cached greedy", "beam 4"]


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Writing sentences of exactly so many tokens with the published model."""

    implementation: tuple[Implementation, ...] = get_args(Implementation)
    """Rows."""
    vocab_size: int = 8000
    """V."""
    sentences: int = 64
    """B."""
    length: int = 50
    """Tokens of each sentence."""
    dim: int = 256
    """Width D; feed-forward layers have 4 D."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype."""
    seed: int = 0
    """Seed of parameters and mixtures."""

    def groups(self) -> Iterator[list[Case]]:
        """One group of the implementations that were asked for."""
        graph, params, mixture = setting(self)
        labels = {
            "model": f"D{self.dim} V{self.vocab_size}",
            "sentences": f"{self.sentences} of {self.length} tokens",
            "dtype": self.dtype,
        }

        def case(name: str) -> Case:
            def prepare() -> Program:
                return compile_program(writer(name, graph, self.length), params, mixture)

            tokens = float(self.sentences * self.length)
            return Case(
                implementation=name, labels=labels, prepare=prepare, amount=tokens, unit="tokens"
            )

        yield [case(name) for name in self.implementation]


def setting(options: Generate) -> tuple[nnx.GraphDef, Params, Mixture]:
    """A model that never ends a sentence, and mixtures drawn from its prior."""
    model = NVAE(
        model_config(options.dim, options.dtype),
        vocab_size=options.vocab_size,
        max_length=options.length,
        rngs=nnx.Rngs(options.seed),
    )
    graph, params = split(model)
    params["output.bias"] = params["output.bias"].at[EOS].set(_NEVER)
    lengths = jnp.full((options.sentences,), options.length, jnp.int32)
    key = jax.random.key(options.seed)
    mixture = sample_prior(key, model.latent.prior, lengths, max_length=options.length)
    return graph, params, mixture


def writer(name: str, graph: nnx.GraphDef, length: int) -> Callable[[Params, Mixture], jax.Array]:
    """(parameters, mixture) -> ids (B, length)."""
    config = _decoding(name)

    def run(params: Params, mixture: Mixture) -> jax.Array:
        model = merge(graph, params)
        if config is None:
            return plain.decode_by_prefix(
                model, mixture, form="exact", length=length, last_only="last" in name
            )
        key = jax.random.key(0)
        return write(model, mixture, key, form="exact", max_length=length, config=config)

    return run


def _decoding(name: str) -> DecodingConfig | None:
    if name.startswith("prefix"):
        return None
    return DecodingConfig(method="beam", beams=_BEAMS) if "beam" in name else DecodingConfig()


def tokens_of(options: Generate, name: str) -> np.ndarray:
    """The ids (B, length) that a row writes, for inspection."""
    graph, params, mixture = setting(options)
    return np.asarray(jax.jit(writer(name, graph, options.length))(params, mixture))
