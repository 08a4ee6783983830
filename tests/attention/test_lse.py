"""The log-sum-exp of attention: what two parts of a mixture need to be joined; who gives none."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import as_float64, kernels, mixture, normal, query
from tolerance import assert_close, assert_trees_close, error

import nvib_jax as nvib
from nvib_jax.attention import FORMS, choice, xla
from nvib_jax.config import MeshConfig
from nvib_jax.training.sharding import make_mesh

K, HEADS = kernels(), 2
NAMES = ("form", "implementation", "causal", "with_lse")
attention = jax.jit(nvib.denoising_attention, static_argnames=NAMES)


def part(mix, hide):
    """The mixture without the components that a function of their index hides."""
    hidden = hide(jnp.arange(mix.mask.shape[1]))
    return dataclasses.replace(mix, mask=mix.mask & ~hidden[None])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_it_is_that_of_the_logits(form, implementation):
    """In float64, by hand from a memory, as `inputs` writes the logits."""
    with jax.enable_x64(True):
        q, mix, k = as_float64((query(), mixture(), K))
        memory = nvib.make_memory(mix, **k, form=form)
        logits = jnp.einsum("bthe,bhse->bths", q, memory.key) + memory.bias[:, None, None]
        if memory.shared_key is not None:
            u = jnp.einsum("bthe,dhe->bthd", q, k["key_kernel"])
            logits = logits + jnp.einsum("bthd,bsd->bths", u * u, memory.shared_key)
        want = np.log(np.sum(np.exp(np.asarray(logits)), -1))
        how = {"form": form, "implementation": implementation, "with_lse": True}
        out, lse = attention(q, mix, **k, **how)
        assert_close(lse, want, 1e-6)  # it is returned in float32
        assert_close(out, attention(q, mix, **k, form=form, implementation=implementation), 1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_two_parts_are_joined_to_the_whole(form, implementation):
    """The prior's component and the others': out + rho (v_0 - out), rho = sigmoid(l_0 - lse)."""
    q, mix = query(), mixture(tokens=12)  # more keys than a value is wide, and fewer
    how = {"form": form, "implementation": implementation, "with_lse": True}
    for cut in (1, 7):
        out, lse = attention(q, part(mix, lambda i, cut=cut: i < cut), **K, **how)
        first, first_lse = attention(q, part(mix, lambda i, cut=cut: i >= cut), **K, **how)
        rho = jax.nn.sigmoid(first_lse - lse)[..., None]
        whole, whole_lse = attention(q, mix, **K, **how)
        assert_close(out + rho * (first - out), whole)
        assert_close(jnp.logaddexp(lse, first_lse), whole_lse)


def test_chunks_masks_and_gradients():
    """Several chunks, causal, masked and biased: xla is the reference, gradients too."""
    length = xla.ROWS // HEADS + 3
    q, mix, bias = query(2, length), mixture(2), normal(4, 2, HEADS, length, 6)
    mask = jnp.asarray(np.random.default_rng(3).random((2, length, 6)) < 0.6).at[..., 0].set(True)
    target = normal(8, *q.shape[:3])

    def loss(implementation):
        def f(q, bias):
            out, lse = nvib.denoising_attention(
                *(q, mix),
                **K,
                mask=mask,
                position_bias=bias,
                causal=True,
                with_lse=True,
                implementation=implementation,
            )
            return jnp.sum(target * lse) + jnp.sum(jnp.sin(out))

        return jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(q, bias)

    want = loss("reference")
    assert_trees_close(loss("xla"), want, 5e-5)
    assert error(want[1][0][:, -1], jnp.zeros_like(want[1][0][:, -1])) > 1e-3


def test_the_gradient_is_the_difference():
    """Central differences in float64; the log-sum-exp itself is float32, so they are coarse."""
    with jax.enable_x64(True):
        q, mix, k, along = as_float64((query(), mixture(), K, normal(9, *query().shape)))

        @jax.jit
        def total(q):
            return jnp.sum(jnp.sin(nvib.denoising_attention(q, mix, **k, with_lse=True)[1]))

        step = 1e-2
        difference = (total(q + step * along) - total(q - step * along)) / (2 * step)
        assert_close(jnp.sum(jax.grad(total)(q) * along), difference, 1e-2)


def test_on_a_mesh():
    q, mix = query(8), mixture(8)
    want = attention(q, mix, **K, with_lse=True)
    with jax.set_mesh(make_mesh(MeshConfig(tensor=2, data=4))):
        got = attention(q, mix, **K, with_lse=True, implementation="xla")
    assert_trees_close(got, want)


@pytest.mark.parametrize("name", ["pallas_tpu", "pallas_gpu", "cudnn"])
@pytest.mark.usefixtures("simulated_tpu")
def test_kernels_refuse_it_by_name_and_none_takes_xla(name, monkeypatch):
    q, memory = query(), nvib.make_memory(mixture(impulses=True), **K)
    words = f"implementation '{name}' returns no log-sum-exp; use 'xla'$"
    with pytest.raises(NotImplementedError, match=words):
        nvib.attend(q, memory, with_lse=True, implementation=name)
    kind = jax.devices()[0].device_kind
    monkeypatch.setattr(choice, "FASTEST", {kind: ((1, False, name),)})
    out, lse = nvib.attend(q, memory, with_lse=True)
    want = nvib.attend(q, memory, with_lse=True, implementation="xla")
    np.testing.assert_array_equal(out, want[0])
    np.testing.assert_array_equal(lse, want[1])
