"""NVIB self-attention: the plain layer as its limit, causality to the last bit, its cache."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny  # noqa: F401, keeps what is compiled
from examples import normal
from flax import nnx
from tolerance import assert_close, error

import nvib_jax as nvib
from nvib_jax.attention import FORMS
from nvib_jax.models.params import merge, split
from nvib_jax.modules import NVIBSelfAttention, linen

D, H = 8, 2
PRIOR = nvib.Prior.standard(D, alpha_delta=0.3)
X, MASK = normal(1, 3, 6, D), jnp.arange(6)[None] < jnp.asarray([6, 4, 1])[:, None]
ALL = jnp.ones((3, 6), bool)


def layer(prior=PRIOR, **options):
    found = NVIBSelfAttention(D, H, prior=prior, rngs=nnx.Rngs(0), **options)
    found.nvib.alpha_linear[...] = normal(2, D)  # pseudo-counts that differ
    return found


def previous(x=X, mask=MASK, alpha=0.5):
    return nvib.make_posterior(x, x, alpha * x[..., 0], mask, PRIOR)


# ---- the plain layer is its limit


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("causal", [False, True])
def test_it_is_the_plain_layer_in_the_limit(form, causal):
    """Large pseudo-counts in proportion to e^(|x|^2/2r), means that are x, variances of 0, and a
    prior of no weight.
    """
    nothing = nvib.Prior(jnp.zeros(D), jnp.zeros(D), jnp.float32(-1e4), jnp.float32(0.0))
    attention = NVIBSelfAttention(D, H, prior=PRIOR, rngs=nnx.Rngs(0), pseudo_count="exp_quadratic")
    n, root = attention.nvib, (D / H) ** 0.5
    n.mean.kernel[...], n.mean.bias[...] = jnp.eye(D), jnp.zeros(D)
    n.log_variance.kernel[...], n.log_variance.bias[...] = jnp.zeros((D, D)), jnp.full(D, -1e4)
    n.alpha_linear[...], n.alpha_bias[...] = jnp.zeros(D), jnp.float32(20.0)
    n.alpha_quadratic[...] = jnp.full(D, 0.5 / root)
    for name, value in n.prior_values.items():
        value[...] = getattr(nothing, name)
    got, _ = attention(X, MASK, form=form, causal=causal)

    a = attention.attention
    q = a.query(X).reshape(3, 6, H, -1)
    k, v = (jnp.einsum("bnd,dhe->bnhe", X, w[...]) for w in (a.key_kernel, a.value_kernel))
    logits = jnp.einsum("bthe,bshe->bhts", q, k) / root
    past = jnp.tri(6, dtype=bool) if causal else jnp.ones((6, 6), bool)
    seen = jnp.broadcast_to(MASK[:, None, None] & past[None, None], logits.shape)
    weights = jax.nn.softmax(jnp.where(seen, logits, -1e30), axis=-1)
    out = jnp.einsum("bhts,bshe->bthe", weights, v) + a.value_bias[...][None, None]
    # A form that has log variances computes t = 0 + r, and each is within 1e-6 of the plain layer.
    assert_close(got, a.out(out.reshape(X.shape)), 2e-6)


# ---- causal


def test_later_tokens_change_nothing_not_even_a_gradient():
    """Drawn and read in every form: exactly 0."""
    module = layer()
    graph, params = split(module)

    def at(x, t, key, form):
        out, posterior = merge(graph, params)(x, ALL, key=key, form=form, causal=True)
        return jnp.sum(jnp.sin(out[:, t])) + jnp.sum(posterior.mean[:, t + 1])

    for key, form in [(jax.random.key(1), "exact"), *((None, form) for form in FORMS)]:
        gradient = jax.jit(jax.grad(lambda x, k=key, f=form: at(x, 2, k, f)))(X)
        np.testing.assert_array_equal(gradient[:, 3:], 0.0)
        assert all(float(jnp.max(jnp.abs(gradient[:, i]))) > 1e-4 for i in range(3))


@pytest.mark.parametrize("form", FORMS)
def test_steps_with_a_cache_are_the_whole(form):
    """With a posterior of the layer below at every position."""
    module, below = layer(), previous(mask=ALL)
    want, posterior = module(X, ALL, previous=below, form=form, causal=True)
    cache = module.empty_cache(3, 6, form=form)

    @jax.jit
    def step(cache, x, before, t):
        return module.step(x, cache, t, previous=before, form=form)

    for t in range(6):
        before = jax.tree.map(lambda a, t=t: jnp.stack([a[:, 0], a[:, t + 1]], 1), below)
        out, cache, now = step(cache, X[:, t : t + 1], before, jnp.int32(t))
        assert_close(out, want[:, t : t + 1])
        assert_close(now.log_alpha[:, 1], posterior.log_alpha[:, t + 1])


def test_a_cache_of_draws_is_filled():
    """With pseudo-counts so large and variances so small that a draw is its mean."""
    module = layer()
    module.nvib.alpha_bias[...] = jnp.float32(16.0)
    module.nvib.log_variance.bias[...] = jnp.full(D, -40.0)
    want, _ = module(X, ALL, causal=True)
    keys = jax.random.split(jax.random.key(4), 7)
    cache = module.empty_cache(3, 6, key=keys[6])
    for t in range(6):
        out, cache, _ = module.step(X[:, t : t + 1], cache, jnp.int32(t), key=keys[t])
        assert_close(out, want[:, t : t + 1], 2e-3)


def test_causal_attention_wants_a_component_a_token():
    module = layer(num_samples=2)
    out, _ = module(X, MASK, key=jax.random.key(0))
    assert out.shape == X.shape
    for call in (
        lambda: module(X, MASK, key=jax.random.key(0), causal=True),
        lambda: module.empty_cache(3, 6),
    ):
        with pytest.raises(ValueError, match="num_samples is 2; causal attention wants 1"):
            call()


# ---- the bottleneck


def test_the_skip_adds_log_pseudo_counts():
    module = layer(initial_alpha=1.0)
    _, alone = module(X, MASK)
    _, joined = module(X, MASK, previous=previous())
    want = alone.log_alpha[:, 1:] + previous().log_alpha[:, 1:]
    assert_close(jnp.where(MASK, joined.log_alpha[:, 1:], 0.0), jnp.where(MASK, want, 0.0))
    np.testing.assert_array_equal(joined.log_alpha[:, 0], alone.log_alpha[:, 0])


def test_a_skip_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"previous.log_alpha.*wanted"):
        layer()(X, MASK, previous=previous(X[:, :4], MASK[:, :4]))


@pytest.mark.parametrize("key", [None, jax.random.key(3)])
def test_padding_reaches_nothing(key):
    """Whatever it holds; a row that is all padding attends to the prior."""
    module, mask = layer(), MASK.at[2].set(False)
    out, posterior = module(jnp.where(mask[..., None], X, 0.0), mask, key=key)
    other, changed = module(jnp.where(mask[..., None], X, 7.0), mask, key=key)
    np.testing.assert_array_equal(out[mask], other[mask])
    for a, b in zip(jax.tree.leaves(posterior), jax.tree.leaves(changed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.isfinite(out).all()


def test_every_parameter_has_a_gradient():
    """Of a drawn pass with both KLs; the prior's arrays are no parameters."""
    graph, params = split(layer())

    @jax.jit
    @jax.grad
    def loss(params):
        out, posterior = merge(graph, params)(X, MASK, key=jax.random.key(0))
        kls = nvib.kl_gaussian(posterior, PRIOR) + nvib.kl_dirichlet(posterior, PRIOR)
        return jnp.sum(jnp.sin(out)) + jnp.sum(kls)

    moved = {name for name, g in loss(params).items() if float(jnp.max(jnp.abs(g))) > 0}
    assert {name for name in params if "prior" not in name} == moved


def test_what_is_read_depends_on_the_form():
    outs = [layer()(X, MASK, form=form)[0] for form in FORMS]
    assert all(error(a, b) > 1e-3 for a, b in itertools.pairwise(outs))


@pytest.mark.parametrize(
    "options", [{}, {"key": jax.random.key(2)}, {"causal": True, "form": "exact"}], ids=str
)
def test_the_linen_module_is_the_nnx_one(options):
    module = linen.NVIBSelfAttention(D, H, alpha_delta=0.3)
    variables = jax.jit(module.init)(jax.random.key(0), X, MASK)
    twin = NVIBSelfAttention(D, H, prior=module.prior, rngs=nnx.Rngs(1))
    for name in ("nvib", "attention"):
        nnx.update(getattr(twin, name), nnx.State(variables["params"][name]["layer"]))
    got, posterior = module.apply(variables, X, MASK, previous=previous(), **options)
    want, its = twin(X, MASK, previous=previous(), **options)
    assert_close(got, want)
    assert_close(
        jnp.where(MASK, posterior.log_alpha[:, 1:], 0), jnp.where(MASK, its.log_alpha[:, 1:], 0)
    )
