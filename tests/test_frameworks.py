"""Beside other people's modules: Flax Linen through the wrappers, Equinox through plain arrays."""

import dataclasses

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from examples import normal
from flax import linen as nn
from flax import nnx

import nvib_jax as nvib
from nvib_jax import modules
from nvib_jax.attention import attention_weights
from nvib_jax.modules import linen

D, H = 16, 2
X, MASK = normal(0, 3, 5, D), jnp.arange(5)[None] < jnp.array([5, 3, 1])[:, None]
KEY = jax.random.key(0)


# ---- Linen


@pytest.mark.parametrize(
    "options",
    [
        {"pseudo_count": "exp_linear", "initial_variance": 0.3},
        {"pseudo_count": "exp_quadratic", "initial_alpha": 3.0},
        {"pseudo_count": "relu", "initial_kept": 0.2},
    ],
    ids=lambda options: options["pseudo_count"],
)
def test_linen_nvib_is_the_nnx_one(options):
    layer = linen.NVIB(D, prior_alpha=2.0, alpha_delta=0.3, **options)
    variables = jax.jit(layer.init)(KEY, X, MASK)
    twin = modules.NVIB(D, prior=layer.prior, rngs=nnx.Rngs(1), **options)
    for name in ("alpha_bias", "log_variance"):  # where they start
        chex.assert_trees_all_close(
            nnx.to_pure_dict(nnx.state(twin))[name], variables["params"]["layer"][name], rtol=1e-6
        )
    spread = [
        jnp.std(a) for a in (twin.alpha_linear[...], variables["params"]["layer"]["alpha_linear"])
    ]
    assert 0.3 < spread[0] / spread[1] < 3  # both of 16 normals
    nnx.update(twin, nnx.State(variables["params"]["layer"]))
    found = jax.jit(layer.apply)(variables, X, MASK)
    chex.assert_trees_all_equal(found, jax.jit(lambda x: twin(x, MASK))(X))
    skipped = layer.apply(variables, X, MASK, found)
    np.testing.assert_allclose(
        skipped.log_alpha[:, 1:][MASK], 2 * found.log_alpha[:, 1:][MASK], rtol=1e-6
    )


def test_linen_prior_is_what_is_asked_for_not_what_was_saved():
    layer = linen.NVIB(D, prior_alpha=2.0, alpha_delta=0.3)
    chex.assert_trees_all_equal(layer.prior, nvib.Prior.standard(D, alpha=2.0, alpha_delta=0.3))
    variables = layer.init(KEY, X, MASK)
    assert set(variables) == {"params"}  # nothing of it can be trained or be out of date
    for alpha in (2.0, 7.0):
        posterior = linen.NVIB(D, prior_alpha=alpha).apply(variables, X, MASK)
        np.testing.assert_allclose(
            posterior.log_alpha[:, 0], jnp.full(3, jnp.log(alpha)), rtol=1e-6
        )


@pytest.mark.parametrize("form", ["exact", "simplified"])
def test_linen_attention_is_the_function(form):
    mixture = nvib.sample_prior(KEY, nvib.Prior.standard(D), jnp.array([4, 2, 0]), max_length=4)
    mixture = nvib.Mixture(mixture.mean, 0 * mixture.mean - 1, mixture.log_weights, mixture.mask)
    layer = linen.DenoisingAttention(D, H, use_bias=True, form=form)
    variables = layer.init(KEY, X, mixture)
    p = variables["params"]["layer"] = jax.tree.map(lambda a: a + 0.1, variables["params"]["layer"])
    query = (X @ p["query"]["kernel"] + p["query"]["bias"][None, None]).reshape(3, 5, H, -1)
    out = nvib.denoising_attention(
        query, mixture, form=form, key_kernel=p["key_kernel"], value_kernel=p["value_kernel"],
        value_bias=p["value_bias"],
    )  # fmt: skip
    want = out.reshape(X.shape) @ p["out"]["kernel"] + p["out"]["bias"][None, None]
    np.testing.assert_allclose(layer.apply(variables, X, mixture), want, atol=1e-5)
    memory = layer.apply(variables, mixture, method="memory")
    np.testing.assert_array_equal(
        layer.apply(variables, X, memory), layer.apply(variables, X, mixture)
    )
    weights = layer.apply(variables, X, memory, method="weights")
    np.testing.assert_allclose(weights, attention_weights(query, memory), atol=1e-6)


