"""Cross-entropy in parts: value and gradient of the whole one, in a part of its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import normal
from jax.sharding import AxisType
from tolerance import assert_as_good_as, assert_close, assert_trees_close, error

from nvib_jax.objective import log_likelihood
from nvib_jax.objective.cross_entropy import cross_entropy

BATCH, LENGTH, DIM, VOCAB = 3, 11, 8, 37


def example(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    mask = jnp.asarray(rng.random((BATCH, LENGTH)) < 0.7)
    targets = jnp.asarray(rng.integers(0, VOCAB, (BATCH, LENGTH)), jnp.int32)
    arrays = normal(1, BATCH, LENGTH, DIM), normal(2, DIM, VOCAB), normal(3, VOCAB)
    return (arrays[0].astype(dtype), *arrays[1:]), targets, mask


def whole(states, kernel, bias, targets, mask):
    logits = jnp.einsum("btd,dv->btv", states, kernel.astype(states.dtype))
    logits = logits if bias is None else logits.astype(jnp.float32) + bias[None, None]
    return -jnp.sum(log_likelihood(logits, targets, mask))


# At once: everything; runs that fit; runs with a rest; one position at a time.
@pytest.mark.parametrize("positions", [1000, 11, 6, 4, 1])
@pytest.mark.parametrize("biased", [True, False])
def test_parts_equal_the_whole_in_value_and_gradient(positions, biased):
    (states, kernel, bias), targets, mask = example()
    arguments = (states, kernel, bias if biased else None)
    at_once = BATCH * VOCAB * positions

    def scaled(f, **how):
        return jax.jit(jax.value_and_grad(lambda args: 3 * f(*args, targets, mask, **how)))(
            arguments
        )

    want = scaled(whole)
    got = scaled(cross_entropy, logits_at_once=at_once)
    assert_trees_close(got, want, 2e-6)
    assert_close(cross_entropy(*arguments, targets, mask, logits_at_once=at_once), want[0] / 3)


def test_what_is_masked_has_no_say():
    arguments, targets, mask = example()
    other = jnp.where(mask, targets, 0)

    def run(args, targets):
        return cross_entropy(*args, targets, mask, logits_at_once=200)

    got = jax.value_and_grad(run)(arguments, targets)
    chosen = jax.value_and_grad(run)(arguments, other)
    assert_trees_close(got, chosen, 0.0)
    hidden = np.asarray(got[1][0])[~np.asarray(mask)]
    np.testing.assert_array_equal(hidden, 0)


def test_bfloat16_products_add_up_in_float32():
    """As good as the whole formulation in its dtype; a float32 kernel has a float32 gradient."""
    low, targets, mask = example(jnp.bfloat16)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    truth = jax.value_and_grad(lambda args: whole(*args, targets, mask))(exact)
    plain = jax.value_and_grad(lambda args: whole(*args, targets, mask))(low)
    got = jax.value_and_grad(lambda args: cross_entropy(*args, targets, mask))(low)
    jax.tree.map(assert_as_good_as, got, plain, truth)
    assert [g.dtype for g in got[1]] == [jnp.bfloat16, jnp.float32, jnp.float32]


def test_each_gradient_has_the_dtype_of_its_argument():
    """A float32 bias of a bfloat16 kernel is not rounded to bfloat16."""
    (states, kernel, bias), targets, mask = example()
    low = kernel.astype(jnp.bfloat16)
    got, want = (
        jax.grad(lambda *args: cross_entropy(*args, targets, mask), argnums=(0, 1, 2))(
            states, k, bias
        )
        for k in (low, low.astype(jnp.float32))
    )
    assert [g.dtype for g in got] == [jnp.float32, jnp.bfloat16, jnp.float32]
    assert_close(got[2], want[2], 1e-6)


@pytest.mark.parametrize("positions", [1000, 4])
def test_on_a_mesh_inside_shard_map(positions):
    """A batch in two halves, one kernel: value and gradients are those of the whole."""
    (states, kernel, bias), targets, mask = example()
    rows = [jnp.concatenate([x, x[:1]]) for x in (states, targets, mask)]
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    half, whole_ = jax.P("data"), jax.P()

    def run(states, kernel, bias):
        def one(*args):
            found = cross_entropy(*args, logits_at_once=2 * VOCAB * positions)
            return jax.lax.psum(found, "data")

        return jax.shard_map(
            one, mesh=mesh, in_specs=(half, whole_, whole_, half, half), out_specs=whole_
        )(states, kernel, bias, *rows[1:])

    got = jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2)))(rows[0], kernel, bias)
    want = jax.value_and_grad(whole, argnums=(0, 1, 2))(rows[0], kernel, bias, *rows[1:])
    assert_trees_close(got, want, 2e-6)


def test_what_is_no_number_stays_behind_the_mask():
    (states, kernel, bias), targets, mask = example()
    hidden = ~mask[..., None]
    got, want = (
        jax.grad(lambda *args: cross_entropy(*args, targets, mask), argnums=(0, 1, 2))(
            jnp.where(hidden, filling, states), kernel, bias
        )
        for filling in (jnp.nan, 0.0)
    )
    assert_trees_close(got, want, 0.0)


def test_nothing_to_score():
    (states, kernel, bias), targets, mask = example()
    none = cross_entropy(states[:, :0], kernel, bias, targets[:, :0], mask[:, :0])
    assert float(none) == 0.0


def test_huge_logits_stay_finite():
    (states, kernel, bias), targets, mask = example()
    value, grads = jax.value_and_grad(lambda s: cross_entropy(s, kernel, bias, targets, mask))(
        1e6 * states
    )
    assert np.isfinite(value)
    assert np.isfinite(grads).all()


def test_memory_is_of_a_part():
    """64 sentences of 200 at V 8,000: temporaries below a tenth of one array of all logits."""
    batch, length, dim, vocab = 64, 200, 32, 8000
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in [
            ((batch, length, dim), jnp.float32),
            ((dim, vocab), jnp.float32),
            ((vocab,), jnp.float32),
            ((batch, length), jnp.int32),
            ((batch, length), bool),
        ]
    ]

    def temporaries(f):
        grad = jax.jit(jax.grad(f, argnums=(0, 1, 2)))
        return grad.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    logits = 4 * batch * length * vocab
    assert temporaries(cross_entropy) < logits / 10
    assert temporaries(whole) > logits  # power: the whole formulation holds them


def test_errors():
    (states, kernel, bias), targets, mask = example()
    with pytest.raises(ValueError, match=r"kernel has shape \(7, 37\); wanted \[D, V\] = \(8, V\)"):
        cross_entropy(states, kernel[1:], bias, targets, mask)
    with pytest.raises(ValueError, match="mask has dtype int32; wanted bool"):
        cross_entropy(states, kernel, bias, targets, mask.astype(jnp.int32))
    assert error(cross_entropy(states, kernel, bias, targets, mask & False), 0.0) == 0.0
