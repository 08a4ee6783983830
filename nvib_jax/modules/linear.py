"""The linear maps of all modules: Flax's, with leading axes merged, laid out over a mesh."""

from collections.abc import Callable

import jax
from flax import nnx

from nvib_jax.mesh import OPEN, by_rows, constrain


class Linear(nnx.Linear):
    """`nnx.Linear` that merges all leading axes to one (`nvib_jax.mesh.by_rows` says why)."""

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """x (B, ..., D) -> (B, ..., F)."""
        return _by_rows(super().__call__, x)


class Linears(nnx.LinearGeneral):
    """`Linears(D, (C, F))`: C linear maps in one product, each divided over a mesh by its F."""

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """x (B, ..., D) -> (B, ..., C, F)."""
        return _by_rows(super().__call__, x)


def _by_rows(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    out = by_rows(function, x)
    return constrain(out, "batch", *[OPEN] * (out.ndim - 1))
