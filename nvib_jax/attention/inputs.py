"""Every form of denoising attention as one primitive: keys, values and one bias per key.

A query `u` in R^D is a vector of the mixture seen through noise of variance r = sqrt(E) per
dimension (Henderson & Fehr 2023, arXiv 2207.13529). With t_i = s2_i + r, the posterior mean of that
vector has

    logit_i = log pi_i - 1/2 sum_d (u_d - mu_id)^2 / t_id - 1/2 sum_d log t_id
    value_i = (s2_i/t_i) * u + (r/t_i) * mu_i

With heads u_h = W_k,h^T q_h, and since u_h.x = q_h.(W_k,h x), nearly all of it needs head-width
keys and values only. Two terms do not; their key side is shared by all heads:

    out_h = W_v,h [ (sum_i a_i s2_i/t_i) * u_h ] + sum_i a_i W_v,h (r mu_i/t_i)
    a = softmax_i( q_h . W_k,h (mu_i/t_i)  +  (u_h*u_h) . (s2_i/(2 r t_i))  +  bias_i )

Every logit has had + 1/2 sum u^2/r + D/2 log r, the same for all keys, added to it: s2/(2 r t) is
1/(2r) - 1/(2t). What is left of both terms is small where s2 is, and impulses, s2 = 0, need
neither: hundreds are not subtracted from hundreds.

    form             key, value      bias beyond log pi                            shared terms
    exact            t               - 1/2 sum mu^2/t - 1/2 sum log(t/r)           u*u, s2/t
    published        t               - 1/2 sum mu^2/t - 1/2 sum log(t/r)           s2/t
    simplified       t               - 1/2 sum mu^2/t                              none
    expected_logit   t = r           - 1/2 sum (mu^2 + s2)/r                       none
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nvib_jax.checks import check_choice, check_shapes
from nvib_jax.mesh import by_rows
from nvib_jax.types import Mixture, typed

FORMS = ("exact", "published", "simplified", "expected_logit")
# Finite, so that no softmax and no gradient ever meets inf - inf; below any log weight that can be
# drawn (1e-35 pseudo-counts reach -1e36), so that a hidden component never wins.
MASK_VALUE = -2e38


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Memory:
    """A mixture made ready to be attended to; computed once, read by every query.

    Attributes:
      key: W_k,h (mu/t), shape (B, H, S, E): a head's keys lie together, as every product wants.
      value: W_v,h (r mu/t), shape (B, H, S, E).
      bias: one number per key, float32, shape (B, S); MASK_VALUE where empty or masked.
      shared_key: s2/(2rt) against u*u, float32, shape (B, S, D), or None.
      shared_value: s2/t, the share of the query that is kept, shape (B, S, D), or None.
      key_kernel: W_k, shape (D, H, E), to pull queries back into R^D; None if no term needs it.
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
    """Project a mixture to keys, values and biases: once, for any number of queries.

    Args:
      mixture: S components.
      key_kernel: shape (D, H, E); its dtype is the compute dtype.
      value_kernel: shape (D, H, E).
      form: one of `FORMS`; all four are the same for impulses. "expected_logit" reads the
        "geometric" weights of `nvib_jax.expected`, the others its "mean" ones.

    Returns:
      A `Memory`; linear in S, nothing of it depends on the queries.

    Raises:
      ValueError: an unknown form, one that does not go with the mixture's weights, or shapes or
        dtypes that do not fit.

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
      ValueError: an unknown form, no mixture, or weights that belong to another form.
    """
    check_choice("form", form, FORMS)
    mixture = typed("mixture", mixture, Mixture)
    mixture.check()
    wanted = "geometric" if form == "expected_logit" else "mean"
    # Of impulses all forms are the same. Gaussians read with the other weights are off by a tenth.
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
    """Component 0 and the components up to t + S - T: what query t may see of a growing mixture.

    With S = T + 1, the prior's component in front, a query sees its own token and all before it.

    Args:
      queries: T.
      components: S.
      start: first query of the rows that are wanted.
      rows: how many; None is all T.

    Returns:
      bool, shape (rows, S).
    """
    t = jnp.arange(queries if rows is None else rows, dtype=jnp.int32)[:, None]
    t = t + jnp.asarray(start, jnp.int32)
    s = jnp.arange(components, dtype=jnp.int32)[None]
    return (s == 0) | (s <= t + (components - queries))


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """float32 at least; float64 stays float64, for tests that need a ground truth."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def moments(mixture: Mixture, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Means and variances; 0 where masked, so that padding reaches neither a sum nor a gradient."""
    visible = mixture.mask[..., None]
    mean = jnp.where(visible, mixture.mean.astype(dtype), 0.0)
    if mixture.log_variance is None:
        return mean, jnp.zeros_like(mean)
    return mean, jnp.exp(jnp.where(visible, mixture.log_variance.astype(dtype), -jnp.inf))
