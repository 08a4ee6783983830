"""Benchmarks of gamma draws in log space: the library's and jax's, values and gradients.

The error is that of the mean gradient. Since E log x = digamma(alpha), its derivative by log alpha
is alpha trigamma(alpha) for every right sampler. The mean is Monte Carlo, accurate to about 1e-2.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax import random
from nvib_jax.bench.timing import Case, Program, compile_program

Implementation = Literal["jax.random", "nvib_jax.random"]
CHECKED_ALPHAS = (1e-3, 0.1, 1.0, 10.0)
_DRAWS = 50_000
_LEAST, _MOST = 1e-3, 30.0


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """loggamma draws; pseudo-counts log-uniform from 0.001 to 30."""

    implementation: tuple[Implementation, ...] = ("jax.random", "nvib_jax.random")
    """jax.random.loggamma, and nvib_jax.random.loggamma."""
    shape: tuple[str, ...] = ("64x51", "64x257", "1000x1000")
    """Shapes of the draws, as ROWSxCOLUMNS."""
    passes: tuple[Literal["value", "gradient"], ...] = ("value", "gradient")
    """value alone, or gradient: the value and its gradient."""
    seed: int = 0
    """Seed of pseudo-counts and draws."""

    def groups(self) -> Iterator[list[Case]]:
        """A group for each shape and pass."""
        for shape in self.shape:
            size = sizes(shape)
            rng = np.random.default_rng(self.seed)
            drawn = rng.uniform(np.log(_LEAST), np.log(_MOST), size)
            log_alpha = jnp.asarray(drawn, jnp.float32)
            for which in self.passes:
                labels = {"shape": shape, "pass": which, "dtype": "float32"}
                yield [self._case(name, log_alpha, labels) for name in self.implementation]

    def _case(self, name: str, log_alpha: jax.Array, labels: dict[str, str]) -> Case:
        key = jax.random.key(self.seed)
        function = value if labels["pass"] == "value" else value_and_gradient

        def prepare() -> Program:
            return compile_program(function(sampler(name)), key, log_alpha)

        return Case(
            implementation=name,
            labels=labels,
            prepare=prepare,
            amount=float(log_alpha.size),
            unit="samples",
            error=lambda _: gradient_error(sampler(name)),
        )


Draw = Callable[[jax.Array, jax.Array], jax.Array]


def sizes(shape: str) -> tuple[int, ...]:
    """ "64x51" -> (64, 51).

    Raises:
      ValueError: not whole numbers with an x between them.
    """
    parts = shape.split("x")
    if not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(f"shape is {shape!r}; wanted whole numbers as in 64x51")
    return tuple(int(part) for part in parts)


def jax_loggamma(key: jax.Array, log_alpha: jax.Array) -> jax.Array:
    """`jax.random.loggamma` of log pseudo-counts."""
    return jax.random.loggamma(key, jnp.exp(log_alpha))


def sampler(name: str) -> Draw:
    """(key, log_alpha) -> log samples."""
    return jax_loggamma if name == "jax.random" else random.loggamma


def value(draw: Draw) -> Draw:
    """A function that returns the draws without a gradient."""

    def values(key: jax.Array, log_alpha: jax.Array) -> jax.Array:
        return draw(key, log_alpha)  # a new function each time, so that jit compiles it anew

    return values


def value_and_gradient(
    draw: Draw,
) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """A function that returns the draws, and the derivative of each by its log_alpha."""

    def both(key: jax.Array, log_alpha: jax.Array) -> tuple[jax.Array, jax.Array]:
        drawn, pull = jax.vjp(lambda a: draw(key, a), log_alpha)
        return drawn, pull(jnp.ones_like(drawn))[0]

    return both


@functools.cache
def gradient_error(draw: Draw, draws: int = _DRAWS) -> float:
    """Largest relative error of the mean gradient at `CHECKED_ALPHAS`; computed once per run."""
    alphas = np.array(CHECKED_ALPHAS)
    log_alpha = jnp.asarray(np.repeat(np.log(alphas)[:, None], draws, 1), jnp.float32)
    gradient = jax.jit(value_and_gradient(draw))(jax.random.key(1), log_alpha)[1]
    means = np.asarray(gradient, np.float64).mean(-1)
    with jax.enable_x64(True):
        trigamma = jax.scipy.special.polygamma(1, jnp.asarray(alphas, jnp.float64))
        want = alphas * np.asarray(trigamma)
    return float(np.max(np.abs(means / want - 1)))
