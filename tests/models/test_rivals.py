"""The NVAE's rivals: which vectors they keep, that their attention is plain, what they cost."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import nvib_jax as nvib
from nvib_jax.config import ObjectiveConfig
from nvib_jax.generate import rewrite, write_prior
from nvib_jax.models.latents import LATENTS
from nvib_jax.models.params import merge, split
from nvib_jax.objective import gaussian_log_density_ratio
from nvib_jax.training.loss import loss_and_metrics

RIVALS = [kind for kind in LATENTS if kind != "NVAE"]
CERTAIN = ("T", "VQ", "AAE")  # without noise
SMALL = {"latent_queries": 2, "codes": 8}


def encoded(kind, lengths=(6, 3, 1, 0), **options):
    module, data = tiny.model(kind=kind, **options), tiny.batch(lengths=lengths)
    return module, module.encode(data["tokens"], data["mask"]), data


def kept(posterior):
    return np.asarray(~jnp.isneginf(posterior.log_alpha) & posterior.mask)[:, 1:]


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_strided_keeps_every_share_from_one_vector_to_all(n):
    """Shares 1/n, 2/n ... 1 keep 1, 2 ... n vectors, evenly: gaps differ by one at most."""
    x, mask = jnp.zeros((1, 12, 16)), jnp.arange(12)[None] < n
    for count in range(1, n + 1):
        latent = tiny.model(kind="VTS", stride_share=count / n).latent
        where = np.flatnonzero(latent.vectors(x, mask)[2][0])
        assert len(where) == count
        gaps = np.diff([-1, *where])
        assert gaps.max() - gaps.min() <= 1
        assert where[-1] == n - 1
    assert tiny.model(kind="VTS", stride_share=0.01).latent.vectors(x, mask)[2].sum() == 1


@pytest.mark.parametrize("pool", ["mean", "max", "first"])
def test_pooled_is_one_vector_of_the_tokens_alone(pool):
    latent = tiny.model(kind="VTP", pool=pool).latent
    x = jax.random.normal(jax.random.key(0), (3, 6, 16))
    lengths = np.array([6, 2, 0])
    vectors, there, _ = latent.vectors(x, jnp.arange(6)[None] < lengths[:, None])
    for row, n in zip(x[:2], lengths, strict=False):
        want = {"mean": row[:n].mean(0), "max": row[:n].max(0), "first": row[0]}[pool]
        np.testing.assert_allclose(vectors[len(x[:2]) - 2 + int(n == 2), 0], want, rtol=1e-6)
    np.testing.assert_array_equal(there[:, 0], [True, True, False])
    assert np.isfinite(vectors).all()


def test_queries_pool_to_k_vectors_and_see_no_padding():
    module, posterior, data = encoded("VTQ", latent_queries=3)
    assert posterior.mean.shape == (4, 4, 16)
    np.testing.assert_array_equal(kept(posterior), np.array([[1] * 3] * 3 + [[0] * 3], bool))
    other = jnp.where(data["mask"], data["tokens"], 7)
    same = module.encode(other, data["mask"])
    np.testing.assert_allclose(same.mean[:3], posterior.mean[:3], rtol=1e-5, atol=1e-6)
    # Three queries, three vectors.
    assert float(jnp.abs(posterior.mean[0, 1] - posterior.mean[0, 2]).max()) > 1e-3


@pytest.mark.parametrize("kind", RIVALS)
def test_their_attention_is_plain(kind):
    """softmax(q k) v over the vectors that are kept: no norm, no prior's component."""
    module, posterior, _ = encoded(kind, lengths=(6, 3, 2, 4), **SMALL)
    layer = module.decoder.layers[0].latent_attention
    x = jax.random.normal(jax.random.key(1), (4, 5, 16))
    mixture, form = module.read(posterior)
    got = layer(x, layer.memory(mixture, form))

    query = layer._project(x)
    read = module.latent.still(posterior)[:, 1:]
    keys = jnp.einsum("bsd,dhe->bshe", read, layer.key_kernel[...])
    values = jnp.einsum("bsd,dhe->bshe", read, layer.value_kernel[...])
    logits = jnp.einsum("bthe,bshe->bhts", query, keys) / keys.shape[-1] ** 0.5
    logits = jnp.where(kept(posterior)[:, None, None], logits, -jnp.inf)
    out = jnp.einsum("bhts,bshe->bthe", jax.nn.softmax(logits), values)
    np.testing.assert_allclose(got, layer.out(out.reshape(x.shape)), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("kind", RIVALS)
def test_the_kl_is_the_mean_log_ratio_of_draws(kind):
    """2,000 draws a sentence; 4.5 standard errors: false alarms below 1e-4 over all sentences."""
    module, posterior, _ = encoded(kind, lengths=(6, 3, 1, 4))
    costs = module.latent.costs(posterior)
    kl_g, kl_d = costs["gaussian"], costs["dirichlet"]
    np.testing.assert_array_equal(kl_d, 0)
    if kind in CERTAIN:
        np.testing.assert_array_equal(kl_g, 0)
        return

    @jax.jit
    def ratios(keys):
        return jax.lax.map(
            lambda key: module.latent.log_density_ratio(
                module.latent.draw(posterior, key), posterior
            ),
            keys,
        )

    found = np.asarray(ratios(jax.random.split(jax.random.key(0), 2000)), np.float64)
    error = found.std(axis=0) / len(found) ** 0.5
    assert (np.abs(found.mean(axis=0) + kl_g) < 4.5 * error).all()
    # It is the NVAE's exact KL of the same Gaussians.
    np.testing.assert_allclose(
        kl_g, nvib.kl_gaussian(posterior, module.latent.prior, form="exact"), rtol=1e-6
    )


@pytest.mark.parametrize("kind", list(LATENTS))
def test_all_train_write_and_draw(kind):
    module, data = tiny.model(kind=kind, **SMALL), tiny.batch(lengths=(6, 3, 1, 0))
    objective = ObjectiveConfig(units="elbo")

    @jax.jit
    def run(key):
        loss, metrics = loss_and_metrics(module, data, key, jnp.int32(0), objective)
        back = rewrite(module, data["tokens"], data["mask"], key, form=None, max_length=6)
        return loss, metrics, back, write_prior(module, jnp.array([1, 2, 3, 6]), key, max_length=6)

    loss, metrics, back, drawn = run(jax.random.key(0))
    assert np.isfinite(loss)
    assert back.shape == drawn.shape == (4, 6)
    vectors = {"NVAE": None, "VTP": 3, "AAE": 3, "VTQ": 6, "VTS": 6, "VQ": 6}.get(kind, 10)
    if vectors is not None:
        assert (int(metrics["share_kept"][0]), int(metrics["share_kept"][1])) == (vectors, 10)


@pytest.mark.parametrize("kind", ["VTP", "NVAE", "VQ"])
def test_what_a_batch_costs_as_a_whole_is_weighed_by_its_field(kind):
    """The loss is that without, plus weight times cost, per target; empty rows cost nothing."""
    module, data = tiny.model(kind=kind, **SMALL), tiny.batch(lengths=(6, 3, 1, 0))
    weights = ({}, {"lambda_mmd": 2.0}, {"lambda_mmd": 2.0, "mmd_of": "vectors"},
               {"lambda_sliced": 3.0}, {"lambda_mmd": 2.0, "mmd_bandwidth": 1.0})  # fmt: skip

    @jax.jit
    def losses(key):
        return [
            loss_and_metrics(
                module, data, key, jnp.int32(0), ObjectiveConfig(units="elbo", **weight)
            )
            for weight in weights
        ]

    (plain, without), *others = losses(jax.random.key(0))
    assert not {"mmd", "sliced"} & set(without)
    costs = []
    for (loss, metrics), weight in zip(others, weights[1:], strict=True):
        (name,) = {"mmd", "sliced"} & set(metrics)
        total, count = metrics[name]
        assert int(count) == 3
        np.testing.assert_allclose(
            loss - plain, weight[f"lambda_{name}"] * total / 13, rtol=1e-4, atol=1e-6
        )
        costs.append(float(total))
    assert len(set(costs)) == 4


@pytest.mark.parametrize("kind", RIVALS)
def test_every_parameter_but_the_priors_is_trained(kind):
    module, data = tiny.model(kind=kind, **SMALL), tiny.batch()
    graph, params = split(module)

    @jax.jit
    def grads(params):
        def loss(p):
            return loss_and_metrics(
                merge(graph, p), data, jax.random.key(0), jnp.int32(0), ObjectiveConfig()
            )[0]

        return jax.grad(loss)(params)

    for name, grad in grads(params).items():
        assert bool(jnp.isfinite(grad).all()), name
        # Of a single vector there is nothing to choose.
        asking = ("key_kernel", "latent_attention.query.kernel", "norms.1.bias", "norms.1.scale")
        idle = kind in ("VTP", "AAE") and name.startswith("decoder") and name.endswith(asking)
        assert bool(jnp.any(grad != 0)) == ("prior_values" not in name and not idle), name


@pytest.mark.parametrize("kind", RIVALS)
def test_forms_and_draws(kind):
    module, posterior, _ = encoded(kind, lengths=(6, 3, 1, 4))
    exact, _ = module.read(posterior, form="exact")
    other, _ = module.read(posterior, form="expected_logit")
    np.testing.assert_array_equal(exact.mean, other.mean)
    drawn, _ = module.read(posterior, form="drawn", key=jax.random.key(0))
    average, _ = module.read(posterior, form="average", key=jax.random.key(0))
    assert average.mean.shape[1] == (1 if kind in CERTAIN else 8) * drawn.mean.shape[1]
    assert bool(jnp.any(drawn.mean != exact.mean)) == (kind not in CERTAIN)
    with pytest.raises(ValueError, match="form is 'drawn' and key is None; a draw needs a key"):
        module.read(posterior, form="drawn")


def test_between_two_texts_pooled_kinds_go_along_a_line():
    for kind, shape in (("VTP", 2), ("AAE", 2), ("VTV", 14), ("VQ", 14)):
        module, posterior, _ = encoded(kind, lengths=(6, 3, 1, 4))
        mixture, _ = module.read(posterior)
        back = jax.tree.map(lambda x: x[::-1], mixture)
        half = module.latent.interpolate(mixture, back, jnp.full(4, 0.5))
        assert half.mean.shape[1] == shape
        if shape == 2:
            np.testing.assert_allclose(half.mean, (mixture.mean + back.mean) / 2, rtol=1e-6)
            norm = jnp.sum(jnp.square(half.mean[:, 1]), -1) / (2 * 8**0.5)
            np.testing.assert_allclose(half.log_weights[:, 1], norm, rtol=1e-5)
        ends = module.latent.interpolate(mixture, back, jnp.zeros(4))
        assert not np.isnan(ends.log_weights).any()


def test_the_ratio_of_the_vectors_is_a_part_of_the_mixtures():
    """KL_G + KL_D of the NVAE: weights that are no draw leave the first."""
    module, posterior, _ = encoded("NVAE", lengths=(6, 3, 1, 4))
    drawn, prior = module.draw(posterior, jax.random.key(0)), module.latent.prior
    whole = module.latent.log_density_ratio(drawn, posterior)
    part = gaussian_log_density_ratio(drawn, posterior, prior)
    assert float(jnp.abs(whole - part).max()) > 1e-3


@pytest.mark.parametrize("kind", CERTAIN)
def test_what_takes_no_noise_has_no_variances(kind):
    assert not any("log_variance.kernel" in name for name in split(tiny.model(kind=kind))[1])


def test_each_side_of_an_aae_has_its_own_gradient():
    """The discriminator learns to tell, the encoder to be taken for the prior, and nothing else."""
    latent = tiny.model(kind="AAE", adversary=3.0).latent
    x, mask = jax.random.normal(jax.random.key(0), (5, 6, 16)), jnp.ones((5, 6), bool)
    posterior, key = latent(x, mask), jax.random.key(1)
    graph, params = split(latent)

    def cost(name, params, mean):
        changed = dataclasses.replace(posterior, mean=mean)
        return jnp.sum(merge(graph, params).aggregate_costs(changed, key)[name])

    z, prior = posterior.mean[:, 1], jax.random.normal(key, (5, 16), jnp.float32)
    true = jax.nn.log_sigmoid(latent.logit(prior)) + jax.nn.log_sigmoid(-latent.logit(z))
    found = latent.aggregate_costs(posterior, key)
    np.testing.assert_allclose(found["discriminator"], -true, rtol=1e-5)
    fooled = -3 * jax.nn.log_sigmoid(latent.logit(z))
    np.testing.assert_allclose(found["adversary"], fooled, rtol=1e-5)

    d_params, d_mean = jax.grad(lambda *x: cost("discriminator", *x), argnums=(0, 1))(
        params, posterior.mean
    )
    e_params, e_mean = jax.grad(lambda *x: cost("adversary", *x), argnums=(0, 1))(
        params, posterior.mean
    )
    judge = {name for name, grad in d_params.items() if bool(jnp.any(grad != 0))}
    assert judge == {"up.kernel", "up.bias", "judge.kernel", "judge.bias"}
    assert not d_mean.any()
    # Its two logits are the same function of the parameters, so only rounding is left.
    assert all(float(jnp.abs(grad).max()) < 1e-5 for grad in e_params.values())
    wanted = jax.grad(lambda z: -3 * jnp.sum(jax.nn.log_sigmoid(latent.logit(z))))(z)
    np.testing.assert_allclose(e_mean[:, 1], wanted, rtol=1e-5)


@pytest.mark.parametrize("kind", list(LATENTS))
def test_methods_are_abstract_or_final(kind):
    """Who reads a method need not look for a subclass that does something else."""
    classes = [c for c in LATENTS[kind].__mro__ if c.__module__.startswith("nvib_jax")]
    for i, cls in enumerate(classes):
        for name, thing in vars(cls).items():
            function = thing.fget if isinstance(thing, property) else thing
            if name == "__init__" or not inspect.isfunction(function):
                continue
            for base in classes[i + 1 :]:
                over = vars(base).get(name)
                if over is not None:
                    over = over.fget if isinstance(over, property) else over
                    assert "raise NotImplementedError" in inspect.getsource(over), (cls, name)
