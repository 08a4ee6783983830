"""A memory that grows by components is the memory of the whole mixture, for every form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import kernels, mixture, query
from tolerance import FLOAT32_ROUNDINGS, assert_close, assert_trees_close, error

import nvib_jax as nvib
from nvib_jax.attention import FORMS, Memory, attend, attention_weights
from nvib_jax.attention.cache import append, empty_memory, take_rows

K = kernels()
CASES = [*((form, False) for form in FORMS), ("exact", True)]
EVERY = pytest.mark.parametrize(("form", "impulses"), CASES)


def cut(mix, start, stop):
    return jax.tree.map(lambda x: x[:, start:stop], mix)


def one_by_one(mix, form, capacity, kernels=K):
    """A memory with room for `capacity`, to which every component is appended by one program."""

    @jax.jit
    def grown(mix):
        first = nvib.make_memory(cut(mix, 0, 1), **kernels, form=form)

        def step(i, memory):
            here = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, i, 1, axis=1), mix)
            return append(memory, nvib.make_memory(here, **kernels, form=form), i)

        return jax.lax.fori_loop(0, mix.mean.shape[1], step, empty_memory(first, capacity))

    return grown(mix)


@EVERY
def test_appended_one_by_one_is_the_memory_of_the_whole(form, impulses):
    """Every array, padding and places that are not there included; then what is read from it."""
    mix, q = mixture(impulses=impulses), query()
    whole, grown = nvib.make_memory(mix, **K, form=form), one_by_one(mix, form, 6)
    assert jax.tree.structure(grown) == jax.tree.structure(whole)
    assert_trees_close(grown, whole, FLOAT32_ROUNDINGS)
    want, roomy = attend(q, whole), one_by_one(mix, form, 9)
    assert roomy.key.shape == (3, 2, 9, 4)
    assert_close(attend(q, roomy), want, 2 * FLOAT32_ROUNDINGS)
    weights = np.asarray(attention_weights(q, roomy))
    assert_close(weights[..., :6], attention_weights(q, whole), 2 * FLOAT32_ROUNDINGS)
    assert (weights[..., 6:] == 0).all()
    # It has power: the last component, which not every row pads, matters.
    assert error(attend(q, one_by_one(cut(mix, 0, 5), form, 9)), want) > 1e-3


@EVERY
def test_steps_are_causal_attention(form, impulses):
    """The prior's component at once, then one token a step: query t sees t + 1 of them."""
    mix, q = mixture(impulses=impulses), query(length=5)

    @jax.jit
    def steps(mix, q):
        first = nvib.make_memory(cut(mix, 0, 1), **K, form=form)
        memory = append(empty_memory(first, 6), first, 0)

        def step(memory, xs):
            t, token, now = xs
            token = jax.tree.map(lambda x: x[:, None], token)
            memory = append(memory, nvib.make_memory(token, **K, form=form), t + 1)
            return memory, attend(now[:, None], memory)[:, 0]

        tokens = jax.tree.map(lambda x: jnp.swapaxes(x[:, 1:], 0, 1), mix)
        times = jnp.arange(5, dtype=jnp.int32)
        out = jax.lax.scan(step, memory, (times, tokens, jnp.swapaxes(q, 0, 1)))[1]
        return jnp.swapaxes(out, 0, 1)

    want = nvib.denoising_attention(q, mix, **K, causal=True, form=form)
    assert_close(steps(mix, q), want)
    assert error(nvib.denoising_attention(q, mix, **K, form=form), want) > 1e-3


def test_several_components_at_once_and_again():
    """A prefix in one piece; what is written over is gone."""
    mix, other = mixture(), mixture(seed=7)
    whole, wrong = (nvib.make_memory(m, **K) for m in (mix, other))
    parts = [nvib.make_memory(cut(mix, *ends), **K) for ends in ((0, 4), (4, 6))]
    memory = append(empty_memory(whole, 6), wrong, 0)
    memory = append(append(memory, parts[1], 4), parts[0], 0)
    assert_trees_close(memory, whole, FLOAT32_ROUNDINGS)


