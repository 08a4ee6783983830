"""From encoder outputs to a `Posterior`: pseudo-count maps, component 0, the skip, what is kept.

The caller computes the linear maps `mu = W_mu x + b` and `log s2 = W_s x + b` (a Flax module owns
their parameters). This module holds everything that is not a plain linear map.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from nvib_jax.checks import (
    check_choice,
    check_kind,
    check_number,
    check_shapes,
    concrete,
    described,
    is_array,
)
from nvib_jax.mesh import alike
from nvib_jax.types import Posterior, Prior, prior_of, typed

PSEUDO_COUNT_MAPS = ("exp_linear", "exp_quadratic", "relu")


def log_pseudo_count(
    x: jax.Array,
    linear: jax.Array,
    bias: jax.Array,
    quadratic: jax.Array | None = None,
    *,
    form: str = "exp_linear",
) -> jax.Array:
    """Log pseudo-counts of encoder states.

        exp_linear      log alpha = w.x + b
        exp_quadratic   log alpha = a.(x*x) + w.x + b     (can be |x|^2 / (2 sqrt E) exactly)
        relu            alpha = max(0, w.x + b)           (0 removes the component)

    Args:
      x: encoder states, shape (..., D).
      linear: w, shape (D,).
      bias: b, shape ().
      quadratic: a, shape (D,), for `exp_quadratic` only.
      form: which map.

    Returns:
      float32 log alpha, shape (...,); -inf with zero gradient where `relu` gives 0, NaN where a
      state contains a NaN.

    Raises:
      ValueError: an unknown form, a missing or surplus `quadratic`, shapes or dtypes that do not
        fit.

    Source: `exp_linear` and `relu`, Henderson & Fehr (2023); `exp_quadratic`, Fehr & Henderson
    (2024), arXiv 2312.00662.

    >>> x, w = jnp.array([[2.0, 0.0], [0.0, 2.0]]), jnp.array([1.0, -1.0])
    >>> print(jnp.exp(log_pseudo_count(x, w, jnp.float32(0.5), form="relu")))
    [2.5 0. ]
    """
    check_choice("form", form, PSEUDO_COUNT_MAPS)
    if (quadratic is not None) != (form == "exp_quadratic"):
        given = "given" if quadratic is not None else "None"
        raise ValueError(f"quadratic is {given} with form={form!r}; exp_quadratic alone takes it")
    if not is_array(x) or not jnp.shape(x):
        raise ValueError(f"x is {described(x)}; wanted an array [..., D]")
    check_kind("x", x, "float")
    width = x.shape[-1:]
    weights = {"linear": linear} | ({} if quadratic is None else {"quadratic": quadratic})
    for name, weight in weights.items():
        check_shapes(**{name: (weight, "float D")})
        if weight.shape != width:
            raise ValueError(f"{name} has shape {weight.shape}; wanted [D] = {width}")
    if not is_array(bias) or jnp.shape(bias) != ():
        what = f"has shape {jnp.shape(bias)}" if is_array(bias) else f"is {described(bias)}"
        raise ValueError(f"bias {what}; wanted ()")
    check_kind("bias", bias, "float")
    return _log_pseudo_count(x, linear, bias, quadratic, form)


@partial(jax.jit, static_argnums=4)
def _log_pseudo_count(
    x: jax.Array, linear: jax.Array, bias: jax.Array, quadratic: jax.Array | None, form: str
) -> jax.Array:
    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        # Log pseudo-counts reach hundreds, so full precision is asked for: by default a TPU
        # multiplies float32 in bfloat16 passes, which would lose the fraction.
        return jnp.dot(a, b.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)

    x = x.astype(jnp.float32)
    value = dot(x, linear) + jnp.asarray(bias, jnp.float32)
    if quadratic is not None:
        value = value + dot(x * x, quadratic)
    if form != "relu":
        return value
    # The test is `value <= 0` rather than `not (value > 0)`, because a NaN must not count as
    # removed: it has to reach the loss, where the guards of a training run notice it.
    removed = value <= 0
    # The inner where keeps log's gradient finite in the branch that is not selected.
    return jnp.where(removed, -jnp.inf, jnp.log(jnp.where(removed, 1.0, value)))


def make_posterior(
    mean: jax.Array, log_variance: jax.Array, log_alpha: jax.Array, mask: jax.Array, prior: Prior
) -> Posterior:
    """Put the prior's component in front of the tokens' and return the posterior.

    Args:
      mean: shape (B, N, D).
      log_variance: shape (B, N, D).
      log_alpha: log pseudo-counts, shape (B, N).
      mask: bool, shape (B, N), True = a valid token.
      prior: its mean, variance and alpha become component 0, which is never masked, so that no
        softmax over components is ever empty. No gradient reaches it unless it is `trainable`.

    Returns:
      A `Posterior` with S = N + 1 components, float32.

    Raises:
      ValueError: naming the argument, the shape it has and the shape it should have.

    Source: Henderson & Fehr (2023).

    >>> x = jnp.ones((1, 3, 4))
    >>> mask = jnp.array([[True, True, False]])
    >>> posterior = make_posterior(x, 0 * x, x[..., 0], mask, Prior.standard(4))
    >>> print(posterior.log_alpha, posterior.mask)  # the prior's first, padding last
    [[0. 1. 1. 0.]] [[ True  True  True False]]
    """
    sizes = check_shapes(
        mean=(mean, "float B N D"),
        log_variance=(log_variance, "float B N D"),
        log_alpha=(log_alpha, "float B N"),
        mask=(mask, "bool B N"),
    )
    return _make_posterior(mean, log_variance, log_alpha, mask, prior_of(prior, sizes["D"]))


@jax.jit
def _make_posterior(
    mean: jax.Array, log_variance: jax.Array, log_alpha: jax.Array, mask: jax.Array, prior: Prior
) -> Posterior:
    batch, _, dim = mean.shape

    def prepend(first: jax.Array, rest: jax.Array, *shape: int) -> jax.Array:
        if rest.dtype != jnp.bool_:
            # Padding becomes 0, so that whatever the encoder left there (even a NaN) reaches no
            # exp and no gradient.
            real = jnp.reshape(mask, (*mask.shape, *(1 for _ in shape)))
            rest = jnp.where(real, rest.astype(jnp.float32), 0.0)
        first = jnp.broadcast_to(first.astype(rest.dtype), (batch, 1, *shape))
        return jnp.concatenate(alike(first, rest), axis=1)

    return Posterior(
        mean=prepend(prior.mean, mean, dim),
        log_variance=prepend(prior.log_variance, log_variance, dim),
        log_alpha=prepend(prior.log_alpha, log_alpha),
        mask=prepend(jnp.bool_(True), mask),
    )


def add_skip(log_alpha: jax.Array, previous: Posterior) -> jax.Array:
    """Add the previous NVIB layer's log pseudo-counts, its prior component excluded.

    Args:
      log_alpha: this layer's log pseudo-counts, shape (B, N).
      previous: the posterior of the layer below, S = N + 1.

    Returns:
      float32, shape (B, N).

    Raises:
      ValueError: the numbers of tokens differ, or `previous` is not a `Posterior`.

    Source: Behjati et al. (2023), arXiv 2310.17284.

    >>> x = jnp.ones((1, 2, 4))
    >>> below = make_posterior(x, x, x[..., 0], jnp.ones((1, 2), bool), Prior.standard(4))
    >>> print(add_skip(jnp.array([[0.5, -1.0]]), below))
    [[1.5 0. ]]
    """
    previous = typed("previous", previous, Posterior)
    previous.check()
    check_shapes(
        **{
            "log_alpha": (log_alpha, "float B N"),
            "previous.log_alpha[:, 1:]": (previous.log_alpha[:, 1:], "B N"),
        }
    )
    return log_alpha.astype(jnp.float32) + previous.log_alpha[:, 1:].astype(jnp.float32)


def above(posterior: Posterior, threshold: float | jax.Array | None) -> Posterior:
    """The posterior without the components whose pseudo-count is at most a threshold.

    Args:
      posterior: S components.
      threshold: one number, or one for each row, shape (B,). None or a negative number drops
        nothing. The largest component of a row is always kept.

    Returns:
      A `Posterior` with a `log_alpha` of -inf where a component was dropped.

    Raises:
      ValueError: a threshold of another shape, or one that is NaN or not a number at all.
    """
    posterior = typed("posterior", posterior, Posterior)
    rows = posterior.check()["B"]
    if threshold is None:
        return posterior
    check_number("threshold", threshold)
    if jnp.shape(threshold) not in ((), (rows,)):
        raise ValueError(
            f"threshold has shape {jnp.shape(threshold)}; wanted () or [B] = ({rows},)"
        )
    known = concrete(threshold)
    if known is not None and np.isnan(known.astype(np.float32)).any():
        raise ValueError("threshold is nan; wanted a number")
    return _above(posterior, threshold)


@jax.jit
def _above(posterior: Posterior, threshold: jax.Array) -> Posterior:
    # The limit is a column, (1, 1) or (B, 1), so that thresholds of shape (B,) broadcast over the
    # components of their row and are never taken for one threshold per component.
    limit = jnp.reshape(jnp.asarray(threshold, jnp.float32), (-1, 1))
    log_alpha = jnp.where(posterior.mask, posterior.log_alpha.astype(jnp.float32), -jnp.inf)
    # The comparison is in log space, where a pseudo-count cannot overflow. A negative limit has no
    # log; `limit >= 0` below keeps everything then.
    small = log_alpha <= jnp.log(jnp.maximum(limit, 0.0))
    largest = log_alpha == jnp.max(log_alpha, axis=-1, keepdims=True)
    # NaN is neither small nor large. Dropping what is small (instead of keeping what is large)
    # leaves it in, because it has to be noticed.
    dropped = small & ~largest & (limit >= 0)
    return dataclasses.replace(posterior, log_alpha=jnp.where(dropped, -jnp.inf, log_alpha))


def number_kept(keep: float | int | jax.Array, valid: jax.Array) -> jax.Array:
    """The number of vectors that `keep` leaves of each row's, int32 (B, 1).

    Args:
      keep: a float above 0 and at most 1 is a share of the valid ones, rounded up; a whole number
        is a number of them. One for all rows, or one for each, shape (B,).
      valid: bool, shape (B, N).

    Raises:
      ValueError: a share outside (0, 1], a number below 1, or another shape.
    """
    check_number("keep", keep, None)
    if jnp.shape(keep) not in ((), valid.shape[:1]):
        raise ValueError(
            f"keep has shape {jnp.shape(keep)}; wanted () or [B] = ({valid.shape[0]},)"
        )
    amount = jnp.reshape(jnp.asarray(keep), (-1, 1))
    share = jnp.issubdtype(amount.dtype, jnp.floating)
    if not share and not jnp.issubdtype(amount.dtype, jnp.integer):
        raise ValueError(f"keep is {described(keep)}; wanted a share or a whole number")
    known = concrete(keep)
    if known is not None:
        fits = (known > 0) & (known <= 1) if share else known >= 1
        if not np.all(fits):
            wanted = "more than 0 and at most 1, a share" if share else "at least 1"
            raise ValueError(f"keep is {known.tolist()}; wanted {wanted}")
    if share:
        words = jnp.sum(valid, axis=-1, keepdims=True).astype(jnp.float32)
        # A tenth of ten is 1.0000000149 in float32, and that must not be two.
        amount = jnp.ceil(amount.astype(jnp.float32) * words - 1e-4)
    return jnp.broadcast_to(amount.astype(jnp.int32), (valid.shape[0], 1))


def keep_largest(posterior: Posterior, keep: float | int | jax.Array) -> Posterior:
    """The posterior with the components of the largest pseudo-counts, and the prior's.

    It sets a budget when a posterior is read, whatever the model was trained with: 0.3 leaves
    ceil(0.3 n) of a sentence's n tokens, 3 leaves three.

    Args:
      posterior: S components.
      keep: a float above 0 and at most 1 is a share of the n valid components without the prior's;
        a whole number is a number of them. One for all rows, or one for each, shape (B,).

    Returns:
      A `Posterior` with a `log_alpha` of -inf where a component was dropped. Of equal pseudo-counts
      the earlier ones are kept.

    Raises:
      ValueError: a share outside (0, 1], a number below 1, or another shape.

    >>> x, alpha = jnp.zeros((1, 4, 2)), jnp.array([[0.2, 3.0, 1.0, 0.5]])
    >>> mask = jnp.ones((1, 4), bool)
    >>> posterior = make_posterior(x, x, jnp.log(alpha), mask, Prior.standard(2))
    >>> print(jnp.exp(keep_largest(posterior, 0.5).log_alpha))  # the prior's first
    [[1. 0. 3. 1. 0.]]
    """
    posterior = typed("posterior", posterior, Posterior)
    posterior.check()
    return _keep_largest(posterior, number_kept(keep, posterior.mask[:, 1:]))


@jax.jit
def _keep_largest(posterior: Posterior, count: jax.Array) -> Posterior:
    own = posterior.mask[:, 1:]
    log_alpha = posterior.log_alpha.astype(jnp.float32)
    falling = jnp.argsort(-jnp.where(own, log_alpha[:, 1:], -jnp.inf), axis=-1, stable=True)
    rank = jnp.argsort(falling, axis=-1).astype(jnp.int32)
    stays = jnp.pad(rank < count, ((0, 0), (1, 0)), constant_values=True)
    # NaN is left in, because the guards of a training run have to notice it.
    dropped = ~stays & ~jnp.isnan(log_alpha)
    return dataclasses.replace(posterior, log_alpha=jnp.where(dropped, -jnp.inf, log_alpha))
