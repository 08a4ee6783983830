"""Ways to make a `Mixture`: a posterior's draw or mean, a draw of the prior, an interpolation.

All return the same type, so attention need not know where a mixture comes from.
"""

from functools import partial

import jax
import jax.numpy as jnp

from nvib_jax.attention.inputs import FORMS
from nvib_jax.checks import (
    check_choice,
    check_count,
    check_key,
    check_number,
    check_shapes,
    concrete,
    listed_ints,
)
from nvib_jax.mesh import alike, along
from nvib_jax.numerics.special import digamma_of_exp
from nvib_jax.posterior import above
from nvib_jax.random import log_dirichlet, log_normalize, loggamma
from nvib_jax.types import WEIGHTS, Mixture, Posterior, Prior, prior_of, typed

READS = (*FORMS, "drawn", "average")
DRAWS = 8  # how many draws "average" joins into one mixture


def sample(
    key: jax.Array, posterior: Posterior, *, num_samples: int = 1, normalize: bool = True
) -> Mixture:
    """Draw a mixture of impulses, reparameterised so that gradients reach the posterior.

        z = mu + s eps          K times per component
        pi ~ Dir(alpha_i / K, each repeated K times)

    Args:
      key: PRNG key.
      posterior: S components.
      num_samples: K >= 1.
      normalize: as in `expected`; without it `exp(log_weights)` are gamma draws.

    Returns:
      A `Mixture` of K S impulses, K blocks of S. (Component 0 is drawn from the prior's component.)

    Raises:
      ValueError: `num_samples < 1`, or arguments that do not fit.

    Source: Henderson & Fehr (2023). One draw from `Dir(alpha_i / K repeated)` has the distribution
    of their two-stage draw, and is differentiable.

    >>> x, mask = jnp.zeros((1, 3, 4)), jnp.ones((1, 3), bool)
    >>> posterior = make_posterior(x, x, x[..., 0], mask, Prior.standard(4))
    >>> mixture = sample(jax.random.key(0), posterior, num_samples=2)
    >>> mixture.mean.shape, mixture.log_variance  # 2 (3 + 1) impulses
    ((1, 8, 4), None)
    >>> print(jnp.exp(mixture.log_weights).sum())
    1.0000
    """
    check_key(key)
    posterior = typed("posterior", posterior, Posterior)
    posterior.check()
    return _sample(key, posterior, check_count("num_samples", num_samples), normalize)


@partial(jax.jit, static_argnums=(2, 3))
def _sample(key: jax.Array, posterior: Posterior, num_samples: int, normalize: bool) -> Mixture:
    weight_key, noise_key = jax.random.split(key)
    log_alpha = posterior.log_alpha.astype(jnp.float32) - jnp.log(jnp.float32(num_samples))
    log_alpha, mask = (jnp.tile(a, (1, num_samples)) for a in (log_alpha, posterior.mask))
    mean, log_variance = (
        jnp.tile(a.astype(jnp.float32), (1, num_samples, 1))
        for a in (posterior.mean, posterior.log_variance)
    )
    noise = jax.random.normal(noise_key, mean.shape, jnp.float32, out_sharding=along(mean))
    if normalize:
        log_weights = log_dirichlet(weight_key, log_alpha, mask)
    else:
        log_weights = jnp.where(mask, loggamma(weight_key, log_alpha), -jnp.inf)
    return Mixture(
        mean=mean + jnp.exp(0.5 * log_variance) * noise,
        log_variance=None,
        log_weights=log_weights,
        mask=mask,
    )


def expected(
    posterior: Posterior,
    *,
    log_weights: str = "mean",
    threshold: float | jax.Array | None = None,
    normalize: bool = True,
) -> Mixture:
    """The posterior's mean mixture, whose components are Gaussians.

    Args:
      posterior: S components.
      log_weights: "mean" is `log E[pi_i] = log(alpha_i / alpha_0)`; "geometric" is
        `E[log pi_i] = psi(alpha_i) - psi(alpha_0)`, unnormalised, for form "expected_logit".
      threshold: drop components whose pseudo-count is at most this: one number, or one for each
        row, shape (B,). A row's largest component is always kept, so that no row is left empty.
      normalize: without it the weights are pseudo-counts, and none depends on another component:
        what causal attention and a memory that grows need, because a total has all of them in it.
        Attention is the same.

    Returns:
      A `Mixture` of S Gaussians; a dropped component has log weight -inf.

    Raises:
      ValueError: an unknown `log_weights`, or arguments that do not fit.

    Source: Henderson & Fehr (2023) for the mean; the geometric weights are ours.

    >>> x, alpha = jnp.zeros((1, 2, 4)), jnp.array([[2.0, 0.05]])
    >>> mask, prior = jnp.ones((1, 2), bool), Prior.standard(4)
    >>> posterior = make_posterior(x, x, jnp.log(alpha), mask, prior)
    >>> print(jnp.exp(expected(posterior).log_weights))  # of 1 + 2 + 0.05
    [[0.3279 0.6557 0.0164]]
    >>> print(jnp.exp(expected(posterior, threshold=0.1).log_weights))
    [[0.3333 0.6667 0.    ]]
    """
    check_choice("log_weights", log_weights, WEIGHTS)
    return _expected(above(posterior, threshold), log_weights, normalize)