def test_linen_attention_passes_its_options_on():
    mixture = nvib.sample_prior(KEY, nvib.Prior.standard(D), jnp.array([4, 2, 0]), max_length=4)
    layer = linen.DenoisingAttention(D, H, dtype=jnp.bfloat16)
    assert layer.init_with_output(KEY, X, mixture)[0].dtype == jnp.bfloat16
    with pytest.raises(NotImplementedError, match="cudnn"):
        linen.DenoisingAttention(D, H, implementation="cudnn").init(KEY, X, mixture)


class Model(nn.Module):
    """Someone's model with both in it."""

    @nn.compact
    def __call__(self, x, mask, key=None):
        posterior = linen.NVIB(D, alpha_delta=0.3)(nn.Dense(D)(x), mask)
        mixture = nvib.expected(posterior) if key is None else nvib.sample(key, posterior)
        return linen.DenoisingAttention(D, H)(x, mixture), posterior


def test_every_parameter_of_a_linen_model_learns():
    model = Model()
    params = model.init(KEY, X, MASK)["params"]

    @jax.jit
    @jax.grad
    def gradient(params):
        out, posterior = model.apply({"params": params}, X, MASK, KEY)
        return jnp.sum(out**2) + nvib.kl_gaussian(posterior, nvib.Prior.standard(D)).sum()

    found = jax.tree.map(lambda g: float(jnp.abs(g).max()), gradient(params))
    assert len(jax.tree.leaves(found)) == 12
    assert min(jax.tree.leaves(found)) > 0


# ---- Equinox


class Bottleneck(eqx.Module):
    """Someone's layer of pure functions, with the prior as a field."""

    mean: eqx.nn.Linear
    alpha: jax.Array
    prior: nvib.Prior

    def __init__(self, key):
        self.mean = eqx.nn.Linear(D, D, key=key)
        self.alpha, self.prior = jnp.zeros(D), nvib.Prior.standard(D, alpha_delta=0.3)

    def __call__(self, x, mask, key):
        mean = jax.vmap(jax.vmap(self.mean))(x)
        log_alpha = nvib.log_pseudo_count(x, self.alpha, jnp.float32(0))
        posterior = nvib.make_posterior(mean, 0 * mean - 2, log_alpha, mask, self.prior)
        kls = [kl(posterior, self.prior) for kl in (nvib.kl_gaussian, nvib.kl_dirichlet)]
        return nvib.sample(key, posterior), sum(kls)


def test_weight_decay_moves_a_prior_that_is_not_masked():
    """Its gradient is 0, and AdamW shrinks what has none: both as `Prior` says."""
    weights = {"prior": nvib.Prior.standard(D, alpha=2.0), "map": jnp.ones((D, D))}

    def loss(weights):
        mean = X @ weights["map"]
        posterior = nvib.make_posterior(mean, 0 * mean, mean[..., 0], MASK, weights["prior"])
        return nvib.kl_gaussian(posterior, weights["prior"]).sum()

    def is_prior(x):
        return isinstance(x, nvib.Prior)

    mask = jax.tree.map(lambda x: not is_prior(x), weights, is_leaf=is_prior)
    gradient = jax.grad(loss)(weights)
    chex.assert_trees_all_equal(gradient["prior"], jax.tree.map(jnp.zeros_like, weights["prior"]))
    for options, alpha in (({}, 2.0**0.9), ({"mask": mask}, 2.0)):
        optimizer = optax.adamw(0.1, weight_decay=1.0, **options)
        with jax.numpy_dtype_promotion("standard"):  # which optax is written for
            updates, _ = optimizer.update(gradient, optimizer.init(weights), weights)
        moved = optax.apply_updates(weights, updates)
        np.testing.assert_allclose(jnp.exp(moved["prior"].log_alpha), alpha, rtol=1e-6)
        assert float(jnp.abs(moved["map"] - weights["map"]).max()) > 0.01


@pytest.mark.parametrize("trainable", [False, True])
def test_in_an_equinox_module(trainable):
    """Its prior is a field like any other, and yet a constant, unless it is asked to learn."""

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(model):
        mixture, kl = model(X, MASK, KEY)
        return (
            jnp.sum(jnp.square(mixture.mean) * jnp.exp(mixture.log_weights)[..., None]) + kl.sum()
        )

    model = Bottleneck(KEY)
    model = eqx.tree_at(
        lambda m: m.prior, model, dataclasses.replace(model.prior, trainable=trainable)
    )
    found = gradient(model)
    assert jnp.abs(found.mean.weight).max() > 0
    assert jnp.abs(found.alpha).max() > 0
    moved = [float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(found.prior)]
    assert moved == [trainable] * 4
