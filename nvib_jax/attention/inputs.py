"""Every form of denoising attention as one primitive: keys, values and one bias per key.

A query `u` in R^D is taken as a vector of the mixture plus noise of variance r = sqrt(E) per
dimension (Henderson & Fehr 2023, arXiv 2207.13529). With t_i = s2_i + r, the posterior mean of that
vector is the softmax average of

    logit_i = log pi_i - 1/2 sum_d (u_d - mu_id)^2 / t_id - 1/2 sum_d log t_id
    value_i = (s2_i/t_i) * u + (r/t_i) * mu_i

With u_h = W_k,h^T q_h for each head, u_h.x = q_h.(W_k,h x). So keys and values of head width E are
enough for all but two terms. Those two need width D, but all heads share their arrays:

    out_h = W_v,h [ (sum_i a_i s2_i/t_i) * u_h ] + sum_i a_i W_v,h (r mu_i/t_i)
    a = softmax_i( q_h . W_k,h (mu_i/t_i)  +  (u_h*u_h) . (s2_i/(2 r t_i))  +  bias_i )

Here every logit has + 1/2 sum u^2/r + D/2 log r added, which the softmax cancels because it is the
same for all keys; that is why s2/(2 r t) = 1/(2r) - 1/(2t) stands where -1/(2t) stood. The added
constant makes both terms small where s2 is small, so that no two numbers in the hundreds are
subtracted from each other, and impulses (s2 = 0) need neither term.

    form             key, value      bias beyond log pi                            shared terms
    exact            t               - 1/2 sum mu^2/t - 1/2 sum log(t/r)           u*u, s2/t
    published        t               - 1/2 sum mu^2/t - 1/2 sum log(t/r)           s2/t
    simplified       t               - 1/2 sum mu^2/t                              none
    expected_logit   t = r           - 1/2 sum (mu^2 + s2)/r                       none
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from nvib_jax.checks import check_choice, check_shapes
from nvib_jax.mesh import by_rows
from nvib_jax.types import Mixture, typed

FORMS = ("exact", "published", "simplified", "expected_logit")
# It is finite, so that no softmax and no gradient meets inf - inf. It is below every log weight
# that can be drawn (a pseudo-count of 1e-35 gives -1e36), so that a hidden component never wins.
MASK_VALUE = -2e38


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Memory:
    """A mixture's keys, values and biases; computed once, read by every query.

    Attributes:
      key: W_k,h (mu/t), shape (B, H, S, E). The head axis is before S, because every product then
        reads a head's keys from contiguous memory.
      value: W_v,h (r mu/t), shape (B, H, S, E).
      bias: one number per key, float32, shape (B, S); MASK_VALUE where not present.
      shared_key: s2/(2rt), which multiplies u*u, float32, shape (B, S, D), or None.
      shared_value: s2/t, the share of the query in the value, shape (B, S, D), or None.
      key_kernel: W_k, shape (D, H, E), which maps queries back into R^D; None if no term needs it.
      value_kernel: W_v, shape (D, H, E), likewise.
    """

    key: jax.Array
    value: jax.Array
    bias: jax.Array
    shared_key: jax.Array | None = None
    shared_value: jax.Array | None = None
    key_kernel: jax.Array | None = None
    value_kernel: jax.Array | None = None


def make_memory(
    mixture: Mixture, *, key_kernel: jax.Array, value_kernel: jax.Array, form: str = "exact"
) -> Memory:
    """Project a mixture to keys, values and biases, once for any number of queries.

    Args:
      mixture: S components.
      key_kernel: shape (D, H, E); its dtype is the compute dtype.
      value_kernel: shape (D, H, E).
      form: one of `FORMS`; all four are equal for impulses. "expected_logit" reads the "geometric"
        weights of `nvib_jax.expected`, the others its "mean" weights.

    Returns:
      A `Memory`. Its size is linear in S and it does not depend on the queries.

    Raises:
      ValueError: an unknown form, one that may not read the mixture's weights, or shapes or dtypes
        that do not fit.

    >>> lengths = jnp.array([3, 1])
    >>> drawn = sample_prior(jax.random.key(0), Prior.standard(8), lengths, max_length=3)
    >>> kernel = jnp.ones((8, 2, 4))
    >>> memory = make_memory(drawn, key_kernel=kernel, value_kernel=kernel)
    >>> memory.key.shape, memory.bias.shape
    ((2, 2, 4, 4), (2, 4))
    """
    mixture = checked_mixture(mixture, form)
    check_shapes(
        **{
            "mixture.mean": (mixture.mean, "B S D"),
            "key_kernel": (key_kernel, "float D H E"),
            "value_kernel": (value_kernel, "float D H E"),
        }
    )
    return _make_memory(mixture, key_kernel, value_kernel, form)


@partial(jax.jit, static_argnums=3)
def _make_memory(
    mixture: Mixture, key_kernel: jax.Array, value_kernel: jax.Array, form: str
) -> Memory:
    dtype, root = key_kernel.dtype, float(key_kernel.shape[-1]) ** 0.5
    f32 = accumulator(dtype)
    mean, variance = moments(mixture, f32)
    bias = jnp.where(mixture.present, mixture.log_weights.astype(f32), MASK_VALUE)

    if mixture.log_variance is None or form == "expected_logit":
        bias = bias - jnp.sum(jnp.square(mean) + variance, axis=-1) / (2 * root)
        return Memory(
            key=_by_head((mean / root).astype(dtype), key_kernel),
            value=_by_head(mean.astype(dtype), value_kernel),
            bias=bias,
        )

    total = variance + root
    bias = bias - 0.5 * jnp.sum(jnp.square(mean) / total, axis=-1)
    if form != "simplified":
        bias = bias - 0.5 * jnp.sum(jnp.log1p(variance / root), axis=-1)
    interpolates = form != "simplified"
    return Memory(
        key=_by_head((mean / total).astype(dtype), key_kernel),
        value=_by_head((root * mean / total).astype(dtype), value_kernel),
        bias=bias,
        shared_key=0.5 * variance / (root * total) if form == "exact" else None,
        shared_value=(variance / total).astype(dtype) if interpolates else None,
        key_kernel=key_kernel if interpolates else None,
        value_kernel=value_kernel if interpolates else None,
    )


def checked_mixture(mixture: Mixture, form: str) -> Mixture:
    """The mixture, if this form of attention may read it.

    Raises:
      ValueError: an unknown form, not a mixture, or weights that belong to another form.
    """
    check_choice("form", form, FORMS)
    mixture = typed("mixture", mixture, Mixture)
    mixture.check()
    wanted = "geometric" if form == "expected_logit" else "mean"
    # Impulses pass with any weights, because all forms are equal for them. For Gaussians the wrong
    # kind of weights changes the result by about a tenth.
    if mixture.log_variance is not None and mixture.weights_kind not in (None, wanted):
        raise ValueError(
            f"mixture has {mixture.weights_kind!r} weights; form {form!r} wants {wanted!r} ones, "
            f"those of nvib.expected(posterior, log_weights={wanted!r}) or nvib.read"
        )
    return mixture


def _by_head(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """(B, S, D) and (D, H, E) -> (B, H, S, E), by one product and one transposition."""
    flat = by_rows(lambda rows: rows @ kernel.reshape(kernel.shape[0], -1), x)
    return jnp.swapaxes(flat.reshape(*x.shape[:-1], *kernel.shape[1:]), 1, 2)


def causal_mask(
    queries: int, components: int, *, start: int | jax.Array = 0, rows: int | None = None
) -> jax.Array:
    """Which components query t may see: component 0 and those up to t + S - T.

    With S = T + 1 (the prior's component in front), a query sees its own token and all before it.

    Args:
      queries: T.
      components: S.
      start: the query that the first row of the result is for.
      rows: how many rows (queries) to return; None is all T.

    Returns:
      bool, shape (rows, S).
    """
    t = jnp.arange(queries if rows is None else rows, dtype=jnp.int32)[:, None]
    t = t + jnp.asarray(start, jnp.int32)
    s = jnp.arange(components, dtype=jnp.int32)[None]
    return (s == 0) | (s <= t + (components - queries))


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype to add up in: float32, or float64 for float64 (tests take it as ground truth)."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def moments(mixture: Mixture, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Means and variances, 0 where masked: then padding reaches neither a sum nor a gradient."""
    visible = mixture.mask[..., None]
    mean = jnp.where(visible, mixture.mean.astype(dtype), 0.0)
    if mixture.log_variance is None:
        return mean, jnp.zeros_like(mean)
    return mean, jnp.exp(jnp.where(visible, mixture.log_variance.astype(dtype), -jnp.inf))
