"""The recorded arrays of the published implementation, and the design's golden values."""

import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import assert_close, error

import nvib_jax as nvib
from nvib_jax.attention import attention_weights

IMPLEMENTATIONS = ("reference", "xla")


def load(shared, name):
    return dict(np.load(shared / "parity" / f"{name}.npz"))


def f32(x):
    return jnp.asarray(x, jnp.float32)


def log(x):
    with np.errstate(divide="ignore"):
        return f32(np.log(x))


def attention_case(data):
    """The recorded layer's arrays as arguments of `denoising_attention`, and the output wanted."""
    heads, dim = int(data["num_heads"]), data["x"].shape[-1]
    split = (heads, dim // heads)
    query = data["x"] @ data["w_q"].T + data["b_q"]
    mixture = nvib.Mixture(
        mean=f32(data["z"] if "z" in data else data["mu"]),
        log_variance=f32(data["logvar"]) if "logvar" in data else None,
        log_weights=log(data["pi"]),
        mask=jnp.asarray(~data["pad"]),
    )
    options = {
        "key_kernel": f32(data["w_k"].T.reshape(dim, *split)),
        "value_kernel": f32(data["w_v"].T.reshape(dim, *split)),
        "value_bias": f32(data["b_v"].reshape(split)),
        "form": "published",
    }
    return f32(query.reshape(*query.shape[:2], *split)), mixture, options


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("kind", ["attention_train", "attention_eval"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_recorded_attention(shared, kind, number, implementation):
    data = load(shared, f"{kind}_{number}")
    query, mixture, options = attention_case(data)

    def err(mixture, **changed):
        out = nvib.denoising_attention(
            query, mixture, implementation=implementation, **{**options, **changed}
        )
        return error(out, np.moveaxis(data["out"], 1, 2))

    assert err(mixture) <= 1e-5
    # Power: the same comparison sees a dropped mask, weight, bias or log-determinant.
    flat = jnp.zeros_like(mixture.log_weights)
    unmasked = nvib.Mixture(mixture.mean, mixture.log_variance, flat, mixture.mask | True)
    unweighted = nvib.Mixture(mixture.mean, mixture.log_variance, flat, mixture.mask)
    assert err(unweighted) > 1e-3
    assert not data["pad"].any() or err(unmasked) > 1e-3
    assert err(mixture, value_bias=None) > 1e-3
    if kind == "attention_eval":
        assert err(mixture, form="simplified") > 1e-3
        assert err(mixture, form="exact") > 1e-3


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("kind", ["attention_train", "attention_eval"])
def test_recorded_weights(shared, kind, number):
    data = load(shared, f"{kind}_{number}")
    query, mixture, options = attention_case(data)
    del options["value_bias"]
    weights = attention_weights(query, nvib.make_memory(mixture, **options))
    assert_close(weights, data["weights"], 1e-5)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("kind", ["layer", "layer_skip"])
def test_recorded_layer(shared, kind, number):
    data = load(shared, f"{kind}_{number}")
    x, mask = f32(data["encoder_output"]), ~data["pad"]
    prior = nvib.Prior(
        f32(data["prior_mu"]), log(data["prior_var"]), f32(data["prior_log_alpha"][0]), f32(0.0)
    )
    log_alpha = nvib.log_pseudo_count(
        x,
        f32(data["w_alpha_linear"][0]),
        f32(data["b_alpha"][0]),
        f32(data["w_alpha_quadratic"][0]),
        form="exp_quadratic",
    )
    mean = data["encoder_output"] @ data["w_mu"].T + data["b_mu"]
    log_variance = data["encoder_output"] @ data["w_logvar"].T + data["b_logvar"]
    if kind == "layer_skip":
        below = nvib.make_posterior(
            f32(mean), f32(log_variance), log(data["alpha_skip"][:, 1:]), jnp.asarray(mask), prior
        )
        log_alpha = nvib.add_skip(log_alpha, below)
    post = nvib.make_posterior(f32(mean), f32(log_variance), log_alpha, jnp.asarray(mask), prior)
    valid = ~data["latent_pad"]
    np.testing.assert_array_equal(post.mask, valid)
    assert_close(post.mean[valid], data["mu"][valid])
    assert_close(post.log_variance[valid], data["logvar"][valid])
    assert_close(post.log_alpha[valid], data["log_alpha"][valid])
    weights = nvib.expected(post, threshold=0.1).log_weights
    assert_close(jnp.exp(weights), np.where(valid, data["pi"], 0.0))


@pytest.mark.parametrize("number", range(12))
def test_recorded_kl(shared, number):
    data = load(shared, f"kl_{number}")
    prior = nvib.Prior(
        f32(data["prior_mu"]),
        log(data["prior_var"]),
        log(data["prior_alpha"][0]),
        f32(data["delta"]),
    )
    post = nvib.Posterior(
        f32(data["mu"]), f32(data["logvar"]), log(data["alpha"]), jnp.asarray(~data["pad"])
    )
    options = {"num_samples": int(data["kappa"]), "form": "expected_count"}
    components = f32((~data["pad"]).sum(-1))
    gaussian = nvib.kl_gaussian(post, prior, **options) / (components * data["mu"].shape[-1])
    np.testing.assert_allclose(gaussian, data["kl_gaussian"], rtol=1e-5)
    dirichlet = nvib.kl_dirichlet(post, prior, **options) / components
    np.testing.assert_allclose(dirichlet, data["kl_dirichlet"], rtol=1e-5, atol=1e-6)


GOLDEN_KL = [
    (1, 1, 4, 0.0),
    (5, 2, 5, 0.9114429),
    (6.03, 2, 5, 1.2257644),
    (0.5, 3, 9, 24.3156510),
    (40, 12, 45, 15.9744705),
    (1000, 32.75, 128, 187.2529781),
]


@pytest.mark.parametrize(("q", "p", "k0", "want"), GOLDEN_KL)
def test_golden_kl_dirichlet(q, p, k0, want):
    post = nvib.Posterior(
        jnp.zeros((1, k0, 1)), jnp.zeros((1, k0, 1)), log(np.full((1, k0), q / k0)),
        jnp.ones((1, k0), bool),
    )  # fmt: skip
    got = nvib.kl_dirichlet(post, nvib.Prior.standard(1, alpha=p))
    np.testing.assert_allclose(got, [want], rtol=1e-5, atol=1e-6 * k0)
    # All alpha_i equal: the two forms are one.
    exact = nvib.kl_dirichlet(post, nvib.Prior.standard(1, alpha=p), form="exact")
    np.testing.assert_allclose(exact, [want], rtol=1e-5, atol=1e-6 * k0)


GOLDEN_ATTENTION = {
    "impulse": [[0.629795, 0.374146], [0.470983, 0.519744]],
    "exact": [[0.790819, 0.285592], [0.507190, 0.787989]],
    "published": [[0.806930, 0.301367], [0.649551, 0.688358]],
    "simplified": [[0.498807, 0.335586], [0.501414, 0.375239]],
}


@pytest.mark.parametrize("form", GOLDEN_ATTENTION)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_golden_attention(form, implementation):
    identity = jnp.eye(2)[:, None, :]
    mixture = nvib.Mixture(
        f32([[[0, 0], [1, 0.5], [-0.5, 1]]]),
        None if form == "impulse" else log([[[1, 1], [0.25, 0.04], [0.5, 2]]]),
        log([[1, 2, 0.5]]),
        jnp.ones((1, 3), bool),
    )
    out = nvib.denoising_attention(
        f32([[[[1, -0.5]], [[0.25, 2]]]]),
        mixture,
        key_kernel=identity,
        value_kernel=identity,
        form="exact" if form == "impulse" else form,
        implementation=implementation,
    )
    np.testing.assert_allclose(out[0, :, 0], GOLDEN_ATTENTION[form], atol=1e-6)
