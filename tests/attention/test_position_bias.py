"""A bias for every head, query and component, for relative positions; and who cannot take it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import as_float64, kernels, mixture, normal, query
from tolerance import assert_close, assert_trees_close, error

import nvib_jax as nvib
from nvib_jax.attention import FORMS, attention_weights, choice, xla
from nvib_jax.attention.cache import append, empty_memory
from nvib_jax.config import MeshConfig
from nvib_jax.training.sharding import make_mesh

K, HEADS = kernels(), 2
KERNELS = ("pallas_tpu", "pallas_gpu", "cudnn")
attention = jax.jit(nvib.denoising_attention, static_argnames=("form", "implementation", "causal"))


def bias(length=4, components=6, seed=30):
    return normal(seed, HEADS, length, components, scale=2.0)


@pytest.mark.parametrize("form", FORMS)
def test_it_moves_the_logits_as_log_weights_do(form):
    """For one head and one query it is a change of the mixture's log weights, which the reference
    takes in float64 without a bias. Both implementations, and what None takes, against that.
    """
    mix, q, b = mixture(), query(), bias()
    want = np.zeros(q.shape)
    with jax.enable_x64(True):
        q64, mix64, k64, b64 = as_float64((q, mix, K, b))
        for h, t in np.ndindex(HEADS, 4):
            weights = mix64.log_weights + b64[h, t][None]
            moved = nvib.Mixture(mix64.mean, mix64.log_variance, weights, mix.mask)
            out = attention(q64, moved, **k64, form=form, implementation="reference")
            want[:, t, h] = out[:, t, h]
        for implementation in ("reference", "xla"):
            options = {"form": form, "implementation": implementation, "position_bias": b64}
            assert_close(attention(q64, mix64, **k64, **options), want, 1e-12)
    for implementation in ("reference", "xla", None):
        got = attention(q, mix, **K, form=form, position_bias=b, implementation=implementation)
        assert_close(got, want)
    # It has power: without the bias, or with another head's, it is something else.
    assert error(attention(q, mix, **K, form=form), want) > 0.05
    assert error(attention(q, mix, **K, form=form, position_bias=b[::-1]), want) > 0.05


@pytest.mark.parametrize("form", ["exact", "expected_logit"])
def test_chunks_equal_the_reference_in_value_and_gradient(form):
    """T beyond one chunk and no multiple of it, under a mask and causal: the bias is cut as they
    are, and its gradient is that of the reference.
    """
    length, components = xla.ROWS // HEADS + 3, 6
    q, mix, b = query(2, length), mixture(2), bias(length)
    seen = np.random.default_rng(3).random((2, length, components)) < 0.6
    mask, target = jnp.asarray(seen).at[..., 0].set(True), normal(8, *q.shape)

    @functools.partial(jax.jit, static_argnums=2)
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def run(q, b, implementation):
        options = {"form": form, "implementation": implementation, "causal": True}
        out = nvib.denoising_attention(q, mix, **K, **options, mask=mask, position_bias=b)
        return jnp.sum(target * jnp.sin(out))

    want = run(q, b, "reference")
    assert_trees_close(run(q, b, "xla"), want, 2e-5)
    assert float(jnp.max(jnp.abs(want[1][1][:, -1]))) > 1e-3  # the last query's


def test_the_gradient_is_the_difference():
    """Central differences in float64, in a random direction of all of the bias."""
    with jax.enable_x64(True):
        q, mix, k, b, along = as_float64((query(), mixture(), K, bias(), bias(seed=31)))

        @jax.jit
        @jax.value_and_grad
        def loss(b):
            return jnp.sum(jnp.sin(nvib.denoising_attention(q, mix, **k, position_bias=b)))

        slope = float(jnp.sum(loss(b)[1] * along))
        rise = float(loss(b + 1e-5 * along)[0] - loss(b - 1e-5 * along)[0]) / 2e-5
    assert abs(slope) > 1e-2
    assert slope == pytest.approx(rise, rel=1e-7)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("length", [4, xla.ROWS // HEADS + 3])
def test_each_sentence_may_have_its_own(implementation, length):
    """One for each sentence is each sentence alone with its own, in one chunk and in several."""
    q, mix = query(3, length), mixture()
    b = normal(30, 3, HEADS, length, 6, scale=2.0)
    options = {"implementation": implementation, "causal": True}
    got = attention(q, mix, **K, **options, position_bias=b)
    for i in range(3):
        alone, one = jax.tree.map(lambda x, i=i: x[i : i + 1], (mix, q))
        assert_close(got[i], attention(one, alone, **K, **options, position_bias=b[i])[0])
    assert error(attention(q, mix, **K, **options, position_bias=b[::-1]), got) > 0.05


def test_a_constant_of_a_head_and_query_changes_nothing():
    mix, q, b = mixture(), query(), bias()
    moved = b + normal(5, HEADS, 4, 1, scale=9.0)
    want = attention(q, mix, **K, position_bias=b)
    assert_close(attention(q, mix, **K, position_bias=moved), want)


def test_weights_take_it_too():
    memory, q, b = nvib.make_memory(mixture(), **K, form="simplified"), query(), bias()
    weights = attention_weights(q, memory, position_bias=b)
    out = jnp.einsum("bhts,bhse->bthe", weights, memory.value)
    assert_close(out, nvib.attend(q, memory, position_bias=b))
    assert error(weights, attention_weights(q, memory)) > 0.05


def test_a_step_takes_the_row_of_its_position():
    """T5's decoder: a cache of eight places, and for every position one row of [H, T, 8]."""
    mix, q, b = mixture(tokens=3), query(), bias(4, 8)
    seen = jnp.broadcast_to(np.tri(4, dtype=bool), (3, 4, 4))
    want = attention(q, mix, **K, mask=seen, position_bias=b[..., :4])

    @jax.jit
    def step(memory, t):
        here, q_t, b_t = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, t, 1, axis=1), (mix, q, b)
        )
        memory = append(memory, nvib.make_memory(here, **K), t)
        return memory, nvib.attend(q_t, memory, position_bias=b_t)

    memory, out = empty_memory(nvib.make_memory(mix, **K), 8), []
    for t in range(4):
        memory, now = step(memory, jnp.int32(t))
        out.append(now)
    assert_close(jnp.concatenate(out, 1), want)