@partial(jax.jit, static_argnums=(1, 2))
def _expected(posterior: Posterior, log_weights: str, normalize: bool) -> Mixture:
    present = posterior.present
    log_alpha = jnp.where(present, posterior.log_alpha.astype(jnp.float32), -jnp.inf)
    if log_weights == "mean":
        weights = log_normalize(log_alpha) if normalize else log_alpha
    else:
        log_alpha = jnp.where(present, log_alpha, 0.0)
        digamma = digamma_of_exp(log_alpha)
        if normalize:
            log_total = jax.nn.logsumexp(log_alpha, axis=-1, keepdims=True, where=present)
            digamma = digamma - digamma_of_exp(log_total)
        weights = jnp.where(present, digamma, -jnp.inf)
    return Mixture(
        posterior.mean, posterior.log_variance, weights, posterior.mask, weights_kind=log_weights
    )


def read(
    posterior: Posterior,
    form: str,
    *,
    threshold: float | jax.Array | None = None,
    key: jax.Array | None = None,
    num_samples: int = 1,
    normalize: bool = True,
) -> tuple[Mixture, str]:
    """The mixture that evaluation reads, and the form of attention to read it with.

        form              mixture                                       read with
        exact             `expected(posterior)`                         exact
        published         the same                                      published
        simplified        the same                                      simplified
        expected_logit    `expected(posterior, log_weights="geometric")`    expected_logit
        drawn             `sample(key, posterior)`                      exact
        average           eight such draws, joined to one mixture       exact

    Args:
      posterior: S components.
      form: one of the above (`nvib_jax.mixture.READS`).
      threshold: drop components whose pseudo-count is at most this, before anything is drawn; as in
        `expected`.
      key: PRNG key, needed by "drawn" and "average" only.
      num_samples: K of each draw, as in `sample`; for "drawn" and "average" only.
      normalize: as in `expected`. "average" wants it, because its draws have totals of their own.

    Returns:
      (mixture, form), the arguments for `denoising_attention` and `make_memory`.

    Raises:
      ValueError: an unknown form, a draw without a key, or arguments that do not fit.

    >>> x, mask = jnp.zeros((1, 2, 4)), jnp.ones((1, 2), bool)
    >>> posterior = make_posterior(x, x, x[..., 0], mask, Prior.standard(4))
    >>> mixture, form = read(posterior, "average", key=jax.random.key(0))
    >>> mixture.mean.shape, form  # 8 draws of 2 + 1 impulses
    ((1, 24, 4), 'exact')
    >>> mixture, form = read(posterior, "expected_logit", threshold=0.1)
    >>> memory = make_memory(mixture, key_kernel=jnp.ones((4, 1, 4)),
    ...                      value_kernel=jnp.ones((4, 1, 4)), form=form)
    """
    check_read(form, key)
    num_samples = check_count("num_samples", num_samples)
    if form in FORMS:
        weights = "geometric" if form == "expected_logit" else "mean"
        mean = expected(posterior, log_weights=weights, threshold=threshold, normalize=normalize)
        return mean, form
    assert key is not None
    if form == "average" and not normalize:
        raise ValueError("normalize is False; form 'average' wants the draws' own totals")
    posterior = above(posterior, threshold)
    keys = [key] if form == "drawn" else jax.random.split(key, DRAWS)
    drawn = [sample(k, posterior, num_samples=num_samples, normalize=normalize) for k in keys]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *drawn), "exact"


def check_read(form: str, key: jax.Array | None) -> None:
    """Raise ValueError for an unknown form, and for a form that draws when there is no key."""
    check_choice("form", form, READS)
    if form not in FORMS:
        if key is None:
            raise ValueError(f"form is {form!r} and key is None; a draw needs a key")
        check_key(key)


def sample_prior(key: jax.Array, prior: Prior, lengths: jax.Array, *, max_length: int) -> Mixture:
    """Draw mixtures from the (conditional) prior: `z ~ N(mu^p, s2^p)`, `pi ~ Dir(alpha_0^p' / S)`.

    Args:
      key: PRNG key.
      prior: the Dirichlet process.
      lengths: number n of tokens each mixture stands for, int, shape (B,); S = n + 1. Under jit
        the values cannot be checked, so they are clipped to 0 ... max_length.
      max_length: static bound on `lengths`; the result has max_length + 1 components.

    Returns:
      A `Mixture` of impulses, shape (B, max_length + 1, D), masked beyond n + 1.
      Source: the bounded process of Henderson & Fehr (2023).

    Raises:
      ValueError: `max_length < 0`; `lengths` not of shape (B,), not integers, or out of bounds.

    >>> lengths = jnp.array([1, 3])
    >>> drawn = sample_prior(jax.random.key(0), Prior.standard(4), lengths, max_length=3)
    >>> drawn.mean.shape
    (2, 4, 4)
    >>> print(drawn.mask.sum(-1))  # and one for the prior's component
    [2 4]
    """
    check_key(key)
    prior = prior_of(prior)
    max_length = check_count("max_length", max_length, 0)
    lengths = listed_ints("lengths", lengths)
    check_shapes(lengths=(lengths, "int B"))
    known = concrete(lengths)
    if known is not None and (bad := known[(known < 0) | (known > max_length)]).size:
        raise ValueError(f"lengths has {bad[0]}; wanted 0 to max_length, {max_length}")
    return _sample_prior(key, prior, lengths, max_length)


