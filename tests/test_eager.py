"""Called outside of jit, a public function compiles a program or two, and not one an operation."""

import logging

import jax
import jax.numpy as jnp
import pytest
import tiny  # noqa: F401, keeps what is compiled

import nvib_jax as nvib
from nvib_jax.objective import log_density_ratio

PRIOR = nvib.Prior.standard(5, alpha_delta=0.5)
KEY = jax.random.key(0)


NAMES = (
    *("make_posterior", "kl_gaussian", "kl_dirichlet", "vector_count", "sample", "sample_prior"),
    *("expected", "keep_largest", "interpolate", "log_density_ratio", "denoising_attention"),
)


def calls(tokens):
    """The calls by name; shapes that nothing else has, so that whatever runs is compiled."""
    x, mask = jnp.ones((3, tokens, 5)), jnp.ones((3, tokens), bool)
    posterior = nvib.make_posterior(x, 0 * x, x[..., 0], mask, PRIOR)
    mean, drawn = nvib.expected(posterior), nvib.sample(KEY, posterior)
    lengths, query, kernel = jnp.full((3,), 4), jnp.ones((3, 2, 1, 5)), jnp.ones((5, 1, 5))
    kernels, other = {"key_kernel": kernel, "value_kernel": kernel}, jnp.ones((3, tokens + 50, 5))
    more = jnp.ones(other.shape[:2], bool)
    return (
        lambda: nvib.make_posterior(other, other, other[..., 0], more, PRIOR),
        lambda: nvib.kl_gaussian(posterior, PRIOR),
        lambda: nvib.kl_dirichlet(posterior, PRIOR, form="exact"),
        lambda: nvib.vector_count(posterior),
        lambda: nvib.sample(KEY, posterior, num_samples=2),
        lambda: nvib.sample_prior(KEY, PRIOR, lengths, max_length=tokens),
        lambda: nvib.expected(posterior, threshold=0.2),
        lambda: nvib.keep_largest(posterior, 3),
        lambda: nvib.interpolate(mean, mean, 0.5),
        lambda: log_density_ratio(drawn, posterior, PRIOR),
        lambda: nvib.denoising_attention(query, mean, **kernels),
    )


@pytest.mark.parametrize("case", range(len(NAMES)), ids=NAMES)
def test_few_programs(case, caplog):
    call = calls(20 + case)[case]
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        call()
    compiled = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling ")]
    assert 1 <= len(compiled) <= 6, compiled
