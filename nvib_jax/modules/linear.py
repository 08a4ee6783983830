"""The linear maps of every module here: Flax's, over rows, and laid out over a mesh."""

import jax
from flax import nnx

from nvib_jax.mesh import OPEN, constrain


class Linear(nnx.Linear):
    """`nnx.Linear` with all leading axes as one.

    The same numbers. But the gradient of a product over two leading axes asks XLA for a transposed
    copy of every activation, which on CPUs takes as long as the product; over one it does not.
    """

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """x (B, ..., D) -> (B, ..., F)."""
        return _by_rows(super().__call__, x)


class Linears(nnx.LinearGeneral):
    """`Linear` to C outputs side by side, `Linears(D, (C, F))`: a mesh divides each alike."""

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """x (B, ..., D) -> (B, ..., C, F)."""
        return _by_rows(super().__call__, x)


def _by_rows(function, x: jax.Array) -> jax.Array:
    out = function(x.reshape(-1, x.shape[-1]))
    out = out.reshape(*x.shape[:-1], *out.shape[1:])
    return constrain(out, "batch", *[OPEN] * (out.ndim - 1))
