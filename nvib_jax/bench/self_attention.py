"""Benchmarks of NVIB self-attention beside plain self-attention, forward and with gradients.

Beside the four projections of the plain layer, NVIB's has the maps to means, log variances and
pseudo-counts, two of D by D; so six products of that size stand against four, and what attention
itself costs is the same in the forms of head width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nvib_jax.bench.timing import Case, Program, compile_program
from nvib_jax.models.params import merge, split
from nvib_jax.modules import NVIBSelfAttention, SelfAttention
from nvib_jax.types import Prior

Implementation = Literal["plain", "expected_logit", "simplified", "drawn"]


@dataclass(frozen=True, kw_only=True)
class SelfAttentionSuite:
    """Self-attention of a layer: plain, and through a mixture that is read or drawn."""

    implementation: tuple[Implementation, ...] = ("plain", "expected_logit", "simplified", "drawn")
    """The plain layer; NVIB's, whose posterior is read in a form of head width, or drawn from."""
    batch: int = 16
    """Sequences."""
    length: tuple[int, ...] = (128, 512)
    """Tokens of each."""
    dim: int = 512
    """Width D."""
    heads: int = 8
    """Heads."""
    causal: bool = False
    """Whether each token sees only those before it."""
    passes: tuple[Literal["value", "gradient"], ...] = ("value", "gradient")
    """value alone, or gradient: the gradients by the input and all parameters."""
    seed: int = 0
    """Seed of parameters, inputs and draws."""

    def groups(self) -> Iterator[list[Case]]:
        """A group for each length and pass."""
        for length in self.length:
            for which in self.passes:
                yield [self._case(name, length, which) for name in self.implementation]

    def _case(self, name: str, length: int, which: str) -> Case:
        rng = np.random.default_rng(self.seed)
        x, slope = (
            jnp.asarray(rng.normal(size=(self.batch, length, self.dim)), jnp.float32)
            for _ in range(2)
        )
        mask, key = jnp.ones(x.shape[:2], bool), jax.random.key(self.seed)

        def prepare() -> Program:
            graph, params = split(self._layer(name))

            def value(params: Any, x: jax.Array) -> jax.Array:
                layer = merge(graph, params)
                if name == "plain":
                    return layer(x, None if self.causal else mask)
                how = {"key": key} if name == "drawn" else {"form": name}
                return layer(x, mask, causal=self.causal, **how)[0]

            def gradient(params: Any, x: jax.Array) -> Any:
                return jax.grad(lambda p, x: jnp.sum(value(p, x) * slope), argnums=(0, 1))(
                    params, x
                )

            return compile_program(value if which == "value" else gradient, params, x)

        return Case(
            implementation=name,
            labels={
                "shape": f"B {self.batch} N {length} D {self.dim} H {self.heads}",
                "pass": which,
                "dtype": "float32",
            },
            prepare=prepare,
            amount=float(mask.size),
            unit="tokens",
        )

    def _layer(self, name: str) -> Any:
        rngs = nnx.Rngs(self.seed)
        if name == "plain":
            return SelfAttention(self.dim, self.heads, rngs=rngs)
        prior = Prior.standard(self.dim, alpha_delta=0.25)
        return NVIBSelfAttention(self.dim, self.heads, prior=prior, rngs=rngs)