def test_gradients_flow_through_what_is_appended():
    mix, q = mixture(), query()

    def loss(mean, log_variance, grows):
        m = dataclasses.replace(mix, mean=mean, log_variance=log_variance)
        form = "published"
        memory = one_by_one(m, form, 8) if grows else nvib.make_memory(m, **K, form=form)
        return jnp.sum(jnp.sin(attend(q, memory)))

    grad = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
    want = grad(mix.mean, mix.log_variance, False)
    assert_trees_close(grad(mix.mean, mix.log_variance, True), want)
    assert float(jnp.max(jnp.abs(want[0]))) > 1e-3


@pytest.mark.parametrize("form", ["exact", "expected_logit"])
def test_rows_are_taken_and_kernels_stay(form):
    """Eight rows of three: kernels of width 8 would be cut as well, were they taken for rows."""
    mix, rows = mixture(), jnp.array([2, 0, 0, 1, 2, 2, 0, 1])
    want = nvib.make_memory(jax.tree.map(lambda x: x[rows], mix), **K, form=form)
    got = take_rows(nvib.make_memory(mix, **K, form=form), rows)
    assert_trees_close(got, want, FLOAT32_ROUNDINGS)


def test_bfloat16_keeps_a_float32_bias():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), K)
    mix, q = mixture(), query().astype(jnp.bfloat16)
    grown, whole = one_by_one(mix, "exact", 9, half), nvib.make_memory(mix, **half)
    assert grown.key.dtype == jnp.bfloat16
    assert grown.bias.dtype == grown.shared_key.dtype == jnp.float32
    assert_close(attend(q, grown), attend(q, whole), 0.02)


def plain(components=1, rows=2, heads=2, width=4, dtype=jnp.float32):
    key = jnp.ones((rows, heads, components, width), dtype)
    return Memory(key, key, jnp.zeros((rows, components), jnp.float32))


WRONG = {
    "no memory": (lambda: empty_memory(mixture(), 3), "like is a Mixture; wanted a Memory$"),
    "no place": (lambda: empty_memory(plain(), 0), "capacity is 0; wanted at least 1$"),
    "half a place": (
        lambda: empty_memory(plain(), 2.5),
        "capacity is 2.5; wanted a whole number of at least 1$",
    ),
    "beyond the end": (
        lambda: append(plain(4), plain(2), 3),
        "position is 3; wanted 0 to 2, for 2 of 4 components$",
    ),
    "before the start": (
        lambda: append(plain(4), plain(), jnp.int32(-1)),
        "position is -1; wanted 0 to 3, for 1 of 4 components$",
    ),
    "half a position": (
        lambda: append(plain(4), plain(), 0.5),
        "position has dtype float; wanted an integer dtype$",
    ),
    "a position a row": (
        lambda: append(plain(4), plain(), jnp.array([0, 1])),
        r"position has shape \(2,\); wanted \[\]$",
    ),
    "another form": (
        lambda: append(nvib.make_memory(mixture(), **K), plain(rows=3), 0),
        "components have no shared_key, and the memory has one; wanted components of the memor",
    ),
    "another form again": (
        lambda: append(plain(6, rows=3), nvib.make_memory(mixture(), **K, form="published"), 0),
        "components have shared_value, the memory has none; wanted components of the memory's f",
    ),
    "other rows": (
        lambda: append(plain(4), plain(rows=3), 0),
        r"components.key has shape \(3, 2, 1, 4\) and dtype float32; wanted \(2, 2, 1, 4\) and f",
    ),
    "another dtype": (
        lambda: append(plain(4), plain(dtype=jnp.bfloat16), 0),
        r"components.key has shape .* and dtype bfloat16; wanted .* and float32, as the memory has",
    ),
    "a bias too short": (
        lambda: empty_memory(dataclasses.replace(plain(4), bias=jnp.zeros((2, 3))), 5),
        r"like.bias has shape \(2, 3\); wanted \[B, S\] = \(2, 4\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_sentence(name):
    call, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        call()
