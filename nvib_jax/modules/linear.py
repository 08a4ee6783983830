"""The linear maps of every module here: Flax's, over rows, and laid out over a mesh."""

from collections.abc import Callable

import jax
from flax import nnx

from nvib_jax.mesh import OPEN, by_rows, constrain


class Linear(nnx.Linear):
    """`nnx.Linear` with all leading axes as one (`nvib_jax.mesh.by_rows` says why)."""

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """x (B, ..., D) -> (B, ..., F)."""
        return _by_rows(super().__call__, x)


class Linears(nnx.LinearGeneral):
    """`Linear` to C outputs side by side, `Linears(D, (C, F))`: a mesh divides each alike."""

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """x (B, ..., D) -> (B, ..., C, F)."""
        return _by_rows(super().__call__, x)


def _by_rows(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    out = by_rows(function, x)
    return constrain(out, "batch", *[OPEN] * (out.ndim - 1))
