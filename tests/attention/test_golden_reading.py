"""A pretrained attention, read as a mixture: values computed once in float64, in plain numpy.

Keys x and a corpus with mean m, variances s_p and mean energy l = E |x|^2 / 2r give the mixture
whose tokens have mean x, variances sigma^2 s_p and log weight |x|^2 / 2r + A beside the prior's
(m, s_p, l). Without the prior and variances it is the attention itself.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny  # noqa: F401, keeps what is compiled
from tolerance import error

import nvib_jax as nvib

CORPUS = np.array([[1, 0, -1, 0.5], [0, 2, 0.5, -0.5], [-1, 1, 0, 1], [0.5, -0.5, 1, 0]])
X = np.array([[0.5, 1, -0.5, 0], [-1, 0.5, 1, 0.5], [0, -1, 0.5, 1]])
Y = np.array([[1, 0.5, 0, -1], [0, -0.5, 1.5, 0.5]])
W_Q = np.array([[1, 0, 0.5, 0], [0, 1, 0, -0.5], [0.5, 0, 1, 0], [0, 0.5, 0, 1]])
W_K = np.array([[0.5, 0, 1, 0], [0, 1, 0, 0.5], [1, 0, -0.5, 0], [0, 0.5, 0, 1]])
W_V = np.array([[1, 0, 0, 0.5], [0, 1, 0.5, 0], [0, 0.5, 1, 0], [0.5, 0, 0, 1]])
B_V = np.array([[0.1, -0.1], [0.2, 0]])
BIAS = np.array([[[0, 0.5, -0.5], [0.5, 0, 0.5]], [[1, 0, -1], [0, 1, 0]]])
ROOT = 2**0.5
PLAIN = [[0.117078, 0.167078, 0.419150, 0.461318], [0.167485, 0.089139, 0.290432, 0.410847]]
T5 = [[-0.155568, 0.467564, 0.293396, 0.283963], [0.297778, -0.106837, 0.305028, 0.354318]]


def read(form, alpha, sigma, *, causal=False, t5=False):
    """(what attention gives (T, H E), the prior's share (H, T)); alpha in standard deviations."""
    mean, variance = CORPUS.mean(0), CORPUS.var(0)
    energy = (CORPUS**2).sum(1) / (2 * ROOT)
    weights = (X**2).sum(1) / (2 * ROOT) + (alpha * energy.std() if np.isfinite(alpha) else 0.0)
    parts = (
        np.vstack([mean, X]),
        np.log(np.vstack([variance, np.tile(sigma**2 * variance + 1e-30, (3, 1))])),
        np.concatenate([[energy.mean()], weights]),
    )
    mixture = nvib.Mixture(
        *(jnp.asarray(part, jnp.float32)[None] for part in parts),
        jnp.asarray([[bool(np.isfinite(alpha)), True, True, True]]),
    )
    query = (Y @ W_Q * (ROOT if t5 else 1.0)).reshape(1, 2, 2, 2)
    how = {
        name: jnp.asarray(w.reshape(4, 2, 2), jnp.float32)
        for name, w in (("key_kernel", W_K), ("value_kernel", W_V))
    }
    how |= {"form": form, "causal": causal, "with_lse": True}
    if t5:  # the prior stands at no place, so its bias is the mean of the keys'
        bias = np.concatenate([BIAS.mean(-1, keepdims=True), BIAS], axis=-1)
        how["position_bias"] = jnp.asarray(bias, jnp.float32)
    query = jnp.asarray(query, jnp.float32)
    out, lse = nvib.denoising_attention(
        query, mixture, **how, value_bias=jnp.asarray(B_V, jnp.float32)
    )
    alone = nvib.Mixture(
        mixture.mean, mixture.log_variance, mixture.log_weights, mixture.mask.at[:, 1:].set(False)
    )
    first = nvib.denoising_attention(query, alone, **how)[1]
    return out.reshape(2, 4), jnp.exp(first - lse)[0].T


CASES = {
    "expected_logit": (
        "expected_logit",
        0,
        0,
        {},
        [[0.172162, 0.266504, 0.476892, 0.421964], [0.208862, 0.202120, 0.379176, 0.385700]],
        [[0.236491, 0.226705], [0.264446, 0.255696]],
    ),
    "published": (
        "published",
        0,
        0,
        {},
        [[0.201637, 0.246511, 0.374270, 0.337011], [0.226188, 0.153734, 0.305209, 0.461411]],
        [[0.268550, 0.268913], [0.337789, 0.275011]],
    ),
    "exact": (
        "exact",
        0,
        0,
        {},
        [[0.209473, 0.253872, 0.368610, 0.321333], [0.229642, 0.157535, 0.309027, 0.474472]],
        [[0.293437, 0.284733], [0.380395, 0.346052]],
    ),
    "simplified": (
        "simplified",
        0,
        0,
        {},
        [[0.190699, 0.232689, 0.449305, 0.355332], [0.220010, 0.187561, 0.371202, 0.341994]],
        [[0.419630, 0.420080], [0.501135, 0.427601]],
    ),
    "expected_logit, sigma": (
        "expected_logit",
        1,
        0.5,
        {},
        [[0.164710, 0.253053, 0.469329, 0.427118], [0.203203, 0.186666, 0.367432, 0.389028]],
        [[0.204497, 0.195696], [0.229809, 0.221859]],
    ),
    "published, sigma": (
        "published",
        1,
        0.5,
        {},
        [[0.230211, 0.250525, 0.327450, 0.302040], [0.239735, 0.142000, 0.269828, 0.525355]],
        [[0.222035, 0.221138], [0.273611, 0.234945]],
    ),
    "exact, sigma": (
        "exact",
        1,
        0.5,
        {},
        [[0.234075, 0.254592, 0.325976, 0.294566], [0.241496, 0.144260, 0.274044, 0.529289]],
        [[0.236934, 0.230533], [0.299621, 0.278337]],
    ),
    "expected_logit, causal": (
        "expected_logit",
        1,
        0.5,
        {"causal": True},
        [[-0.028426, 0.742472, 0.564953, 0.223720], [0.203203, 0.186666, 0.367432, 0.389028]],
        [[0.295231, 0.195696], [0.311401, 0.221859]],
    ),
    "published, causal": (
        "published",
        1,
        0.5,
        {"causal": True},
        [[0.065895, 0.648233, 0.379692, 0.113979], [0.239735, 0.142000, 0.269828, 0.525355]],
        [[0.316141, 0.221138], [0.359056, 0.234945]],
    ),
    "T5, expected_logit": (
        "expected_logit",
        1,
        0.5,
        {"t5": True},
        [[-0.063515, 0.489402, 0.343700, 0.288135], [0.307249, 0.019085, 0.386412, 0.344081]],
        [[0.182078, 0.181357], [0.146187, 0.244785]],
    ),
    "T5, published": (
        "published",
        1,
        0.5,
        {"t5": True},
        [[0.052031, 0.478995, 0.184316, 0.165935], [0.349123, 0.011459, 0.261349, 0.555534]],
        [[0.197431, 0.208667], [0.183786, 0.256420]],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    form, alpha, sigma, how, want, share = CASES[name]
    out, found = read(form, alpha, sigma, **how)
    np.testing.assert_allclose(out, want, atol=1e-5)
    np.testing.assert_allclose(found, share, atol=1e-5)
    assert error(out, jnp.asarray(T5 if "T5" in name else PLAIN)) > 0.01  # the prior has a say


@pytest.mark.parametrize("form", nvib.attention.FORMS)
def test_without_the_prior_it_is_the_attention_itself(form):
    np.testing.assert_allclose(read(form, np.inf, 0)[0], PLAIN, atol=1e-5)
    np.testing.assert_allclose(read(form, np.inf, 0, t5=True)[0], T5, atol=1e-5)
