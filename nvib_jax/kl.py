"""The two KL terms of the bottleneck, in nats per example.

Enters a `Posterior` and its `Prior`, leaves [B]. DESIGN 3.6; Henderson & Fehr (2023), eqs. 9-10.
`k0 = S K` counts the valid components (padding excluded), K draws each. Each term has two forms:

- `expected_count`, the published loss: components weighted by their expected counts, and a
  Dirichlet KL that sees the total pseudo-count only (the KL of two symmetric Dirichlets).
- `exact`: the KL of what `sample` really draws. A likelihood bound needs this one. A component
  with a pseudo-count of exactly zero is never drawn and leaves both densities.
"""

import jax
import jax.numpy as jnp

from nvib_jax.random import log_normalize
from nvib_jax.shapes import check_choice
from nvib_jax.special import scaled_digamma_error, stirling_error
from nvib_jax.types import Posterior, Prior

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
      prior: the same the posterior was made with.
      num_samples: K, as given to `sample`.
      form: "expected_count" or "exact".

    Returns:
      float32 nats, shape (B,). The published loss divides by S D; this does not.

    Raises:
      ValueError: an unknown form, or shapes that do not fit.
    """
    posterior.check()
    check_choice("form", form, FORMS)
    log_ratio = posterior.log_variance - prior.log_variance
    distance = jnp.square(posterior.mean - prior.mean) * jnp.exp(-prior.log_variance)
    each = 0.5 * jnp.sum(jnp.expm1(log_ratio) - log_ratio + distance, axis=-1)

    present = posterior.mask & ~jnp.isneginf(posterior.log_alpha)
    if form == "exact":
        return num_samples * jnp.sum(jnp.where(present, each, 0.0), axis=-1)
    k0 = num_samples * jnp.sum(posterior.mask, axis=-1)
    weights = jnp.exp(log_normalize(posterior.log_alpha, posterior.mask))
    return k0 * jnp.sum(weights * jnp.where(present, each, 0.0), axis=-1)


def kl_dirichlet(
    posterior: Posterior, prior: Prior, *, num_samples: int = 1, form: str = "expected_count"
) -> jax.Array:
    """KL of the weights, `q = sum_i alpha_i` against `p = alpha_0^p + alpha_delta n`.

        expected_count   KL( Dir(q/k0, k0 times)            || Dir(p/k0, k0 times) )
        exact            KL( Dir(alpha_i/K, each K times)   || Dir(p/k0, as often) )

    Args:
      posterior: S components.
      prior: the same the posterior was made with.
      num_samples: K, as given to `sample`.
      form: "expected_count" or "exact".

    Returns:
      float32 nats, shape (B,), within 1e-5 relative + 1e-6 per atom for totals of 1e-3 to 1e8.

    Raises:
      ValueError: an unknown form, or shapes that do not fit.
    """
    posterior.check()
    check_choice("form", form, FORMS)
    present = posterior.mask & ~jnp.isneginf(posterior.log_alpha)
    tokens = jnp.sum(posterior.mask[:, 1:], axis=-1)
    log_k0 = jnp.log(num_samples * (tokens + 1).astype(jnp.float32))
    log_p = prior.log_total(tokens)
    log_q = jax.nn.logsumexp(jnp.where(present, posterior.log_alpha, -1e30), axis=-1)

    if form == "expected_count":
        share = -log_k0[:, None]
        return _kl_dirichlet(log_q, share, log_p, share, jnp.exp(log_k0)[:, None])
    times = num_samples * present.astype(jnp.float32)
    drawn = jnp.sum(times, axis=-1)
    share_q = jnp.where(present, posterior.log_alpha - log_q[:, None], 0.0) - jnp.log(
        jnp.float32(num_samples)
    )
    share_p = -jnp.log(drawn)[:, None]
    return _kl_dirichlet(log_q, share_q, log_p + jnp.log(drawn) - log_k0, share_p, times)


def _kl_dirichlet(
    log_a0: jax.Array, share_a: jax.Array, log_b0: jax.Array, share_b: jax.Array, times: jax.Array
) -> jax.Array:
    """`KL(Dir(a) || Dir(b))` with `a_i = a0 exp(share_a_i)`, entry i standing for `times_i` atoms.

    The textbook formula, lgG(a0) - sum lgG(a_i) - ... + sum (a_i - b_i)(psi(a_i) - psi(a0)),
    subtracts numbers of size a0 log a0 to leave one of size log a0. Written with Stirling's error
    rho and x eta(x) = x (psi(x) - log x), all a log a terms cancel on paper instead:

        sum b_i [share_b - share_a] + h(a) - h(b) + sum (1 - b_i/a_i)(a_i eta(a_i) - a_i eta(a0))
        h(a) = 1/2 (sum log a_i - log a0) + rho(a0) - sum rho(a_i)
    """
    log_a, log_b = log_a0[:, None] + share_a, log_b0[:, None] + share_b

    def h(log_x0: jax.Array, log_x: jax.Array) -> jax.Array:
        atoms = jnp.sum(times * (0.5 * log_x - stirling_error(log_x)), axis=-1)
        return atoms + stirling_error(log_x0) - 0.5 * log_x0

    shift = -jnp.expm1(jnp.minimum(log_b - log_a, 80.0))  # 1 - b_i/a_i
    eta = scaled_digamma_error(log_a) - jnp.exp(share_a) * scaled_digamma_error(log_a0)[:, None]
    moved = jnp.sum(times * shift * eta, axis=-1)
    spread = jnp.sum(times * jnp.exp(log_b) * (share_b - share_a), axis=-1)
    return spread + h(log_a0, log_a) - h(log_b0, log_b) + moved
