"""The GPU paths as far as a machine without a GPU goes: simulated, lowered, and what they refuse.

The Mosaic kernel runs in Pallas's simulation of a GPU and is lowered for CUDA; cuDNN's folded bias
is checked as algebra. Neither has run on a GPU.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import kernels, mixture, query
from tolerance import assert_as_good_as, assert_close, error, plain_attention

import nvib_jax as nvib
from nvib_jax.attention import cudnn, pallas_gpu, xla
from nvib_jax.attention.inputs import MASK_VALUE
from nvib_jax.config import MeshConfig
from nvib_jax.training.sharding import make_mesh

HALF = jnp.bfloat16
# (batch, T, S, D, H): less than a block, more blocks than slots, D beyond one pass.
SIZES = [(2, 7, 5, 16, 2), (1, 67, 131, 18, 2), (1, 5, 9, 200, 2)]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def example(size, form):
    batch, length, components, dim, heads = size
    q, mix = query(batch, length, dim, heads).astype(HALF), mixture(batch, components - 1, dim)
    k = jax.tree.map(lambda x: x.astype(HALF), kernels(dim, heads))
    if form == "expected_logit":
        mix = nvib.Mixture(mix.mean, mix.log_variance, mix.log_weights, mix.mask)
    return q, mix, k, nvib.make_memory(mix, **k, form=form)


@pytest.fixture(scope="module")
def simulation():
    params = pytest.importorskip(
        "jax._src.pallas.mosaic_gpu.interpret.params",
        reason="this jax has no simulation of a GPU for Pallas, and there is no other check here",
    )
    return params.InterpretGPUParams()


@pytest.mark.parametrize(
    ("form", "size"), [*(("published", size) for size in SIZES), ("simplified", SIZES[1])]
)
def test_the_kernel_errs_at_most_twice_what_plain_bfloat16_does(size, form, simulation):
    q, mix, k, memory = example(size, form)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), (q, k))
    truth = nvib.denoising_attention(exact[0], mix, **exact[1], form=form)
    got = pallas_gpu.attend(q, memory, interpret=simulation)
    assert got.dtype == HALF
    assert_as_good_as(got, plain_attention(q, mix, **k, form=form), truth)


@pytest.mark.parametrize(
    "form", [pytest.param("published", marks=pytest.mark.long), "expected_logit"]
)
def test_it_is_lowered_for_cuda_on_a_mesh(form):
    """Each device's own sentences and heads, and their gradients."""
    q, mix, k, _ = example((8, 128, 128, 64, 2), form)

    def loss(q, k):
        options = {"form": form, "implementation": "pallas_gpu"}
        return jnp.sum(nvib.denoising_attention(q, mix, **k, **options).astype(jnp.float32))

    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).trace(q, k)
        text = step.lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in text


@pytest.mark.parametrize("size", [(1, 70, 71, 16, 1), (1, 130, 65, 16, 1)])
def test_causal(size, simulation):
    q, _, _, memory = example(size, "expected_logit")
    got = pallas_gpu.attend(q, memory, causal=True, interpret=simulation)
    assert error(got, xla.attend(q, memory, causal=True)) < 2**-6
    assert error(got, xla.attend(q, memory)) > 2**-4  # power


def test_the_gradient_is_that_of_xla(simulation):
    q, _, _, memory = example(SIZES[0], "published")

    def gradient(attend):
        return jax.grad(lambda q, m: jnp.sum(jnp.sin(attend(q, m).astype(jnp.float32))), (0, 1))(
            q, memory
        )

    got = gradient(lambda q, m: pallas_gpu.attend(q, m, interpret=simulation))
    jax.tree.map(lambda a, b: assert_close(a, b, 0.03), got, gradient(xla.attend))