@partial(jax.jit, static_argnums=3)
def _sample_prior(key: jax.Array, prior: Prior, lengths: jax.Array, max_length: int) -> Mixture:
    shape = (*lengths.shape, max_length + 1)
    lengths = jnp.clip(jnp.asarray(lengths, jnp.int32), 0, max_length)
    mask = jnp.arange(shape[1], dtype=jnp.int32)[None, :] <= lengths[:, None]
    atoms = (lengths + 1).astype(jnp.float32)
    log_alpha = prior.log_total(lengths) - jnp.log(atoms)
    weight_key, noise_key = jax.random.split(key)
    size, layout = (*shape, prior.mean.shape[-1]), along(lengths, after=2)
    noise = jax.random.normal(noise_key, size, jnp.float32, out_sharding=layout)
    return Mixture(
        mean=prior.mean[None, None] + jnp.exp(0.5 * prior.log_variance)[None, None] * noise,
        log_variance=None,
        log_weights=log_dirichlet(weight_key, jnp.broadcast_to(log_alpha[:, None], shape), mask),
        mask=mask,
    )


def interpolate(a: Mixture, b: Mixture, t: float | jax.Array) -> Mixture:
    """The mixture `(1 - t) a + t b`: both sets of components, weights scaled.

    Args:
      a: mixture with S_a components, shape (B, S_a, D).
      b: mixture with S_b components, shape (B, S_b, D).
      t: in [0, 1], shape () or (B,); outside it the weights are NaN. At t = 0 and t = 1 the
        gradient with respect to t ignores the mixture whose weight is 0.

    Returns:
      A `Mixture` with S_a + S_b components, float32. If only one side has variances, the other's
      are 0.

    Raises:
      ValueError: batch, width or kind of weights of `a` and `b` differ, or `t` is neither () nor
        (B,).

    Source: Henderson & Fehr (2023).

    >>> def point(x):
    ...     return Mixture(jnp.full((1, 1, 1), x), None, jnp.zeros((1, 1)), jnp.ones((1, 1), bool))
    >>> print(jnp.exp(interpolate(point(-1.0), point(1.0), 0.25).log_weights))
    [[0.75 0.25]]
    """
    a, b = typed("a", a, Mixture), typed("b", b, Mixture)
    a.check()
    b.check()
    check_shapes(**{"a.mean": (a.mean, "B Sa D"), "b.mean": (b.mean, "B Sb D")})
    kinds = {m.weights_kind for m in (a, b)} - {None}
    if len(kinds) > 1:
        raise ValueError(
            f"a has {a.weights_kind} weights and b {b.weights_kind} ones; wanted the same kind"
        )
    check_number("t", t)
    if jnp.ndim(t) > 0:
        check_shapes(**{"a.mean": (a.mean, "B Sa D"), "t": (t, "B")})
    return _interpolate(a, b, t, kinds.pop() if kinds else None)


@partial(jax.jit, static_argnums=3)
def _interpolate(a: Mixture, b: Mixture, t: jax.Array, weights_kind: str | None) -> Mixture:
    t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), a.mean.shape[:1])[:, None]
    log_variance = None
    if a.log_variance is not None or b.log_variance is not None:
        log_variance = _joined(_log_variance(a), _log_variance(b))
    return Mixture(
        mean=_joined(a.mean, b.mean),
        log_variance=log_variance,
        log_weights=_joined(
            a.log_weights.astype(jnp.float32) + _log(1.0 - t),
            b.log_weights.astype(jnp.float32) + _log(t),
        ),
        mask=_joined(a.mask, b.mask),
        weights_kind=weights_kind,
    )


def _joined(a: jax.Array, b: jax.Array) -> jax.Array:
    """The components of both arrays, one after the other; floats become float32."""
    if a.dtype != jnp.bool_:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jnp.concatenate(alike(a, b), axis=1)


def _log(x: jax.Array) -> jax.Array:
    """Logarithm with gradient 0 at x = 0, where the value is -inf and the gradient would be NaN."""
    return jnp.where(x == 0, -jnp.inf, jnp.log(jnp.where(x == 0, 1.0, x)))


def _log_variance(mixture: Mixture) -> jax.Array:
    if mixture.log_variance is None:
        return jnp.full_like(mixture.mean, -jnp.inf)
    return mixture.log_variance
