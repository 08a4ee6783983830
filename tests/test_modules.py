"""The Flax modules: shapes, norms, dropout, padding, the cache, compute in bfloat16."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import nvib_jax as nvib
from nvib_jax.modules import NVIB, Decoder, DenoisingAttention, Encoder, SelfAttention
from nvib_jax.modules.transformer import dropout

D, H, HIDDEN = 16, 2, 32


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def masks(*lengths: int, width: int = 5) -> jax.Array:
    return jnp.arange(width)[None] < jnp.array(lengths)[:, None]


def mixture(seed: int = 0, batch: int = 2, size: int = 4) -> nvib.Mixture:
    return nvib.Mixture(
        normal(seed, batch, size, D),
        None,
        jax.nn.log_softmax(normal(seed + 1, batch, size)),
        jnp.ones((batch, size), bool),
    )


def encoder(layers: int = 2, **kw) -> Encoder:
    return Encoder(layers, D, H, HIDDEN, rngs=nnx.Rngs(0), **kw)


def decoder(layers: int = 2, **kw) -> Decoder:
    return Decoder(layers, D, H, HIDDEN, rngs=nnx.Rngs(0), **kw)


def jitted(module):
    """As one program: each operation alone would be compiled for its own."""
    return jax.jit(lambda *arguments: module(*arguments))


# ---- encoder


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_encoder_gives_normalised_states(norm):
    out = jitted(encoder(norm=norm))(10 * normal(0, 3, 5, D), masks(5, 2, 1))
    assert out.shape == (3, 5, D)
    # Both placements end with a layer norm, whose scale is 1 and bias 0 at the start.
    np.testing.assert_allclose(out.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(out.var(-1), 1, atol=1e-3)


def test_pre_norm_keeps_the_residual_and_post_norm_does_not():
    """A pre-norm layer adds to its input; scaled inputs therefore come through."""
    x, mask = 100 * normal(0, 1, 5, D), masks(5)
    pre = jitted(encoder(1, norm="pre").layers[0])(x, mask)
    post = jitted(encoder(1, norm="post").layers[0])(x, mask)
    assert jnp.abs(pre - x).max() < 0.1 * jnp.abs(x).max()
    assert jnp.abs(post).max() < 10


def test_unknown_norm_is_named():
    with pytest.raises(ValueError, match=r"norm is 'both'.*pre.*post"):
        encoder(norm="both")


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"dim is 16 with 3 heads"):
        SelfAttention(16, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"dim is 16 with 0 heads"):
        DenoisingAttention(16, 0, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_encoder_does_not_see_padding(norm):
    run, x = jitted(encoder(norm=norm)), normal(0, 2, 3, D)
    short = run(x, masks(3, 2, width=3))
    padded = jnp.concatenate([x, 50 * normal(1, 2, 4, D)], axis=1)
    long = run(padded, masks(3, 2, width=7))[:, :3]
    valid = masks(3, 2, width=3)[..., None]
    np.testing.assert_allclose(jnp.where(valid, long - short, 0), 0, atol=1e-5)
    # Power: with one padding position declared valid, the states move.
    seen = run(padded, masks(4, 2, width=7))[0, :3]
    assert jnp.abs(seen - short[0]).max() > 1e-2


def test_encoder_treats_rows_alone():
    run, x, mask = jitted(encoder()), normal(0, 3, 5, D), masks(5, 2, 1)
    alone = jnp.concatenate([run(x[i : i + 1], mask[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(run(x, mask), alone, atol=1e-5)


def test_encoder_is_equivariant_to_the_order_of_tokens():
    """No positions inside the encoder: they come in with the embedding."""
    run, x, order = jitted(encoder()), normal(0, 1, 5, D), jnp.array([3, 1, 4, 0, 2])
    out = run(x, masks(5))
    np.testing.assert_allclose(run(x[:, order], masks(5)), out[:, order], atol=1e-5)


def test_a_row_of_padding_alone_is_finite_and_so_is_its_gradient():
    run, x = jitted(encoder()), normal(0, 2, 5, D)
    grad = jax.jit(jax.grad(lambda x: jnp.sum(run(x, masks(5, 0)) ** 2)))(x)
    assert jnp.isfinite(run(x, masks(5, 0))).all()
    assert jnp.isfinite(grad).all()


def test_the_callers_mask_is_left_alone():
    mask = np.zeros((1, 5), bool)
    encoder()(normal(0, 1, 5, D), mask)
    assert not mask.any()


# ---- dropout


def test_dropout_needs_a_key():
    x = jnp.ones((1000,))
    np.testing.assert_array_equal(dropout(x, 0.5, None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, jax.random.key(0)), x)


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    # 100,000 draws at rate 0.3: five standard deviations of the share are 0.0073, false alarm 6e-7.
    out = dropout(jnp.ones((100_000,)), 0.3, jax.random.key(0))
    assert abs(float((out == 0).mean()) - 0.3) < 0.0073
    # The rate is rounded to a multiple of 2^-16, and what is kept is scaled by the rounded one.
    np.testing.assert_allclose(out[out > 0], 1 / (1 - round(0.3 * 2**16) / 2**16), rtol=1e-6)


@pytest.mark.parametrize(("rate", "share"), [(0.999999, 2**-16), (1e-6, 1 - 2**-16)])
def test_dropout_rates_near_their_ends(rate, share):
    """Rounded to 2^-16, never to 0 or 1; a million draws, five standard deviations: 6e-7."""
    out = dropout(jnp.ones((1_000_000,)), rate, jax.random.key(0))
    assert abs(float((out > 0).mean()) - share) < 5 * (2**-16 / 1e6) ** 0.5
    assert np.isfinite(out).all()


@pytest.mark.parametrize("build", [encoder, decoder])
def test_dropout_of_the_stacks(build):
    module, x = build(dropout_rate=0.5), normal(0, 2, 5, D)
    second = masks(5, 3) if build is encoder else module.memories(mixture(), "exact")
    run = jitted(module)
    still = run(x, second)
    np.testing.assert_array_equal(still, run(x, second))
    one, two = (run(x, second, jax.random.key(i)) for i in (1, 2))
    assert jnp.abs(one - still).max() > 0.1
    assert jnp.abs(one - two).max() > 0.1
    np.testing.assert_array_equal(one, run(x, second, jax.random.key(1)))


# ---- decoder


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_decoder_is_causal(norm):
    module, x = decoder(norm=norm), normal(0, 2, 5, D)
    run, memories = jitted(module), module.memories(mixture(), "exact")
    changed = run(x.at[:, 3].add(normal(9, D)), memories) - run(x, memories)
    np.testing.assert_allclose(changed[:, :3], 0, atol=1e-6)
    assert (jnp.abs(changed[:, 3:]).max(-1) > 1e-3).all()


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("layers", [1, 3])
def test_steps_with_a_cache_equal_the_whole(norm, layers):
    module, x = decoder(layers, norm=norm), normal(0, 2, 5, D)
    step, memories = jitted(module.step), module.memories(mixture(), "exact")
    caches, outputs = module.empty_caches(2, 7), []  # two places remain empty
    for i in range(5):
        out, caches = step(x[:, i : i + 1], memories, caches, jnp.int32(i))
        outputs.append(out)
    whole = jitted(module)(x, memories)
    np.testing.assert_allclose(jnp.concatenate(outputs, 1), whole, atol=1e-5)


def test_every_decoder_layer_reads_the_mixture():
    module, x = decoder(2), normal(0, 2, 5, D)
    run, memories = jitted(module), module.memories(mixture(0), "exact")
    other = module.memories(mixture(7), "exact")
    base = run(x, memories)
    for i in range(2):
        mixed = tuple(other[j] if j == i else memories[j] for j in range(2))
        assert jnp.abs(run(x, mixed) - base).max() > 1e-3


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_weights_are_the_attention_of_every_layer(norm):
    run, x = decoder(2, norm=norm), normal(0, 2, 5, D)
    memories = run.memories(mixture(), "exact")
    weights = jitted(run.weights)(x, memories)
    assert weights.shape == (2, 2, H, 5, 4)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    # The output of the latent attention is these weights times the values.
    layer = run.layers[0]
    h = layer.residual(0, x, layer.attention, None)
    query = layer.norms[1](h) if norm == "pre" else h
    value = jnp.einsum("bsd,dhe->bshe", mixture().mean, layer.latent_attention.value_kernel[...])
    out = layer.latent_attention.out(
        jnp.einsum("bhts,bshe->bthe", weights[0], value).reshape(x.shape)
    )
    np.testing.assert_allclose(out, layer.latent_attention(query, memories[0]), atol=1e-5)


def test_latent_attention_is_denoising_attention_with_projections():
    attention = DenoisingAttention(D, H, use_bias=True, rngs=nnx.Rngs(0))
    attention.value_bias[...] = normal(5, H, D // H)
    x, mix = normal(1, 2, 3, D), mixture()
    expected = nvib.denoising_attention(
        attention.query(x).reshape(2, 3, H, -1),
        mix,
        key_kernel=attention.key_kernel[...],
        value_kernel=attention.value_kernel[...],
        value_bias=attention.value_bias[...],
    )
    out = attention(x, attention.memory(mix, "exact"))
    np.testing.assert_allclose(out, attention.out(expected.reshape(x.shape)), atol=1e-5)


# ---- NVIB


@pytest.mark.parametrize("form", ["exp_linear", "exp_quadratic", "relu"])
def test_pseudo_counts_by_hand(form):
    prior = nvib.Prior.standard(D)
    layer = NVIB(D, prior=prior, pseudo_count=form, initial_alpha=2.0, rngs=nnx.Rngs(0))
    layer.alpha_bias[...] = jnp.float32(0.7)
    x, mask = normal(1, 2, 5, D), masks(5, 3)
    value = np.asarray(x @ layer.alpha_linear[...]) + 0.7
    if form == "exp_quadratic":
        layer.alpha_quadratic[...] = normal(3, D)
        value += np.asarray(x * x @ normal(3, D))
    posterior = layer(x, mask)
    want = np.log(value, out=np.full_like(value, -np.inf), where=value > 0)
    want = want if form == "relu" else value
    valid = np.asarray(mask)
    found = np.asarray(posterior.log_alpha[:, 1:])
    np.testing.assert_allclose(found[valid], want[valid], rtol=1e-5, atol=1e-5)
    assert form != "relu" or np.isneginf(found[valid]).any()
    assert posterior.mean.shape == (2, 6, D)
    np.testing.assert_array_equal(
        posterior.mask, jnp.pad(mask, ((0, 0), (1, 0)), constant_values=1)
    )


@pytest.mark.parametrize("form", ["exp_linear", "relu"])
def test_nvib_starts_where_it_is_told(form):
    wide, states = 256, 400
    layer = NVIB(
        wide, prior=nvib.Prior.standard(wide), pseudo_count=form, initial_alpha=3.0,
        initial_kept=0.3, initial_variance=0.2, rngs=nnx.Rngs(0),
    )  # fmt: skip
    posterior = jitted(layer)(normal(0, states, 5, wide), masks(*[5] * states))
    np.testing.assert_allclose(posterior.log_variance[:, 1:], np.log(0.2), rtol=1e-6)
    log_alpha = np.asarray(posterior.log_alpha[:, 1:])
    # The spread is |w|, chi-square over 256: its deviation is 4 %. 2,000 states add less. Four
    # deviations together, false alarm 1e-4, seed fixed.
    if form == "exp_linear":
        assert abs(log_alpha.mean() - np.log(3)) < 0.1
        assert abs(log_alpha.std() - 1) < 0.2
    else:
        assert abs((log_alpha > -np.inf).mean() - 0.3) < 0.06
        assert abs(np.exp(log_alpha).mean() - 3) < 1


def test_nvib_starts_at_the_priors_pseudo_count():
    for delta, want in ((0.25, 0.25), (0.0, 1.0)):
        layer = NVIB(D, prior=nvib.Prior.standard(D, alpha_delta=delta), rngs=nnx.Rngs(0))
        np.testing.assert_allclose(layer.alpha_bias[...], np.log(want), rtol=1e-6)


@pytest.mark.parametrize("form", ["exp_linear", "relu"])
def test_nvib_may_be_made_inside_jit(form):
    """Also with the prior as an argument, which then has no number to read."""

    def start(prior):
        layer = NVIB(D, prior=prior, pseudo_count=form, rngs=nnx.Rngs(0))
        return layer.alpha_bias[...], layer.alpha_linear[...]

    prior = nvib.Prior.standard(D, alpha_delta=0.25)
    chex.assert_trees_all_close(jax.jit(start)(prior), start(prior), rtol=1e-6)


@pytest.mark.parametrize(
    ("form", "alpha", "kept", "wanted"),
    [
        ("exp_linear", 0.0, 0.5, "initial_alpha is 0.0; wanted more than 0"),
        ("relu", -1.0, 0.5, "initial_alpha is -1.0; wanted more than 0"),
        ("relu", 1.0, 0.0, "initial_kept is 0.0; wanted 0 < initial_kept < 1"),
        ("relu", 1.0, 1.0, "initial_kept is 1.0; wanted 0 < initial_kept < 1"),
    ],
)
def test_a_start_that_cannot_be_is_named(form, alpha, kept, wanted):
    how = {"pseudo_count": form, "initial_alpha": alpha, "initial_kept": kept}
    with pytest.raises(ValueError, match=wanted):
        NVIB(D, prior=nvib.Prior.standard(D), rngs=nnx.Rngs(0), **how)


def test_skip_adds_the_layer_belows_log_pseudo_counts():
    layer = NVIB(D, prior=nvib.Prior.standard(D), rngs=nnx.Rngs(0))
    x, mask = normal(1, 2, 5, D), masks(5, 3)
    first = layer(x, mask)
    second = layer(x, mask, first)
    valid = np.asarray(mask)
    got = np.asarray(second.log_alpha[:, 1:] - first.log_alpha[:, 1:])[valid]
    np.testing.assert_allclose(got, np.asarray(first.log_alpha[:, 1:])[valid], rtol=1e-5)
    np.testing.assert_array_equal(second.log_alpha[:, 0], first.log_alpha[:, 0])


def test_no_gradient_reaches_the_prior():
    layer = NVIB(D, prior=nvib.Prior.standard(D, alpha=2.0, alpha_delta=0.5), rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)

    def loss(state):
        module = nnx.merge(graph, state)
        posterior = module(normal(1, 2, 5, D), masks(5, 3))
        kls = nvib.kl_gaussian(posterior, module.prior) + nvib.kl_dirichlet(posterior, module.prior)
        return jnp.sum(kls) + jnp.sum(posterior.mean**2)

    grads = jax.jit(jax.grad(loss))(state)
    assert set(grads["prior_values"]) == {"mean", "log_variance", "log_alpha", "alpha_delta"}
    for leaf in jax.tree.leaves(grads["prior_values"]):
        np.testing.assert_array_equal(leaf, 0)
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(grads["mean"]))


# ---- compute dtype


@pytest.mark.parametrize("build", [encoder, decoder])
def test_bfloat16_is_close_to_float32(build):
    x = normal(0, 2, 5, D)
    full, half = build(), build(dtype=jnp.bfloat16)

    def run(module, x):
        second = masks(5, 3) if build is encoder else module.memories(mixture(), "exact")
        return jitted(module)(x, second)

    out = run(half, x.astype(jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    # Parameters stay float32, and are the same ones.
    for a, b in zip(*(jax.tree.leaves(nnx.state(m)) for m in (full, half)), strict=True):
        assert b.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)
    error = jnp.abs(out.astype(jnp.float32) - run(full, x)).max()
    assert 0 < error < 0.1  # layer-normed states; bfloat16 keeps 8 bits