@pytest.mark.parametrize("sizes", [{"tensor": 2, "data": 4}, {"data": 8}], ids=str)
def test_on_a_mesh_each_device_has_its_heads_of_it(sizes):
    """Value and gradient; with tensor = 2 the bias is cut by heads, and never gathered."""
    q, mix, b = query(8), mixture(8), bias()

    def loss(q, b):
        out = nvib.denoising_attention(q, mix, **K, position_bias=b, implementation="xla")
        return jnp.sum(jnp.sin(out))

    grad = jax.value_and_grad(loss, argnums=(0, 1))
    want = jax.jit(grad)(q, b)
    with jax.set_mesh(make_mesh(MeshConfig(**sizes))):
        got = jax.jit(grad)(q, b)
    assert_trees_close(got, want)
    parts = {shard.index[0].start for shard in got[1][1].addressable_shards}
    assert len(parts) == sizes.get("tensor", 1)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.usefixtures("simulated_tpu")
def test_kernels_refuse_it_by_name_and_none_takes_xla(name, monkeypatch):
    q, mix, b = query(), mixture(impulses=True), bias()
    words = f"implementation '{name}' takes no position_bias; use 'xla'$"
    with pytest.raises(NotImplementedError, match=words):
        nvib.denoising_attention(q, mix, **K, position_bias=b, implementation=name)
    memory = nvib.make_memory(mix, **K)
    with pytest.raises(NotImplementedError, match=words):
        nvib.attend(q, memory, position_bias=b, implementation=name)
    kind = jax.devices()[0].device_kind
    monkeypatch.setattr(choice, "FASTEST", {kind: ((1, False, name),)})
    want = nvib.attend(q, memory, position_bias=b, implementation="xla")
    np.testing.assert_array_equal(nvib.attend(q, memory, position_bias=b), want)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ((1, 4, 6), r"position_bias has shape \(1, 4, 6\); wanted \[H, T, S\] = \(2, 4, 6\)"),
        ((2, 2, 4, 6), r"has shape \(2, 2, 4, 6\); wanted \[B, H, T, S\] = \(3, 2, 4, 6\)"),
        ((2, 4, 5), r"position_bias has shape \(2, 4, 5\); wanted \[H, T, S\] = \(2, 4, 6\)"),
    ],
)
def test_another_shape_is_refused(wrong, words):
    q, mix = query(), mixture()
    for implementation in (None, "reference", "xla"):
        options = {"position_bias": jnp.zeros(wrong), "implementation": implementation}
        with pytest.raises(ValueError, match=words):
            nvib.denoising_attention(q, mix, **K, **options)
    with pytest.raises(ValueError, match=words):
        nvib.attend(q, nvib.make_memory(mix, **K), position_bias=jnp.zeros(wrong))
    with pytest.raises(ValueError, match="position_bias has dtype int32; wanted a float dtype"):
        nvib.attend(q, nvib.make_memory(mix, **K), position_bias=jnp.zeros((2, 4, 6), jnp.int32))
