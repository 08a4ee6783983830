"""A trained attention, read as a mixture and moved off it: the pure part, for anyone's attention.

Attention to vectors x_i *is* denoising attention to a mixture whose tokens have the mean x_i, no
variance and the log pseudo-count |x_i|^2 / 2r, r = sqrt(E). An empirical prior over what is
attended to (mean m, variances s_p) adds a component; `Tau` says how far the reading moves to it:

    mean_i = mu x_i + (1 - mu) m,    s = sigma^2 s_p,    log alpha_i = |x_i|^2 / 2r + alpha

All tokens have the same variances, so every form is attention of head width with a bias a key, and
a gate: `out + rho (v_0 - out)`, rho = sigmoid(l_0 - lse), with the logit l_0 and the value v_0 of
the prior's component. Source: Fehr & Henderson (2024), arXiv 2312.00662; the gate is ours.
"""

import dataclasses
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nvib_jax.attention.inputs import FORMS, accumulator
from nvib_jax.checks import check_choice, check_count, check_shapes
from nvib_jax.posterior import make_posterior
from nvib_jax.types import Posterior, Prior

_LEAST_SIGMA = 1e-30  # its square is 0 in float32, and its logarithm is finite
_LEAST_VARIANCE = 1e-6  # of the mean variance: a dimension that never varies has no logarithm


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tau:
    """How far a reading moves off the pretrained attention; each a number or an array ().

    Attributes:
      alpha: nats that every token has above its norm; infinity leaves the prior's component out,
        and 0 counts it as a token at the mean of the data.
      sigma: standard deviation of the tokens, in those of the data; 0 is none.
      mean: share of a token's own vector in its mean, the rest is the data's mean.
    """

    alpha: float | jax.Array
    sigma: float | jax.Array = 0.0
    mean: float | jax.Array = 1.0

    @classmethod
    def published(cls, alpha: float, sigma: float = 0.0, *, scale: float | jax.Array) -> "Tau":
        """The paper's: `alpha` in standard deviations of the energy (`EmpiricalPrior.scale`)."""
        return cls(alpha * scale, sigma)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Moments:
    """Moments of the vectors that an attention reads; `merge` joins those of two parts.

    Attributes:
      count: how many vectors, ().
      mean, variance: of each dimension, (D,).
      energy, energy_variance: of |x|^2 / 2r, ().
    """

    count: jax.Array
    mean: jax.Array
    variance: jax.Array
    energy: jax.Array
    energy_variance: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EmpiricalPrior:
    """The prior of one attention, measured on a corpus.

    Attributes:
      prior: mean m, log variances log s_p, and the log pseudo-count l = E |x|^2 / 2r.
      scale: standard deviation of |x|^2 / 2r, nats, ().
    """

    prior: Prior
    scale: jax.Array

    @classmethod
    def from_moments(cls, found: Moments) -> "EmpiricalPrior":
        """The prior of these moments; variances below 1e-6 of their mean are raised to that."""
        least = _LEAST_VARIANCE * jnp.mean(found.variance)
        variance = jnp.maximum(found.variance, least)
        prior = Prior(found.mean, jnp.log(variance), found.energy, jnp.zeros_like(found.energy))
        return cls(prior, jnp.sqrt(found.energy_variance))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reading:
    """How one attention is read: its prior, how far off, and the form of attention.

    Attributes:
      prior: from an `EmpiricalPrior`.
      tau: how far.
      form: "expected_logit" depends on the attention as a function alone; what the others make of
        it depends on how its weights are written as well.
    """

    prior: Prior
    tau: Tau
    form: str = dataclasses.field(default="expected_logit", metadata={"static": True})

    def __post_init__(self) -> None:
        check_choice("form", self.form, FORMS)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PriorTerms:
    """What the prior's component adds to an attention of head width.

    Attributes:
      logit: l_0 of each query, (B, T, H).
      value: v_0 of each query, (B, T, H, E).
      kept: what attention to the tokens gives beside their values, (B, T, H, E): the part of the
        query that their variances leave as it is; 0 for the forms without interpolation.
    """

    logit: jax.Array
    value: jax.Array
    kept: jax.Array


