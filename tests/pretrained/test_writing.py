"""Only `expected_logit` regularises a function whatever way its weights are written.

A pre-norm attention reads x = gamma * xhat + beta, where the entries of xhat add up to 0. So two
other writings of its weights are the same function: (i) keys and values moved along the normal
n = 1/gamma of the plane that x - beta lies in, because n.x is the same for all x; (ii) gamma and
beta moved from the norm into the projections. A reading that is a property of the function gives
the same logits for all three. `docs` in configs/README.md tells it in words.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pretrained_made import given, made

from nvib_jax.models.params import merge
from nvib_jax.pretrained.attention import View

FORMS = ("expected_logit", "published", "exact", "simplified")


def model():
    """GPT-2 with norms that scale and shift."""
    found = made("gpt2")
    params = dict(found.params)
    for i, name in enumerate(name for name in sorted(params) if ".norms.0." in name):
        noise = 0.4 * jax.random.normal(jax.random.key(i), params[name].shape)
        params[name] = jnp.exp(noise) if name.endswith("scale") else noise
    return dataclasses.replace(found, params=params)


def along_the_normal(plain):
    """Writing (i)."""
    params = dict(plain.params)
    for layer in range(2):
        own = f"decoder.layers.{layer}"
        scale, shift = (params[f"{own}.norms.0.{part}"] for part in ("scale", "bias"))
        normal = 1 / scale
        for i, part in enumerate(("key", "value")):
            kernel, bias = f"{own}.attention.{part}.kernel", f"{own}.attention.{part}.bias"
            move = 0.5 * jax.random.normal(jax.random.key(10 * layer + i), params[bias].shape)
            params[kernel] = params[kernel] + jnp.outer(normal, move)
            params[bias] = params[bias] - jnp.dot(normal, shift) * move
    return dataclasses.replace(plain, params=params, digest="along the normal")


def norm_moved(plain):
    """Writing (ii)."""
    params = dict(plain.params)
    for layer in range(2):
        own = f"decoder.layers.{layer}"
        scale, shift = (params[f"{own}.norms.0.{part}"] for part in ("scale", "bias"))
        for part in ("query", "key", "value"):
            kernel, bias = f"{own}.attention.{part}.kernel", f"{own}.attention.{part}.bias"
            params[bias] = params[bias] + jnp.dot(shift, params[kernel])
            params[kernel] = scale[:, None] * params[kernel]
        params[f"{own}.norms.0.scale"] = jnp.ones_like(scale)
        params[f"{own}.norms.0.bias"] = jnp.zeros_like(shift)
    return dataclasses.replace(plain, params=params, digest="norm moved")


def logits(plain, form=None, sigma=0.0):
    if form is not None:
        prior = plain.empirical_prior(*given("gpt2", 40, 9))
        plain = plain.reinterpret(prior, alpha=1.0, sigma=sigma, form=form)
    rows, _ = plain.rows(*given("gpt2"))
    ((_, batch),) = plain.batches(rows)

    @jax.jit
    def run(params, readings):
        module = merge(plain.graph, params)
        return module.logits(module.states(batch.tokens, batch.mask, view=View(readings)))

    return np.asarray(run(plain.params, plain.readings))[np.asarray(batch.mask)]


def apart(a, b):
    return float(np.abs(a - b).max())


@pytest.mark.parametrize("write", [along_the_normal, norm_moved])
def test_another_writing_is_the_same_function(write):
    plain = logits(model())
    assert apart(logits(write(model())), plain) < 1e-5 * np.abs(plain).max()


@pytest.mark.parametrize("write", [along_the_normal, norm_moved])
@pytest.mark.parametrize("form", FORMS)
def test_which_forms_see_how_a_function_is_written(form, write):
    """By how much writing moves a reading, in parts of how much the reading moves the function."""
    sigma = 0.0 if form == "expected_logit" else 0.5
    found = logits(model(), form, sigma)
    moved = apart(found, logits(model()))
    by_writing = apart(found, logits(write(model()), form, sigma))
    assert moved > 0.01
    if form == "expected_logit":
        assert by_writing < 1e-4 * moved
    else:
        assert by_writing > 0.1 * moved
