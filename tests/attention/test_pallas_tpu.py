"""The TPU kernels at awkward sizes, forward and backward, in both of Pallas's simulations.

The suite that all implementations share is test_attention.py; compilation for real TPUs is
`python -m nvib_jax.bench.compile`, which CI runs.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import as_float64, kernels, mixture, normal, query
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType
from tolerance import (
    assert_as_good_as,
    assert_close,
    assert_trees_as_good_as,
    assert_trees_close,
)

import nvib_jax as nvib
from nvib_jax.attention import causal_mask, pallas_tpu, reference, xla
from nvib_jax.attention.blocks import CANDIDATES, MIB, VMEM, Blocks, buffer_bytes, choose_blocks

SMALL = Blocks(128, 128)
SIMULATIONS = {"interpreter": True, "tpu": pltpu.InterpretParams()}


def example(length, components, dim, heads, form, dtype=jnp.float32):
    q, mix = query(2, length, dim, heads), mixture(2, components - 1, dim)
    mix = nvib.Mixture(
        mix.mean,
        None if form == "impulse" else mix.log_variance,
        jnp.where(mix.mask, mix.log_weights, -jnp.inf),
        mix.mask,
    )
    k = kernels(dim, heads)
    return q.astype(dtype), mix, jax.tree.map(lambda x: x.astype(dtype), k)


def with_gradients(run, q, mix, k, form):
    """Value and gradients by queries, mixture (weights through the bias) and kernels."""
    target = jnp.asarray(np.random.default_rng(8).normal(size=q.shape))

    def loss(q, mean, log_variance, log_weights, k):
        mix_ = nvib.Mixture(mean, log_variance, log_weights, mix.mask)
        kind = "exact" if form == "impulse" else form
        out = run(q, mix_, k, kind)
        return jnp.sum(target.astype(out.dtype) * jnp.sin(out)), out

    weights = jnp.where(mix.mask, mix.log_weights, 0.0)
    argnums = (0, 1, 3, 4) if mix.log_variance is None else (0, 1, 2, 3, 4)
    grads, out = jax.jit(jax.grad(loss, argnums, has_aux=True))(
        q, mix.mean, mix.log_variance, weights, k
    )
    return out, grads


def kernel(simulation, mask=None, causal=False, blocks=SMALL):
    def run(q, mix, k, form):
        memory = nvib.make_memory(mix, **k, form=form)
        return pallas_tpu.attend(
            q, memory, mask, causal=causal, blocks=blocks, interpret=SIMULATIONS[simulation]
        )

    return run


def plain_xla(mask=None):
    return lambda q, mix, k, form: xla.attend(q, nvib.make_memory(mix, **k, form=form), mask)


def equation(mask=None):
    return lambda q, mix, k, form: reference.attend(q, mix, **k, mask=mask, form=form)[0]


@pytest.mark.parametrize(
    ("simulation", "form", "length", "components", "dim", "heads", "causal", "masked"),
    [
        ("interpreter", "exact", 1, 2, 16, 1, False, False),
        ("interpreter", "exact", 131, 259, 24, 3, True, True),
        ("tpu", "exact", 131, 140, 16, 2, True, False),
        ("interpreter", "published", 200, 7, 40, 5, False, False),
        ("tpu", "published", 5, 200, 16, 1, False, True),
        ("interpreter", "impulse", 257, 129, 8, 4, True, False),
        ("tpu", "impulse", 129, 131, 16, 1, False, False),
        ("interpreter", "simplified", 40, 300, 24, 2, False, True),
        pytest.param(
            *("interpreter", "expected_logit", 130, 40, 16, 2, True, False), marks=pytest.mark.long
        ),  # the impulses' kernel
    ],
)
def test_errors_are_at_most_twice_those_of_plain_xla(
    simulation, form, length, components, dim, heads, causal, masked
):
    """Against float64: the output, and the gradient of each argument.

    Plain is the equation as written, in float32. (The chunked path errs less in the queries'
    gradient: it has all of sum p dp before it needs any, where a kernel takes sum dout out.)
    """
    q, mix, k = example(length, components, dim, heads, form)
    mask = seen = None
    if masked:
        drawn = np.random.default_rng(3).random((2, length, components)) < 0.6
        mask = seen = jnp.asarray(drawn).at[..., 0].set(True)
    if causal:
        seen = causal_mask(length, components)[None] & (True if mask is None else mask)
        seen = jnp.broadcast_to(seen, (2, length, components))
    with jax.enable_x64(True):
        truth = with_gradients(equation(seen), *as_float64((q, mix, k)), form)
    plain = with_gradients(equation(seen), q, mix, k, form)
    got = with_gradients(kernel(simulation, mask, causal), q, mix, k, form)
    assert_as_good_as(got[0], plain[0], truth[0])
    assert_trees_as_good_as(got[1], plain[1], truth[1])


def test_bfloat16():
    """Forward and backward err at most twice what the chunked xla path does in bfloat16."""
    q, mix, k = example(131, 140, 32, 4, "exact", jnp.bfloat16)
    with jax.enable_x64(True):
        truth = with_gradients(equation(), *as_float64((q, mix, k)), "exact")
    plain = with_gradients(plain_xla(), q, mix, k, "exact")
    got = with_gradients(kernel("interpreter"), q, mix, k, "exact")
    assert got[0].dtype == jnp.bfloat16
    chex.assert_trees_all_equal_dtypes(got, plain)
    jax.tree.map(assert_as_good_as, got, plain, truth)


@pytest.mark.parametrize(
    ("rows", "cols"),
    [
        (128, 256),
        *(pytest.param(n, m, marks=pytest.mark.long) for n, m in ((256, 128), (512, 512))),
    ],
)
def test_every_block_size_gives_the_same(rows, cols):
    q, mix, k = example(300, 270, 16, 2, "exact")
    want = with_gradients(plain_xla(), q, mix, k, "exact")
    run = kernel("interpreter", blocks=Blocks(rows, cols))
    assert_trees_close(with_gradients(run, q, mix, k, "exact"), want, 2e-5)


def test_the_bias_gets_the_column_sums():
    """d/d bias_s of the sum over heads and queries: not zero, and every key its own."""
    q, mix, k = example(20, 30, 16, 2, "impulse")
    memory = nvib.make_memory(mix, **k)
    target = normal(8, *q.shape)

    def by_bias(run):
        def loss(bias):
            changed = nvib.attention.Memory(memory.key, memory.value, bias)
            return jnp.sum(target * run(changed))

        return jax.grad(loss)(memory.bias)

    got = by_bias(lambda m: pallas_tpu.attend(q, m, blocks=SMALL, interpret=True))
    want = by_bias(lambda m: xla.attend(q, m))
    assert_close(got, want)
    assert len(np.unique(np.abs(want))) > 20


def test_under_vmap_and_shard_map():
    """On a mesh axis over the batch: kernels are shared, their gradient is summed over it."""
    q, mix, k = example(20, 30, 16, 2, "exact")
    run, spec = kernel("interpreter"), jax.P("data")
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))

    def loss(q, mix, k):
        return jnp.sum(jnp.sin(run(q, mix, k, "exact")))

    def sharded(q, mix, k):
        total = jax.shard_map(
            lambda *a: jax.lax.psum(loss(*a), "data"),
            mesh=mesh,
            in_specs=(spec, spec, jax.P()),
            out_specs=jax.P(),
        )
        return total(q, mix, k)

    floats = jax.tree.map(lambda x: x, (q, mix.mean, k))

    def by_floats(f):
        def g(q, mean, k):
            return f(q, nvib.Mixture(mean, mix.log_variance, mix.log_weights, mix.mask), k)

        return jax.jit(jax.value_and_grad(g, argnums=(0, 1, 2)))(*floats)

    want = by_floats(loss)
    assert_trees_close(by_floats(sharded), want, 1e-5)

    def mapped(q, mix, k):
        one = jax.tree.map(lambda x: x[:, None], (q, mix))
        return jnp.sum(jax.vmap(loss, in_axes=(0, 0, None))(*one, k))

    assert_trees_close(by_floats(mapped), want, 1e-5)


# ---- blocks


def shapes(length, components, heads, width, dim, form, dtype):
    """(query, memory) as shapes."""

    def make():
        spread = None if form == "impulse" else jnp.zeros((1, components, dim))
        mix = nvib.Mixture(
            jnp.zeros((1, components, dim)),
            spread,
            jnp.zeros((1, components)),
            jnp.ones((1, components), bool),
        )
        k = jnp.zeros((dim, heads, width), dtype)
        kind = "exact" if form == "impulse" else form
        return jnp.zeros((1, length, heads, width), dtype), nvib.make_memory(
            mix, key_kernel=k, value_kernel=k, form=kind
        )

    return jax.eval_shape(make)


@pytest.mark.parametrize("kind", list(VMEM))
@pytest.mark.parametrize("form", ["impulse", "published", "exact"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_blocks_fit_the_generation(kind, form, dtype):
    """All that is promised: E 16 to 256, D to 1,024."""
    for heads, width, dim in ((1, 16, 16), (16, 64, 1024), (4, 256, 1024), (8, 64, 512)):
        arrays = shapes(16_384, 16_384, heads, width, dim, form, dtype)
        blocks = choose_blocks(*arrays, kind)
        assert buffer_bytes(blocks, *arrays) <= VMEM[kind] == blocks.vmem_bytes
        larger = [Blocks(*c, VMEM[kind]) for c in CANDIDATES[: CANDIDATES.index(
            (blocks.queries, blocks.keys))]]  # fmt: skip
        assert all(buffer_bytes(b, *arrays) > VMEM[kind] for b in larger)


def test_blocks_count_the_widest_dtype():
    """A float32 memory under bfloat16 queries takes float32's room."""
    q, _ = shapes(4096, 4096, 4, 256, 1024, "exact", jnp.bfloat16)
    _, memory = shapes(4096, 4096, 4, 256, 1024, "exact", jnp.float32)
    blocks = Blocks(512, 512)
    assert buffer_bytes(blocks, q, memory) == buffer_bytes(
        blocks, *shapes(4096, 4096, 4, 256, 1024, "exact", jnp.float32)
    )


