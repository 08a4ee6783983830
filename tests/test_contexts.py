"""The core as others run it: on their meshes, with both kinds of axes, and in x64; one table.

`tests/conftest.py` has rank and dtype promotion refuse everything that jax can refuse. Each entry
is a function of `test_transforms.inputs`: arrays whose first axis is the batch, which a mesh
divides.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import mixture, normal
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_transforms import BASE, BATCH, FUNCTIONS, KERNELS, floats, inputs, post, total, weights_of
from tolerance import assert_trees_close

import nvib_jax as nvib
from nvib_jax import objective
from nvib_jax.attention import FORMS, attention_weights
from nvib_jax.attention.cache import append, empty_memory
from nvib_jax.modules.linear import Linear, Linears
from nvib_jax.objective.cross_entropy import cross_entropy

KEY = jax.random.key(1)
OUTPUT = normal(7, 8, 13), normal(8, 13)  # kernel and bias of an output layer


def read_and_attend(form, implementation="xla", **options):
    def run(x):
        mix, form_ = nvib.read(post(x), form, key=KEY, threshold=0.2, num_samples=2)
        how = {"form": form_, "implementation": implementation, **options}
        return nvib.denoising_attention(x["query"], mix, **KERNELS, **how)

    return run


def hidden(x):
    seen = jnp.arange(6, dtype=jnp.int32)[None, None] <= x["length"][:, None, None]
    seen = jnp.broadcast_to(seen, (*x["query"].shape[:2], 6))
    bias = normal(9, 2, 4)
    return nvib.denoising_attention(
        x["query"], nvib.expected(post(x)), **KERNELS, mask=seen, value_bias=bias
    )


def relative(x):
    mix, bias = nvib.expected(post(x)), normal(9, 2, *x["query"].shape[1:2], 6)
    return nvib.denoising_attention(x["query"], mix, **KERNELS, position_bias=bias)


def growing(x):
    """A memory of six components, to which they are appended, in two parts."""
    mix = nvib.expected(post(x))
    parts = [jax.tree.map(lambda a, s=s: a[:, s], mix) for s in (slice(0, 1), slice(1, 6))]
    new = [nvib.make_memory(part, **KERNELS) for part in parts]
    memory = append(append(empty_memory(new[0], 8), new[0], 0), new[1], 1)
    return nvib.attend(x["query"], memory)


def in_chunks(x):  # 300 queries of two heads are more than one chunk
    query = jnp.tile(x["query"], (1, 75, 1, 1))
    return nvib.denoising_attention(query, nvib.expected(post(x)), **KERNELS, causal=True)


def output_loss(x, positions, dtype=None):
    states = x["mean"] if dtype is None else x["mean"].astype(dtype)
    targets = jnp.zeros(x["mask"].shape, jnp.int32) + x["length"][:, None]
    at_once = BATCH * 13 * positions
    return 0.01 * cross_entropy(states, *OUTPUT, targets, x["mask"], logits_at_once=at_once)


def output_gradients(x):
    def loss(kernel, bias):
        targets = jnp.ones(x["mask"].shape, jnp.int32)
        return cross_entropy(x["mean"], kernel, bias, targets, x["mask"], logits_at_once=200)

    kernel, bias = jax.grad(loss, (0, 1))(*OUTPUT)
    return kernel.T, bias  # no batch in front


def ratio(x):
    draw = nvib.sample(KEY, post(x), num_samples=2)
    return objective.log_density_ratio(draw, post(x), BASE)


def bound(x):
    kls = [kl(post(x), BASE, form="exact") for kl in (nvib.kl_gaussian, nvib.kl_dirichlet)]
    elbo = objective.elbo(-x["log_alpha"][:, 0], *kls, x["log_alpha"][:, 1])
    n = x["length"]
    kls = objective.budget(kls[0], n, free=0.3), objective.budget(kls[1], n, capacity=0.2)
    return objective.iwae(jnp.stack([elbo, *kls])), objective.published_scale(kls[0], n, 8)


def impulses(x):
    draw = nvib.sample(KEY, post(x))
    return weights_of(nvib.interpolate(draw, nvib.expected(post(x)), 0.3))


def way_to_the_same(x):
    """One end is the same everywhere, the other divided."""
    end = mixture(BATCH, 3)
    return weights_of(nvib.interpolate(end, nvib.expected(post(x)), jnp.full(BATCH, 0.3)))


def linear(x):
    layers = Linear(8, 6, rngs=nnx.Rngs(0)), Linears(8, (3, 8), rngs=nnx.Rngs(1))
    return [layer(x["mean"]) for layer in layers]


NAMES = ("sample", "sample_prior", "log_density_ratio", "attention", "attention expected_logit")
TABLE = {name: f for name, f in FUNCTIONS.items() if name not in NAMES} | {
    "sample": lambda x: weights_of(nvib.sample(KEY, post(x), num_samples=2)),
    "sample_prior": lambda x: weights_of(nvib.sample_prior(KEY, BASE, x["length"], max_length=5)),
    "log_density_ratio": ratio,
    "vector_count": lambda x: nvib.vector_count(post(x), num_samples=2),
    "interpolate impulses": impulses,
    "interpolate with what is whole": way_to_the_same,
    "random.loggamma": lambda x: nvib.random.loggamma(KEY, x["log_alpha"]),
    "random.log_dirichlet": lambda x: jnp.exp(
        nvib.random.log_dirichlet(KEY, x["log_alpha"], x["mask"])
    ),
    "exp_quadratic": lambda x: nvib.log_pseudo_count(
        x["mean"], normal(1, 8), jnp.float32(0.1), normal(2, 8), form="exp_quadratic"
    ),
    "cross_entropy whole": lambda x: output_loss(x, 1000),
    "cross_entropy in parts": lambda x: output_loss(x, 2),
    "cross_entropy bfloat16": lambda x: output_loss(x, 3, jnp.bfloat16),
    "cross_entropy by the output layer": output_gradients,
    "attention hidden": hidden,
    "attention relative": relative,
    "attention of what grows": growing,
    "attention in chunks": in_chunks,
    "attention weights": lambda x: attention_weights(
        x["query"], nvib.make_memory(nvib.expected(post(x)), **KERNELS)
    ),
    **{f"read {form}": read_and_attend(form) for form in (*FORMS, "drawn", "average")},
    **{f"reference {form}": read_and_attend(form, "reference") for form in FORMS},
    "reference causal": read_and_attend("exact", "reference", causal=True),
    "bounds": bound,
    "modules.linear": linear,
}
# Compiled by every run of the tests. The others are traced, which is where jax refuses layouts and
# promotions; their numbers are compared with `-m long`.
QUICK = ("make_posterior", "sample", "kl_dirichlet", "read exact", "cross_entropy in parts")
CASES = [pytest.param(n, marks=() if n in QUICK else pytest.mark.long) for n in TABLE]
AXES = pytest.mark.parametrize("axes", [AxisType.Explicit, AxisType.Auto], ids=["explicit", "auto"])


def value_and_gradient(name):
    """A function of the inputs: (what the entry gives, its gradient by all floats)."""
    f = TABLE[name]

    def run(x):
        if name == "sample_prior":
            return f(x), {}
        gradient, value = jax.grad(lambda p: total_and_value(f, {**x, **p}), has_aux=True)(
            floats(x)
        )
        return value, gradient

    return jax.jit(run)


def total_and_value(f, x):
    value = f(x)
    return total(lambda _: value, x), value


@functools.cache
def alone(name):
    """On one device, no mesh; numpy, so that no mesh meets it."""
    return jax.tree.map(np.asarray, value_and_gradient(name)(inputs()))


def on(mesh):
    return jax.device_put(inputs(), NamedSharding(mesh, P("data")))


@pytest.mark.parametrize("name", TABLE)
def test_traced_on_explicit_axes(name):
    """With the batch divided, jax knows every layout, and no row of a result is gathered."""
    mesh = jax.make_mesh((4, 2), ("data", "other"))  # explicit, as jax makes them
    with jax.set_mesh(mesh):
        found = jax.tree.leaves(jax.eval_shape(value_and_gradient(name), on(mesh)))
    rows = [x for x in found if x.ndim and x.shape[0] == BATCH]
    assert {x.sharding.spec[0] for x in rows} <= {"data"}


@AXES
@pytest.mark.parametrize("name", CASES)
def test_on_a_mesh(name, axes):
    """Value and gradient with the batch over eight devices are those of one device."""
    mesh = jax.make_mesh((4, 2), ("data", "other"), axis_types=(axes, axes))
    with jax.set_mesh(mesh):
        found = value_and_gradient(name)(on(mesh))
    assert_trees_close(found, alone(name), 2e-5)


@pytest.mark.parametrize("name", TABLE)
def test_traced_in_x64(name):
    """With 64 bits allowed, nothing is promoted and no result becomes float64."""

    def dtypes(found):
        return [a.dtype for a in jax.tree.leaves(found)]

    wanted = jax.eval_shape(value_and_gradient(name), inputs())
    with jax.enable_x64(True):
        assert dtypes(jax.eval_shape(value_and_gradient(name), inputs())) == dtypes(wanted)


@pytest.mark.parametrize("name", CASES)
def test_in_x64(name):
    with jax.enable_x64(True):
        found = value_and_gradient(name)(inputs())
    assert_trees_close(found, alone(name), 2e-5)


@pytest.mark.parametrize("name", ["make_posterior", "attention in chunks", "sample"])
def test_outside_of_jit_on_explicit_axes(name):
    """Operation by operation, where each result has to find its layout alone."""
    mesh = jax.make_mesh((8,), ("data",))  # as jax makes them
    with jax.set_mesh(mesh):
        value = TABLE[name](on(mesh))
    assert_trees_close(value, alone(name)[0], 2e-5)
