"""Denoising attention: `Mixture` and queries -> the expected denoised vector of each query.

`denoising_attention` checks and dispatches; `inputs` holds the algebra; `reference` is the
equation as written; `xla` the chunked primitive.
"""

import jax
import jax.numpy as jnp

from nvib_jax.attention import reference, xla
from nvib_jax.attention.inputs import FORMS, Memory, make_memory
from nvib_jax.attention.xla import attention_weights
from nvib_jax.shapes import check_choice, check_mask, check_shapes
from nvib_jax.types import Mixture

__all__ = [
    "FORMS",
    "IMPLEMENTATIONS",
    "Memory",
    "attend",
    "attention_weights",
    "denoising_attention",
    "make_memory",
]

IMPLEMENTATIONS = ("reference", "xla", "pallas")


def attend(
    query: jax.Array,
    memory: Memory,
    *,
    value_bias: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Attend to a `Memory` made once: what cached decoding repeats at every step.

    Args:
      query: projected, unscaled, shape (B, T, H, E).
      memory: from `make_memory`.
      value_bias: shape (H, E), or None.
      mask: bool, shape (B, T, S), or None. At least one component a query must be visible.

    Returns:
      shape (B, T, H, E).

    Raises:
      ValueError: naming the argument, the shape it has and the shape it should have.
    """
    check_mask("mask", mask)
    check_shapes(
        **{
            "query": (query, "B T H E"),
            "memory.key": (memory.key, "B S H E"),
            "value_bias": (value_bias, "H E"),
            "mask": (mask, "B T S"),
        }
    )
    out = xla.attend(query, memory, mask)
    return out if value_bias is None else out + value_bias.astype(out.dtype)


def denoising_attention(
    query: jax.Array,
    mixture: Mixture,
    *,
    key_kernel: jax.Array,
    value_kernel: jax.Array,
    value_bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    form: str = "exact",
    implementation: str | None = None,
) -> jax.Array:
    """Attention as denoising: the mean of p(v | u) for `v ~ F` seen as `u = v + N(0, sqrt(E))`.

    Args:
      query: projected but not scaled, shape (B, T, H, E).
      mixture: what is attended to, S components in R^D. For form "expected_logit" give it the
        weights of `expected(posterior, log_weights="geometric")`.
      key_kernel: shape (D, H, E). A bias on the keys would cancel, so there is none.
      value_kernel: shape (D, H, E).
      value_bias: shape (H, E), or None.
      mask: bool, shape (B, T, S), True = visible, on top of `mixture.mask`. At least one component
        a query must be visible (component 0 always is, unless you hide it).
      form: "exact" is the definition; "published" drops a query term, as released code does;
        "simplified" drops the log-determinant and the interpolation; "expected_logit" averages
        the logit of a draw. The same for impulses. `nvib_jax.attention.inputs` has the equations.
      implementation: "reference", "xla", "pallas", or None for the fastest that can.

    Returns:
      shape (B, T, H, E), the query's dtype; softmax and biases are float32 throughout.

    Raises:
      ValueError: naming the argument, the shape it has and the shape it should have.
      NotImplementedError: a named implementation that cannot do what is asked.

    Source: Henderson & Fehr (2023); DESIGN 3.5.
    """
    check_choice("form", form, FORMS)
    check_mask("mask", mask)
    mixture.check()
    check_shapes(
        **{
            "query": (query, "B T H E"),
            "mixture.mean": (mixture.mean, "B S D"),
            "key_kernel": (key_kernel, "D H E"),
            "value_kernel": (value_kernel, "D H E"),
            "value_bias": (value_bias, "H E"),
            "mask": (mask, "B T S"),
        }
    )
    if implementation is not None:
        check_choice("implementation", implementation, IMPLEMENTATIONS)
    kernels = {"key_kernel": key_kernel, "value_kernel": value_kernel}
    if implementation == "pallas":
        raise NotImplementedError("implementation='pallas' is not written yet; use 'xla' or None")
    if implementation == "reference":
        out = reference.attend(query, mixture, **kernels, mask=mask, form=form).astype(query.dtype)
        return out if value_bias is None else out + value_bias.astype(out.dtype)
    kernels = {name: kernel.astype(query.dtype) for name, kernel in kernels.items()}
    memory = make_memory(mixture, **kernels, form=form)
    return attend(
        query, memory, value_bias=value_bias, mask=jnp.asarray(mask) if mask is not None else None
    )