def moments(x: jax.Array, mask: jax.Array, *, head_dim: int) -> Moments:
    """Moments of the valid vectors of a batch.

    Args:
      x: shape (B, N, D).
      mask: bool, shape (B, N), True = counts.
      head_dim: E.

    >>> found = moments(jnp.array([[[1.0, 0.0], [3.0, 0.0]]]), jnp.ones((1, 2), bool), head_dim=4)
    >>> print(found.count, found.mean, found.variance, found.energy)
    2.0 [2. 0.] [1. 0.] 1.25
    """
    check_shapes(x=(x, "float B N D"), mask=(mask, "bool B N"))
    x = x.astype(accumulator(x.dtype))
    weight = mask.astype(x.dtype)
    count = jnp.sum(weight)
    most = jnp.maximum(count, 1.0)

    def mean_and_variance(values: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = jnp.where(weight > 0, values, 0.0)
        mean = jnp.sum(values, axis=(0, 1)) / most
        spread = jnp.where(weight > 0, values - jnp.expand_dims(mean, (0, 1)), 0.0)
        return mean, jnp.sum(spread * spread, axis=(0, 1)) / most

    energy = jnp.sum(x * x, axis=-1) / (2 * root(head_dim))
    return Moments(
        count, *mean_and_variance(x, weight[..., None]), *mean_and_variance(energy, weight)
    )


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of two parts together (Chan, Golub & LeVeque 1983); a part may be empty."""
    count = a.count + b.count
    share = b.count / jnp.maximum(count, 1.0)

    def both(mean_a, variance_a, mean_b, variance_b):
        apart = mean_b - mean_a
        variance = (1 - share) * variance_a + share * variance_b
        return mean_a + share * apart, variance + share * (1 - share) * apart * apart

    return Moments(
        count,
        *both(a.mean, a.variance, b.mean, b.variance),
        *both(a.energy, a.energy_variance, b.energy, b.energy_variance),
    )


def identity_posterior(
    x: jax.Array,
    mask: jax.Array,
    reading: Reading,
    *,
    head_dim: int,
    concentration: float | None = None,
) -> Posterior:
    """The reading as a posterior, for draws, KLs, and the library's own attention.

    Args:
      x: what the key and value projections are applied to, shape (B, N, D).
      mask: bool, shape (B, N), True = a valid token.
      reading: of this attention.
      head_dim: E.
      concentration: pseudo-count of the prior's component; all others are shifted along, which no
        evaluation sees, and draws and the Dirichlet KL do: the published scale, None, has
        pseudo-counts of e^5 to e^300, which make no noise at all.

    Returns:
      `Posterior`, S = N + 1.
    """
    prior, tau = reading.prior, reading.tau
    x = x.astype(accumulator(x.dtype))
    spread = 2 * jnp.log(jnp.maximum(tau.sigma, _LEAST_SIGMA))
    log_alpha = jnp.sum(x * x, axis=-1) / (2 * root(head_dim)) + tau.alpha
    if concentration is not None:
        log_alpha = log_alpha - prior.log_alpha + math.log(concentration)
        prior = dataclasses.replace(prior, log_alpha=jnp.float32(math.log(concentration)))
    log_variance = jnp.broadcast_to(spread + _row(prior.log_variance, x), x.shape)
    return make_posterior(_means(x, reading), log_variance, log_alpha, mask, prior)


def token_terms(
    x: jax.Array, reading: Reading, *, head_dim: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the tokens are replaced by before the key and the value projection, and their bias.

    Args:
      x: what those projections are applied to in the pretrained attention, shape (B, N, D).
      reading: of this attention.
      head_dim: E.

    Returns:
      (x_key, x_value, each (B, N, D); bias of each key, (B, N)). The logits of attention are
      `q . W_k x_key + bias`, q not divided by sqrt(E). `tau.alpha` is not in the bias: the gate
      takes it off the prior's logit instead, so that at sigma 0 and mean 1 this is the pretrained
      attention, its keys divided by sqrt(E), to the last bit of its softmax.
    """
    x = x.astype(accumulator(x.dtype))
    r, s, total = _variances(reading, x.dtype, head_dim)
    z = _means(x, reading)
    # |x|^2 / 2r - |z|^2 / 2t, written so that two large numbers are never formed and subtracted.
    bias = _row((total - r) / (r * total), x) * x * x + (x - z) * (x + z) / _row(total, x)
    x_value = z * _row(r / total, x)  # at sigma 0 the factor is 1, and z to the last bit
    return x_value / r, x_value, jnp.sum(bias, axis=-1) / 2 + _f(s, r, reading)


def prior_terms(
    query: jax.Array, reading: Reading, *, key_kernel: jax.Array, value_kernel: jax.Array
) -> PriorTerms:
    """Logit and value of the prior's component, for `gate`.

    Args:
      query: as it meets the keys of `token_terms`, shape (B, T, H, E).
      reading: of this attention.
      key_kernel: shape (D, H, E); a bias of the keys adds the same to every logit and cancels.
      value_kernel: shape (D, H, E); a bias of the values is added to what `gate` returns.
    """
    check_shapes(
        query=(query, "float B T H E"),
        key_kernel=(key_kernel, "float D H E"),
        value_kernel=(value_kernel, "float D H E"),
    )
    dtype = accumulator(query.dtype)
    q, w_k, w_v = (a.astype(dtype) for a in (query, key_kernel, value_kernel))
    r, s, total = _variances(reading, dtype, query.shape[-1])
    prior = reading.prior
    m, s_p = prior.mean.astype(dtype), jnp.exp(prior.log_variance.astype(dtype))
    wide = reading.form != "expected_logit"
    total_p = s_p + r if wide else jnp.full_like(s_p, r)
    floored = prior.log_alpha.astype(dtype) - jnp.sum(m * m + s_p) / (2 * r)
    rest = jnp.sum(m * m * (total_p - r) / (r * total_p) + s_p / r) / 2 + _f(s_p, r, reading)
    logit = jnp.einsum("bthe,dhe,d->bth", q, w_k, m / total_p) + floored + rest - reading.tau.alpha
    value = jnp.einsum("dhe,d->he", w_v, r * m / total_p)[None, None]
    kept = jnp.zeros_like(q)
    if reading.form in ("published", "exact"):
        u_p = jnp.einsum("dhe,d,dhf->hef", w_v, s_p / total_p, w_k)
        u = jnp.einsum("dhe,d,dhf->hef", w_v, s / total, w_k)
        value = value + jnp.einsum("bthf,hef->bthe", q, u_p)
        kept = jnp.einsum("bthf,hef->bthe", q, u)
    if reading.form == "exact":
        more = jnp.einsum("dhe,d,dhf->hef", w_k, (s_p / total_p - s / total) / (2 * r), w_k)
        logit = logit + jnp.einsum("bthe,hef,bthf->bth", q, more, q)
    return PriorTerms(logit, jnp.broadcast_to(value, q.shape), kept)


def gate(out: jax.Array, lse: jax.Array, terms: PriorTerms) -> jax.Array:
    """Attention to tokens and the prior's component, from attention to the tokens.

        out <- out + rho (v_0 - out),    rho = sigmoid(l_0 - lse)

    Args:
      out: attention to the tokens, shape (B, T, H, E), without a value bias.
      lse: its log-sum-exp, shape (B, T, H).
      terms: from `prior_terms`; add a position bias of the prior's component, the mean of those of
        the keys that a query sees, to `terms.logit`.

    Returns:
      shape (B, T, H, E), of the dtype of `out`. Where `terms.logit` is -inf it is `out` itself, and
      what the tokens keep of the query.
    """
    own = out.astype(terms.value.dtype) + terms.kept
    share = jax.nn.sigmoid(terms.logit - lse)[..., None]
    return (own + share * (terms.value - own)).astype(out.dtype)


def root(head_dim: int) -> float:
    """r = sqrt(E), the noise variance of denoising attention."""
    return math.sqrt(check_count("head_dim", head_dim))


def _row(values: jax.Array, x: jax.Array) -> jax.Array:
    """(D,) beside x (..., D), without implicit rank promotion."""
    return jnp.expand_dims(values.astype(x.dtype), range(x.ndim - 1))


def _means(x: jax.Array, reading: Reading) -> jax.Array:
    share = jnp.asarray(reading.tau.mean, x.dtype)
    return share * x + (1 - share) * _row(reading.prior.mean, x)


def _variances(
    reading: Reading, dtype: jnp.dtype, head_dim: int
) -> tuple[float, jax.Array, jax.Array]:
    """(r; the tokens' variances s, (D,); t = s + r, or r for "expected_logit", (D,))."""
    r = root(head_dim)
    sigma = jnp.asarray(reading.tau.sigma, dtype)
    s = sigma * sigma * jnp.exp(reading.prior.log_variance.astype(dtype))
    return r, s, jnp.full_like(s, r) if reading.form == "expected_logit" else s + r


def _f(s: jax.Array, r: float, reading: Reading) -> jax.Array:
    """What variances s take off a logit, beside what they do to means, ()."""
    match reading.form:
        case "simplified":
            return jnp.zeros((), s.dtype)
        case "expected_logit":
            return -jnp.sum(s) / (2 * r)
    return -jnp.sum(jnp.log1p(s / r)) / 2