def test_more_memory_larger_blocks():
    arrays = shapes(4096, 4096, 8, 64, 512, "exact", jnp.float32)
    few, many = (choose_blocks(*arrays, kind) for kind in (None, "TPU v6e"))
    assert few.vmem_bytes < many.vmem_bytes
    assert few.queries * few.keys <= many.queries * many.keys
    sizes = ((4, 256, 1024), (8, 16, 128))  # H, E, D
    few, many = (
        choose_blocks(*shapes(4096, 4096, *s, "exact", jnp.float32), "TPU v5p") for s in sizes
    )
    assert few.queries * few.keys < many.queries * many.keys


def test_what_is_refused():
    q, memory = shapes(128, 128, 1, 4096, 4096, "exact", jnp.float32)
    with pytest.raises(NotImplementedError, match=r"MiB of vector memory at E = 4096, D = 4096"):
        choose_blocks(q, memory, None)
    assert buffer_bytes(SMALL, q, memory) > VMEM[None] > 16 * MIB
    with pytest.raises(NotImplementedError, match="wants a TPU v5e or newer; this is a TPU v4"):
        choose_blocks(q, memory, "TPU v4")
    with pytest.raises(ValueError, match=r"blocks.keys is 200; wanted a multiple of 128"):
        Blocks(128, 200)
    half, mix, k = example(4, 5, 16, 1, "impulse", jnp.float16)
    with pytest.raises(NotImplementedError, match="float16; the TPU kernel takes float32 and b"):
        pallas_tpu.attend(half, nvib.make_memory(mix, **k))
