"""The NVAE: teacher forcing, the plain parameter dict, padding, batches, the whole loss."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import nvib_jax as nvib
from nvib_jax.config import ObjectiveConfig
from nvib_jax.models.nvae import NVAE, NVAEConfig
from nvib_jax.models.params import merge, split
from nvib_jax.models.special_ids import BOS, EOS
from nvib_jax.models.teacher_forcing import decoder_io
from nvib_jax.training.loss import loss_and_metrics

LAYER = ("down.bias", "down.kernel", "up.bias", "up.kernel")
SELF = ("attention.out.bias", "attention.out.kernel", "attention.qkv.bias", "attention.qkv.kernel")
LATENT = tuple(f"latent_attention.{n}" for n in ("key_kernel", "value_kernel", "query.kernel",
                                                 "out.kernel"))  # fmt: skip


def norms(prefix: str) -> set[str]:
    return {f"{prefix}.{n}" for n in ("scale", "bias")}


def golden_names(encoders: int = 1, decoders: int = 1) -> set[str]:
    """What a checkpoint holds. A change here breaks every saved model: raise its FORMAT."""
    names = {
        f"{side}_{what}" for side in ("encoder", "decoder") for what in ("embedding", "position")
    }
    names |= {"output.bias", "output.kernel", "latent.alpha_bias", "latent.alpha_linear"}
    names |= {f"latent.{n}.{w}" for n in ("mean", "log_variance") for w in ("kernel", "bias")}
    names |= {
        f"latent.prior_values.{n}" for n in ("mean", "log_variance", "log_alpha", "alpha_delta")
    }
    for side, layers, own, count in (
        ("encoder", encoders, SELF, 2), ("decoder", decoders, SELF + LATENT, 3),
    ):  # fmt: skip
        names |= norms(f"{side}.norm")
        for i in range(layers):
            names |= {f"{side}.layers.{i}.{n}" for n in LAYER + own}
            names |= set().union(*(norms(f"{side}.layers.{i}.norms.{j}") for j in range(count)))
    return names


# ---- parameters


def test_parameters_are_a_flat_dict_with_these_names():
    _, params = split(tiny.model())
    assert set(params) == golden_names()
    assert all(isinstance(p, jax.Array) and p.dtype == jnp.float32 for p in params.values())
    _, params = split(tiny.model(encoder_layers=2, decoder_layers=3))
    assert set(params) == golden_names(2, 3)


@pytest.mark.parametrize(
    ("overrides", "more", "fewer"),
    [
        ({"tied": True}, set(), {"output.bias", "output.kernel"}),
        ({"pseudo_count": "exp_quadratic"}, {"latent.alpha_quadratic"}, set()),
        ({"pseudo_count": "relu"}, set(), set()),
        ({"norm": "post"}, set(), norms("encoder.norm") | norms("decoder.norm")),
        (
            {"latent_bias": True},
            {f"decoder.layers.0.latent_attention.{n}" for n in ("value_bias", "query.bias",
                                                                "out.bias")},
            set(),
        ),
    ],
)  # fmt: skip
def test_parameters_of_the_options(overrides, more, fewer):
    assert set(split(tiny.model(**overrides))[1]) == (golden_names() | more) - fewer


def test_split_and_merge_are_inverse():
    module, data = tiny.model(encoder_layers=2, decoder_layers=11), tiny.batch()
    graph, params = split(module)  # eleven layers: "10" must not be sorted before "2"
    again = merge(graph, params)
    assert isinstance(again, NVAE)
    second = split(again)[1]
    assert list(second) == list(params)
    for name in params:
        np.testing.assert_array_equal(second[name], params[name])
    first, back = (m.encode(data["tokens"], data["mask"]) for m in (module, again))
    np.testing.assert_array_equal(first.mean, back.mean)


def test_the_prior_is_in_the_parameters():
    params = split(tiny.model(prior_alpha=2.0, alpha_delta=0.25))[1]
    np.testing.assert_allclose(params["latent.prior_values.log_alpha"], np.log(2), rtol=1e-6)
    np.testing.assert_allclose(params["latent.prior_values.alpha_delta"], 0.25)
    module = tiny.model(prior_alpha=2.0, alpha_delta=0.25)
    np.testing.assert_allclose(module.latent.prior.log_total(jnp.array(4)), np.log(3), rtol=1e-6)


# ---- configuration


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("dim", 0, "at least 1"),
        ("heads", 3, "divisor of model.dim"),
        ("latent_heads", 5, "divisor of model.dim"),
        ("hidden", 0, "at least 1"),
        ("encoder_layers", -1, "at least 0"),
        ("decoder_layers", 0, "at least 1"),
        ("dropout", 1.0, "0 <= dropout < 1"),
        ("initial_alpha", 0.0, "more than 0"),
        ("initial_variance", 0.0, "more than 0"),
        ("initial_kept", 1.0, "0 < initial_kept < 1"),
        ("prior_alpha", 0.0, "more than 0"),
        ("alpha_delta", -0.1, "at least 0"),
        ("num_samples", 0, "at least 1"),
        ("pool", "maxx", "one of 'mean', 'max', 'first'"),  # was read as the mean
        ("kind", "VAE", "one of 'NVAE'"),
        ("dtype", "float16", "one of 'float32', 'bfloat16'"),
        ("norm", None, "one of 'pre', 'post'"),
        ("heads", None, "an int"),
        ("heads", 2.0, "an int"),
        ("dim", [16], "an int"),
        ("dropout", float("nan"), "a finite number"),
        ("alpha_delta", float("inf"), "a finite number"),
        ("threshold", float("nan"), "a finite number or None"),
        ("threshold", "0.1", "a finite number or None"),
        ("remat", 1, "True or False"),
    ],
)
def test_a_value_that_cannot_be_is_named(field, value, wanted):
    with pytest.raises(ValueError, match=f"model.{field}.*{re.escape(str(value))}.*{wanted}"):
        NVAEConfig(**{field: value})


# ---- teacher forcing


def test_decoder_io_by_hand():
    tokens = jnp.array([[7, 8, 9], [7, 0, 0], [0, 0, 0]])
    inputs, targets, counted = decoder_io(tokens, tokens > 0)
    np.testing.assert_array_equal(inputs, [[BOS, 7, 8, 9], [BOS, 7, 0, 0], [BOS, 0, 0, 0]])
    np.testing.assert_array_equal(targets[0], [7, 8, 9, EOS])
    np.testing.assert_array_equal(targets[1, :2], [7, EOS])
    np.testing.assert_array_equal(counted, [[True] * 4, [True, True, False, False], [False] * 4])


@pytest.mark.parametrize(
    ("norm", "layers", "tied"),
    [("pre", 1, True), ("pre", 3, False), ("post", 1, False), ("post", 2, True)],
)
def test_cached_steps_give_the_teacher_forced_logits(norm, layers, tied):
    module, data = tiny.model(norm=norm, decoder_layers=layers, tied=tied), tiny.batch()
    inputs = decoder_io(data["tokens"], data["mask"])[0]

    @jax.jit
    def run(inputs):
        mixture, form = module.read(module.encode(data["tokens"], data["mask"]))
        memories = module.memories(mixture, form)
        whole = module.decode(memories, inputs)
        caches, steps = module.empty_caches(len(inputs), inputs.shape[1]), []
        for i in range(inputs.shape[1]):
            logits, caches = module.decode_step(memories, caches, inputs[:, i], jnp.int32(i))
            steps.append(logits)
        return whole, jnp.stack(steps, axis=1)

    whole, steps = run(inputs)
    assert whole.shape == (4, tiny.LENGTH + 1, tiny.VOCAB)
    np.testing.assert_allclose(steps, whole, atol=1e-5)
    assert jnp.abs(whole[:, 1:] - whole[:, :-1]).max() > 0.1  # positions differ: it has power


def test_positions_beyond_the_tables_are_refused():
    """An index beyond a table is clamped by jax, silently."""
    module = tiny.model()
    long = jnp.zeros((1, tiny.LENGTH + 1), jnp.int32)
    with pytest.raises(ValueError, match=r"tokens has 7 positions; wanted at most 6"):
        module.encode(long, long == 0)
    mixture = module.latent.sample_prior(jax.random.key(0), jnp.array([2]), most=6)
    memories = module.memories(mixture, "exact")
    with pytest.raises(ValueError, match=r"inputs has 8 positions; wanted at most 7"):
        module.decode(memories, jnp.zeros((1, 8), jnp.int32))


# ---- reading a posterior


def test_drawn_needs_a_key_and_is_the_draw():
    module, data = tiny.model(), tiny.batch()
    posterior = module.encode(data["tokens"], data["mask"])
    with pytest.raises(ValueError, match="form is 'drawn' and key is None"):
        module.read(posterior, form="drawn")
    mixture, form = module.read(posterior, form="drawn", key=jax.random.key(3))
    assert form == "exact"
    assert mixture.log_variance is None
    np.testing.assert_array_equal(mixture.mean, nvib.sample(jax.random.key(3), posterior).mean)


def test_forms_read_the_weights_that_belong_to_them():
    module, data = tiny.model(threshold=0.5), tiny.batch()
    posterior = module.encode(data["tokens"], data["mask"])
    for form, weights in (("expected_logit", "geometric"), ("exact", "mean")):
        mixture, name = module.read(posterior, form=form)
        want = nvib.expected(posterior, log_weights=weights, threshold=0.5)
        assert name == form
        np.testing.assert_array_equal(mixture.log_weights, want.log_weights)
    assert module.read(posterior)[1] == "expected_logit"


def test_several_draws_a_component():
    module, data = tiny.model(num_samples=3), tiny.batch()
    mixture = module.draw(module.encode(data["tokens"], data["mask"]), jax.random.key(0))
    assert mixture.mean.shape == (4, 3 * (tiny.LENGTH + 1), 16)


# ---- padding, rows, and the whole loss


def loss_function(module, units="published"):
    how = ObjectiveConfig(
        units=units, lambda_gaussian=0.5, gaussian_form="exact", dirichlet_form="exact"
    )
    return jax.jit(
        lambda data: loss_and_metrics(module, data, jax.random.key(0), jnp.int32(5), how)
    )


def padded(data, seed=3):
    """Two columns of garbage ids under a false mask, and three filler rows."""
    rng = np.random.default_rng(seed)
    tokens, mask = (np.asarray(data[n]) for n in ("tokens", "mask"))
    rows = len(tokens)
    wide = rng.integers(0, tiny.VOCAB, (rows + 3, tokens.shape[1] + 2)).astype(np.int32)
    valid = np.zeros(wide.shape, bool)
    wide[:rows, : tokens.shape[1]] = np.where(mask, tokens, wide[:rows, : tokens.shape[1]])
    valid[:rows, : tokens.shape[1]] = mask
    return {"tokens": jnp.asarray(wide), "mask": jnp.asarray(valid)}


@pytest.mark.parametrize(("units", "norm"), [("published", "pre"), ("elbo", "post")])
def test_padding_and_filler_rows_change_nothing(units, norm):
    run = loss_function(tiny.model(tiny.Still, max_length=tiny.LENGTH + 2, norm=norm), units)
    loss, metrics = run(tiny.batch())
    loss2, metrics2 = run(padded(tiny.batch()))
    np.testing.assert_allclose(loss2, loss, rtol=1e-5)
    for name, (total, count) in metrics.items():
        np.testing.assert_allclose(metrics2[name][0], total, rtol=1e-5, err_msg=name)
        np.testing.assert_array_equal(metrics2[name][1], count, err_msg=name)
    # Power: the same garbage declared valid is seen.
    seen = padded(tiny.batch())
    seen["mask"] = seen["mask"].at[1, 3].set(True)
    assert abs(float(run(seen)[0] / loss) - 1) > 1e-3  # a hundred times the tolerance


def test_one_at_a_time_equals_batched():
    run, data = loss_function(tiny.model(tiny.Still)), tiny.batch()
    together = run(data)[1]
    alone = [run({n: v[i : i + 1] for n, v in data.items()})[1] for i in range(4)]
    for name in ("cross_entropy", "kl_gaussian", "kl_dirichlet", "share_kept"):
        for part in (0, 1):
            total = sum(float(one[name][part]) for one in alone)
            np.testing.assert_allclose(together[name][part], total, rtol=1e-5, err_msg=name)


def test_a_batch_of_filler_rows_alone_is_zero_with_finite_gradients():
    module = tiny.model(tiny.Still)
    data = {"tokens": jnp.zeros((2, 6), jnp.int32), "mask": jnp.zeros((2, 6), bool)}
    graph, params = split(module)
    how = ObjectiveConfig()

    def loss(params):
        return loss_and_metrics(merge(graph, params), data, jax.random.key(0), jnp.int32(0), how)

    (value, metrics), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert value == 0
    assert metrics["cross_entropy"] == (0, 0)
    for name, grad in grads.items():
        np.testing.assert_array_equal(grad, 0, err_msg=name)


@pytest.mark.parametrize(
    "options",
    [
        {"pseudo_count": "exp_linear"},
        {"pseudo_count": "exp_quadratic", "tied": True, "latent_bias": True, "norm": "post"},
        {"pseudo_count": "relu", "num_samples": 2},
    ],
)
def test_every_parameter_but_the_priors_has_a_gradient(options):
    graph, params = split(tiny.model(**options))
    how = ObjectiveConfig(lambda_gaussian=1.0)

    @jax.jit
    @jax.grad
    def gradient(params):
        return loss_and_metrics(
            merge(graph, params), tiny.batch(), jax.random.key(0), jnp.int32(0), how
        )[0]

    for name, grad in gradient(params).items():
        assert jnp.isfinite(grad).all(), name
        assert bool(jnp.any(grad != 0)) == (not name.startswith("latent.prior_values")), name


def test_bfloat16_loss_is_close_to_float32():
    full = loss_function(tiny.model(tiny.Still))(tiny.batch())[0]
    half, metrics = loss_function(tiny.model(tiny.Still, dtype="bfloat16"))(tiny.batch())
    assert half.dtype == jnp.float32
    assert all(total.dtype in (jnp.float32, jnp.int32) for total, _ in metrics.values())
    assert 0 < abs(float(half / full) - 1) < 0.02