@pytest.mark.parametrize("form", ["simplified", "published"])
@pytest.mark.parametrize("causal", [False, True])
def test_it_lowers_for_cuda(form, causal):
    q, _, _, memory = jax.eval_shape(lambda: example((2, 300, 201, 512, 8), form))
    run = jax.jit(lambda q, m: pallas_gpu.attend(q, m, causal=causal))
    text = run.trace(q, memory).lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in text


def test_what_it_refuses():
    q, mix, k, memory = example(SIZES[0], "exact")
    with pytest.raises(NotImplementedError, match="which form 'exact' needs; use 'xla'"):
        nvib.attend(q, memory, implementation="pallas_gpu")
    with pytest.raises(NotImplementedError, match="query has dtype float32; the GPU kernel takes"):
        nvib.attend(q.astype(jnp.float32), memory, implementation="pallas_gpu")
    plain = nvib.make_memory(mix, **k, form="simplified")
    full = jax.tree.map(lambda x: x.astype(jnp.float32), plain)
    with pytest.raises(NotImplementedError, match=r"memory\.key has dtype float32; the GPU kernel"):
        nvib.attend(q, full, implementation="pallas_gpu")
    wide = example((1, 4, 5, 512, 1), "simplified")
    with pytest.raises(NotImplementedError, match="head width 512; the GPU kernel's shared memory"):
        nvib.attend(wide[0], wide[3], implementation="pallas_gpu")
    mask = jnp.ones((2, 7, 5), bool)
    with pytest.raises(NotImplementedError, match="takes no mask of size T x S"):
        nvib.attend(q, plain, mask=mask, implementation="pallas_gpu")
    for change, message in [
        ({"memory": memory}, "cudnn has no terms of width D"),
        ({"query": q.astype(jnp.float32)}, "query has dtype float32; cudnn takes bfloat16"),
        ({"mask": mask}, "cudnn takes a mask of size T x S only as a tensor"),
        ({"causal": True}, "cudnn takes a mask"),
        ({}, "cudnn runs on NVIDIA GPUs; this is cpu"),
    ]:
        how = {"query": q, "memory": plain, **change}
        with pytest.raises(NotImplementedError, match=message):
            nvib.attend(how.pop("query"), how.pop("memory"), implementation="cudnn", **how)


# ---- cuDNN: the bias as three columns


def test_three_columns_hold_a_float32():
    bias = jnp.asarray([-300.1234567, 1e-3, MASK_VALUE, 12345.678, -2.5e30], jnp.float32)
    columns = jax.jit(cudnn.split_columns)(bias)
    assert columns.dtype == HALF
    np.testing.assert_array_equal(jnp.sum(columns.astype(jnp.float32), -1), bias)
    first = columns[..., 0].astype(jnp.float32)
    assert abs(float(first[0] - bias[0])) > 0.1  # power: one column is not enough


def test_the_folded_product_is_the_primitive():
    """q.k of the folded arrays, in float32, is the logit with its bias; the gradient too."""
    q, _, _, memory = example((2, 40, 30, 16, 2), "simplified")

    def folded(q, memory):
        q, k, v = (x.astype(jnp.float32) for x in cudnn.fold(q, memory))
        weights = jax.nn.softmax(jnp.einsum("bthe,bshe->bhts", q, k), -1)
        out = jnp.einsum("bhts,bshe->bthe", weights, v)
        return out[..., : memory.value.shape[-1]]

    def plain(q, memory):
        q, memory = jax.tree.map(lambda x: x.astype(jnp.float32), (q, memory))
        return xla.attend(q, memory)

    assert_close(folded(q, memory), plain(q, memory), 1e-5)
    got, want = (
        jax.grad(lambda q, m, f=f: jnp.sum(jnp.sin(f(q, m))), (0, 1))(q, memory)
        for f in (folded, plain)
    )
    # Gradients of bfloat16 arrays are rounded to it; the bias's comes through its first column.
    jax.tree.map(lambda a, b: assert_close(a, b, 0.01), got, want)
    assert all(x.shape[-1] % 8 == 0 for x in cudnn.fold(q, memory))
