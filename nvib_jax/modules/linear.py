"""The linear map of every module here: Flax's, over rows."""

import jax
from flax import nnx


class Linear(nnx.Linear):
    """`nnx.Linear` with all leading axes as one.

    The same numbers. But the gradient of a product over two leading axes asks XLA for a transposed
    copy of every activation, which on CPUs takes as long as the product; over one it does not.
    """

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """x (..., D) -> (..., F)."""
        out = super().__call__(x.reshape(-1, x.shape[-1]))
        return out.reshape(*x.shape[:-1], out.shape[-1])
