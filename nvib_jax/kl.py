"""The two KL terms of the bottleneck, in nats per example.

Each takes a `Posterior` and its `Prior` and returns shape (B,). Source: Henderson & Fehr (2023),
arXiv 2207.13529. `k0 = S K`, where S counts the valid components and K the draws of each; n is the
number of tokens among the S. In the exact form, S and n count the present components only. Each
term has two forms:

- `expected_count`, the published loss: components weighted by their expected counts, and a
  Dirichlet KL that sees the total pseudo-count only (the KL of two symmetric Dirichlets);
- `exact`, the KL of what `sample` draws: what a bound on a likelihood needs.
"""

from functools import partial

import jax
import jax.numpy as jnp

from nvib_jax.checks import check_choice, check_count
from nvib_jax.numerics import dirichlet
from nvib_jax.numerics.special import LOG_HUGE, expm1_minus
from nvib_jax.random import log_normalize
from nvib_jax.types import Posterior, Prior, prior_of, typed

FORMS = ("expected_count", "exact")


def kl_gaussian(
    posterior: Posterior, prior: Prior, *, num_samples: int = 1, form: str = "expected_count"
) -> jax.Array:
    """KL of the components' Gaussians.

        expected_count   k0/2 sum_i (alpha_i / alpha_0) sum_d [ ... ]_id
        exact             K/2 sum_i                     sum_d [ ... ]_id
        [ ... ] = s2/s2^p + (mu - mu^p)^2/s2^p - 1 - log(s2/s2^p)

    Args:
      posterior: S components.
      prior: the one the posterior was made with; no gradient reaches it unless it is `trainable`.
      num_samples: K, as given to `sample`.
      form: "expected_count" or "exact".

    Returns:
      float32 nats, shape (B,). The published loss divides by S D; this does not.

    Raises:
      ValueError: an unknown form, `num_samples < 1`, or arguments that do not fit.

    Source: expected_count, Henderson & Fehr (2023); exact is the KL of the same draws.

    >>> x, prior = jnp.ones((1, 2, 4)), Prior.standard(4)
    >>> posterior = make_posterior(x, 0 * x, 0 * x[..., 0], jnp.ones((1, 2), bool), prior)
    >>> print(kl_gaussian(posterior, prior, form="exact"))  # two vectors, four halves each
    [4.]
    """
    return _kl_gaussian(*_checked(posterior, prior, num_samples, form), form)


@partial(jax.jit, static_argnums=(2, 3))
def _kl_gaussian(posterior: Posterior, prior: Prior, num_samples: int, form: str) -> jax.Array:
    present, log_alpha = _present(posterior)
    prior_mean, prior_log_variance = prior.mean[None, None], prior.log_variance[None, None]
    # Components that are not present are replaced before the arithmetic and not after it, because
    # their gradient would otherwise be 0 * inf.
    mean, log_variance = (
        jnp.where(present[..., None], a.astype(jnp.float32), b)
        for a, b in ((posterior.mean, prior_mean), (posterior.log_variance, prior_log_variance))
    )
    distance = jnp.square(mean - prior_mean) * jnp.exp(-prior_log_variance)
    each = 0.5 * jnp.sum(expm1_minus(log_variance - prior_log_variance) + distance, axis=-1)
    if form == "exact":
        return num_samples * jnp.sum(each, axis=-1)
    _, count = prior_atom(posterior.mask, prior, num_samples)
    return count * jnp.sum(jnp.exp(log_normalize(log_alpha, present)) * each, axis=-1)


def kl_dirichlet(
    posterior: Posterior, prior: Prior, *, num_samples: int = 1, form: str = "expected_count"
) -> jax.Array:
    """KL of the weights, `q = sum_i alpha_i` against `p = alpha_0^p + alpha_delta n`.

        expected_count   KL( Dir(q/k0, k0 times)            || Dir(p/k0, k0 times) )
                         = lgG(q) - lgG(p) + (q - p)(psi(q/k0) - psi(q))
                           + k0 (lgG(p/k0) - lgG(q/k0))
        exact            KL( Dir(alpha_i/K, each K times)   || Dir(p/k0, as often) )

    Evaluated as written, it is wrong by 100 % in float32 at q = 1e8. `dirichlet.kl` computes the
    same number without the cancellation, and both forms are special cases of it.

    Args:
      posterior: S components.
      prior: the one the posterior was made with; no gradient reaches it unless it is `trainable`.
      num_samples: K, as given to `sample`.
      form: "expected_count" or "exact".

    Returns:
      float32 nats, shape (B,). For totals of 1e-3 to 1e8 the error is at most 1e-5 relative plus
      1e-6 per atom. The gradient with respect to log_alpha has an error of the same size, relative
      to its largest entry.

    Raises:
      ValueError: an unknown form, `num_samples < 1`, or arguments that do not fit.

    Source: expected_count, Henderson & Fehr (2023); exact is the KL of the same draws.

    >>> x, prior = jnp.zeros((1, 4, 2)), Prior.standard(2, alpha_delta=0.25)  # prior total 2
    >>> posterior = make_posterior(x, x, x[..., 0], jnp.ones((1, 4), bool), prior)  # total 5
    >>> print(kl_dirichlet(posterior, prior))
    [0.9114]
    """
    return _kl_dirichlet(*_checked(posterior, prior, num_samples, form), form)


