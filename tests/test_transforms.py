"""Every public function under jit, vmap, pmap, grad, shard_map, scan and remat: one table.

Each entry is a function of one pytree of arrays whose leaves all have the batch in front.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import kernels, normal, prior, query, statistics
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tolerance import assert_trees_close

import nvib_jax as nvib
from nvib_jax import objective

BATCH, KEY = 8, jax.random.key(0)
BASE, KERNELS = prior(), kernels()
KEYS = jax.random.key_data(jax.random.split(KEY, BATCH))


def inputs():
    mean, log_variance, log_alpha, _ = statistics(BATCH)
    lengths = 1 + jnp.arange(BATCH, dtype=jnp.int32) % 5
    return {
        "mean": mean,
        "log_variance": log_variance,
        "log_alpha": log_alpha,
        "length": lengths,
        "mask": jnp.arange(5, dtype=jnp.int32)[None] < lengths[:, None],
        "query": query(BATCH),
        "key": KEYS,
    }


def post(x):
    return nvib.make_posterior(x["mean"], x["log_variance"], x["log_alpha"], x["mask"], BASE)


def per_row(f):
    """Random functions get one key a row, so that a shard draws what the whole batch draws."""

    def run(x):
        one = jax.tree.map(lambda a: a[:, None], {k: v for k, v in x.items() if k != "key"})
        out = jax.vmap(lambda k, row: f(jax.random.wrap_key_data(k), row))(x["key"], one)
        return jax.tree.map(lambda a: a[:, 0], out)

    return run


def weights_of(mix):  # -inf - -inf is no number to compare
    return {"mean": mix.mean, "weights": jnp.exp(mix.log_weights), "mask": mix.mask}


def attention(form, implementation):
    def run(x):
        weights = "geometric" if form == "expected_logit" else "mean"
        mix = nvib.expected(post(x), log_weights=weights)
        options = {"form": form, "implementation": implementation}
        return nvib.denoising_attention(x["query"], mix, **KERNELS, **options)

    return run


def ratio(key, x):
    draw = nvib.sample(key, post(x), num_samples=2)
    return objective.log_density_ratio(draw, post(x), BASE)


def likelihood(x):
    targets = jnp.zeros(x["mask"].shape, jnp.int32)
    return objective.log_likelihood(x["mean"], targets, x["mask"])


FUNCTIONS = {
    "make_posterior": post,
    "log_pseudo_count": lambda x: nvib.log_pseudo_count(x["mean"], normal(1, 8), jnp.float32(0.1)),
    "relu": lambda x: jnp.exp(
        nvib.log_pseudo_count(x["mean"], normal(1, 8), jnp.float32(0.1), form="relu")
    ),
    "add_skip": lambda x: nvib.add_skip(x["log_alpha"], post(x)),
    "sample": per_row(lambda k, x: weights_of(nvib.sample(k, post(x), num_samples=2))),
    "sample_prior": per_row(
        lambda k, x: weights_of(nvib.sample_prior(k, BASE, x["length"], max_length=5))
    ),
    "expected": lambda x: weights_of(nvib.expected(post(x), threshold=0.1)),
    "geometric": lambda x: weights_of(nvib.expected(post(x), log_weights="geometric")),
    "interpolate": lambda x: weights_of(
        nvib.interpolate(nvib.expected(post(x)), nvib.expected(post(x)), 0.3)
    ),
    "kl_gaussian": lambda x: nvib.kl_gaussian(post(x), BASE),
    "kl_gaussian exact": lambda x: nvib.kl_gaussian(post(x), BASE, num_samples=2, form="exact"),
    "kl_dirichlet": lambda x: nvib.kl_dirichlet(post(x), BASE),
    "kl_dirichlet exact": lambda x: nvib.kl_dirichlet(post(x), BASE, num_samples=2, form="exact"),
    "attention": attention("exact", None),
    "attention expected_logit": attention("expected_logit", "xla"),
    "attention reference": attention("published", "reference"),
    "attend": lambda x: nvib.attend(
        x["query"], nvib.make_memory(nvib.expected(post(x)), **KERNELS)
    ),
    "log_density_ratio": per_row(ratio),
    "log_likelihood": likelihood,
}


SAMPLERS = ("sample", "sample_prior", "log_density_ratio")  # seconds to compile


def floats(x):
    return {k: v for k, v in x.items() if jnp.issubdtype(v.dtype, jnp.floating)}


def total(f, x):
    leaves = [a for a in jax.tree.leaves(f(x)) if jnp.issubdtype(a.dtype, jnp.floating)]
    return sum((jnp.sum(jnp.sin(a)) for a in leaves), jnp.float32(0))


def rows(f):
    """f of a single example, whose leaves have no batch axis."""
    return lambda x: jax.tree.map(lambda a: a[0], f(jax.tree.map(lambda a: a[None], x)))


def scanned(f):
    return lambda x: jax.lax.scan(lambda c, row: (c, rows(f)(row)), 0, x)[1]


def sharded(f):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    run = jax.shard_map(f, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    return lambda x: jax.jit(run)(jax.device_put(x, NamedSharding(mesh, P("data"))))


def pmapped(f):
    def run(x):
        out = jax.pmap(f)(jax.tree.map(lambda a: a[:, None], x))
        return jax.tree.map(lambda a: a[:, 0], out)

    return run


TRANSFORMS = {
    "vmap": lambda f: jax.jit(jax.vmap(rows(f))),
    "scan": lambda f: jax.jit(scanned(f)),
    "shard_map": sharded,
    "remat": lambda f: jax.jit(jax.checkpoint(f)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms(name):
    """All equal the jitted function; gradients equal under remat and shard_map, and are finite."""
    f, x = FUNCTIONS[name], inputs()
    assert len(jax.devices()) == 8
    want = jax.jit(f)(x)
    for kind, transform in TRANSFORMS.items():
        if name in SAMPLERS and kind not in ("scan", "shard_map"):  # per_row is a vmap already
            continue
        assert_trees_close(transform(f)(x), want, 1e-5)
    if name == "sample_prior":
        return

    def loss(f):
        return lambda p: total(f, {**x, **p})

    wanted = jax.jit(jax.grad(loss(f)))(floats(x))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(wanted))
    assert any(float(jnp.max(jnp.abs(g))) > 0 for g in jax.tree.leaves(wanted))
    assert_trees_close(jax.jit(jax.grad(loss(jax.checkpoint(f))))(floats(x)), wanted, 1e-4)
    if name in ("attention", "kl_dirichlet exact", "sample"):
        assert_trees_close(jax.grad(loss(sharded(f)))(floats(x)), wanted, 1e-4)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("attention", "kl_dirichlet") else pytest.mark.long)
        for name in FUNCTIONS
        if name not in SAMPLERS
    ],
)
def test_pmap(name):
    """A shard_map with one row a device by now, so most of it can wait."""
    f, x = FUNCTIONS[name], inputs()
    assert_trees_close(pmapped(f)(x), jax.jit(f)(x), 1e-5)


def test_no_tracer_leaks(no_leaks):
    """The whole chain, traced with the leak check on."""
    x = inputs()

    def loss(p):
        y = {**x, **p}
        draw = nvib.sample(KEY, post(y))
        out = nvib.denoising_attention(y["query"], draw, **KERNELS)
        return jnp.sum(out) + jnp.sum(nvib.kl_dirichlet(post(y), BASE, form="exact"))

    assert np.isfinite(jax.jit(jax.grad(loss))(floats(x))["mean"]).all()


def test_values_are_pytrees():
    """Prior, Posterior and Mixture pass through jit and tree functions as they are."""
    assert isinstance(jax.jit(lambda p: p)(post(inputs())), nvib.Posterior)
    assert len(jax.tree.leaves(BASE)) == 4
    assert len(jax.tree.leaves(nvib.sample(KEY, post(inputs())))) == 3