@partial(jax.jit, static_argnums=(2, 3))
def _kl_dirichlet(posterior: Posterior, prior: Prior, num_samples: int, form: str) -> jax.Array:
    present, log_alpha = _present(posterior)
    if form == "exact":
        log_b, count = prior_atom(present, prior, num_samples)
        return dirichlet.kl(log_alpha, jnp.full_like(count, num_samples), log_b, present)
    log_b, count = prior_atom(posterior.mask, prior, num_samples)
    log_q = jax.nn.logsumexp(log_alpha, axis=-1, where=present, keepdims=True)
    return dirichlet.kl(log_q, count, log_b, jnp.ones_like(log_q, bool))


def prior_atom(
    components: jax.Array, prior: Prior, num_samples: int
) -> tuple[jax.Array, jax.Array]:
    """`log(p/k0)`, the prior's log pseudo-count of one atom, and `k0`: float32, shape (B,) each.

    `components`, bool (B, S), says which components count; the first is the prior's.
    """
    others = jnp.sum(components[:, 1:], axis=-1)
    count = num_samples * (others + 1).astype(jnp.float32)
    return prior.log_total(others) - jnp.log(count), count


def vector_count(posterior: Posterior, *, num_samples: int = 1) -> jax.Array:
    """m, the number of present components without the prior's, and a gradient for it.

    A loss may add `price * m`, which is `-log p(m)` of a geometric prior over m, up to a constant.
    Neither KL charges for the number of vectors: the same information spread over twice as many
    vectors costs the same. m itself is a step at alpha = 0 and has no useful gradient, so its
    gradient is that of

        sum_i P_i,    P_i = 1 - (1 + k0/alpha_0)^-alpha_i    at a fixed alpha_0,

    where P_i is the probability that at least one of Poisson(k0) draws is of component i. The value
    stays the count m; only the gradient comes from P_i (a straight-through estimate). If the loss
    charged sum_i P_i itself, the model would shrink alpha to pay less, and make up for the lost
    weight of the vector by larger logits.

    Args:
      posterior: S components.
      num_samples: K, as given to `sample`.

    Returns:
      float32, shape (B,).

    Raises:
      ValueError: `num_samples < 1`, or a posterior that does not fit.

    >>> x, alpha = jnp.zeros((1, 3, 4)), jnp.array([[2.0, 0.0, 0.1]])
    >>> mask, prior = jnp.ones((1, 3), bool), Prior.standard(4)
    >>> print(vector_count(make_posterior(x, x, jnp.log(alpha), mask, prior)))
    [2.]
    """
    posterior = typed("posterior", posterior, Posterior)
    posterior.check()
    return _vector_count(posterior, check_count("num_samples", num_samples))


@partial(jax.jit, static_argnums=1)
def _vector_count(posterior: Posterior, num_samples: int) -> jax.Array:
    present, log_alpha = _present(posterior)
    count = num_samples * jnp.sum(posterior.mask, axis=-1).astype(jnp.float32)
    used = _expected_use(log_alpha, count, present)[:, 1:]
    there = present[:, 1:].astype(jnp.float32)
    return jnp.sum(there + used - jax.lax.stop_gradient(used), axis=-1)


def _expected_use(log_alpha: jax.Array, count: jax.Array, present: jax.Array) -> jax.Array:
    """P_i of `vector_count`, (B, S). It works in logs, because alpha may be as large as e^100."""
    log_total = jax.nn.logsumexp(log_alpha, axis=-1, where=present, keepdims=True)
    log_rate = jnp.log(count)[:, None] - jax.lax.stop_gradient(log_total)
    small = log_rate < -10.0  # here log(1 + rate) equals rate in float32
    above = jnp.log(jnp.log1p(jnp.exp(jnp.where(small, 0.0, log_rate))))
    draws = jnp.exp(jnp.minimum(log_alpha + jnp.where(small, log_rate, above), LOG_HUGE))
    return jnp.where(present, -jnp.expm1(-draws), 0.0)


def _present(posterior: Posterior) -> tuple[jax.Array, jax.Array]:
    """Which components are present, and their log pseudo-counts in float32 (0 where not)."""
    present = posterior.present
    return present, jnp.where(present, posterior.log_alpha.astype(jnp.float32), 0.0)


def _checked(
    posterior: Posterior, prior: Prior, num_samples: int, form: str
) -> tuple[Posterior, Prior, int]:
    check_choice("form", form, FORMS)
    posterior = typed("posterior", posterior, Posterior)
    prior = prior_of(prior, posterior.check()["D"])
    return posterior, prior, check_count("num_samples", num_samples)
