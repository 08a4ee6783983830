"""The denoising autoencoder: deletion, posteriors by layer, what the decoder sees, its loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from tolerance import assert_close

import nvib_jax as nvib
from nvib_jax.checkpoint.exported import export
from nvib_jax.config import MeshConfig, ObjectiveConfig
from nvib_jax.data import DataConfig, default_grammar
from nvib_jax.data.config import CleanConfig
from nvib_jax.evaluation import protocol
from nvib_jax.evaluation.report import write_report
from nvib_jax.models.config import DenoisingConfig
from nvib_jax.models.denoising import DenoisingAutoencoder, deleted, masked_mean
from nvib_jax.models.params import merge, split
from nvib_jax.models.special_ids import SpecialIds
from nvib_jax.models.teacher_forcing import decoder_io
from nvib_jax.text_model import TextModel
from nvib_jax.training import loop

IDS = SpecialIds(space=4)
SIZES = {
    "dim": 16,
    "heads": 2,
    "hidden": 32,
    "plain_layers": 1,
    "nvib_layers": 2,
    "decoder_layers": 1,
}


def module(**options):
    config = DenoisingConfig(**SIZES | options)
    return DenoisingAutoencoder(
        config, vocab_size=tiny.VOCAB, max_length=tiny.LENGTH, special=IDS, rngs=nnx.Rngs(0)
    )


def spelled(config):
    """The tiny run's config with sentences spelled out."""
    data = DataConfig(
        **{
            field.name: getattr(config.data, field.name)
            for field in dataclasses.fields(DataConfig)
            if field.name not in ("pieces", "clean", "buckets", "vocab_size")
        },
        pieces="characters",
        vocab_size=30,  # which tensor 2 divides; the rarest of 26 letters and a space are unknown
        clean=CleanConfig(max_tokens=40),
        buckets=(40,),
    )
    model, mesh = DenoisingConfig(**SIZES, dropout=0.1), MeshConfig(fsdp=2, tensor=2)
    return dataclasses.replace(config, data=data, model=model, mesh=mesh)


# ---- deletion


def test_deletion_closes_the_gaps_and_spares_spaces():
    """By hand in numpy from the same draw; at .5, so that rows of every kind occur."""
    rng = np.random.default_rng(0)
    mask = np.arange(30)[None] < rng.integers(1, 31, 64)[:, None]
    tokens = np.where(mask, rng.integers(4, 9, mask.shape), 0).astype(np.int32)
    key = jax.random.key(3)
    got, seen = jax.device_get(
        jax.jit(lambda t, m: deleted(t, m, 0.5, key, IDS))(jnp.asarray(tokens), jnp.asarray(mask))
    )
    gone = np.asarray(jax.random.bernoulli(key, 0.5, tokens.shape)) & (tokens != IDS.space)
    spared = 0
    for row in range(64):
        left = [t for t, m, g in zip(tokens[row], mask[row], gone[row], strict=True) if m and not g]
        if not left:
            left, spared = tokens[row][mask[row]].tolist(), spared + 1
        np.testing.assert_array_equal(got[row], left + [0] * (30 - len(left)))
        np.testing.assert_array_equal(seen[row], np.arange(30) < len(left))
    assert 0 < spared < 10


def test_the_share_is_what_is_deleted():
    """Of 20,000 characters a tenth, within 4 standard errors: false alarm 6e-5."""
    tokens, mask = jnp.full((200, 100), 7, jnp.int32), jnp.ones((200, 100), bool)
    _, seen = deleted(tokens, mask, 0.1, jax.random.key(0), IDS)
    assert abs(1 - float(seen.mean()) - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 20_000)
    assert deleted(tokens, mask, 0.0, jax.random.key(0), IDS) == (tokens, mask)


# ---- posteriors by layer


def test_pseudo_counts_multiply_those_of_the_layer_below():
    """A second layer whose own are all 1 has those of the first, but for the prior's component."""
    model, batch = module(), tiny.batch()
    second = model.encoder.nvib_layers[1].attention.nvib
    second.alpha_linear[...] = jnp.zeros_like(second.alpha_linear[...])
    _, (below, above) = jax.jit(model.states)(batch["tokens"], batch["mask"])
    np.testing.assert_array_equal(above.log_alpha, below.log_alpha)
    assert float(jnp.ptp(below.log_alpha[0, 1:])) > 0.1
    assert float(jnp.max(jnp.abs(above.mean - below.mean))) > 0.1


@pytest.mark.parametrize(
    ("weights", "shares"), [("depth", [1 / 3, 2 / 3]), ("uniform", [0.5, 0.5])]
)
def test_every_layer_costs_its_share(weights, shares):
    model, batch = module(layer_weights=weights), tiny.batch()
    terms = terms_of(model, batch, train=False)
    assert set(terms.costs) == {f"{n}/{i}" for n in ("gaussian", "dirichlet") for i in (1, 2)}
    prior = nvib.Prior.standard(16, alpha=1.0, alpha_delta=0.25)
    _, posteriors = model.states(batch["tokens"], batch["mask"])
    for layer, (posterior, share) in enumerate(zip(posteriors, shares, strict=True), start=1):
        found = [kl(posterior, prior, form="exact") for kl in (nvib.kl_gaussian, nvib.kl_dirichlet)]
        assert_close(terms.costs[f"gaussian/{layer}"], share * found[0], 1e-6)
        assert_close(terms.costs[f"dirichlet/{layer}"], share * found[1], 1e-6)
        assert_close(terms.metrics[f"kl_gaussian/{layer}"][0], jnp.sum(found[0]), 1e-6)


def terms_of(model, batch, seed=0, **how):
    """Terms with exact KLs, compiled once for each model."""
    objective = ObjectiveConfig(gaussian_form="exact", dirichlet_form="exact")
    graph, params = split(model)

    @jax.jit
    def run(params, batch, key):
        step = jnp.int32(0)
        return merge(graph, params).terms(batch, key, step=step, objective=objective, **how)

    return run(params, batch, jax.random.key(seed))


def test_a_row_of_padding_costs_nothing_and_changes_nothing():
    model, batch = module(), tiny.batch(lengths=(6, 3, 1, 4))
    more = {name: jnp.concatenate([a, jnp.zeros_like(a[:1])]) for name, a in batch.items()}
    few, many = (terms_of(model, each, train=False) for each in (batch, more))
    assert_close(many.nll, few.nll, 1e-6)
    for name, cost in many.costs.items():
        assert float(cost[-1]) == 0.0
        assert_close(cost[:-1], few.costs[name], 1e-6)


def test_training_draws_and_evaluation_does_not():
    model, batch = module(), tiny.batch()

    def nll(seed, train):
        return float(terms_of(model, batch, seed, train=train).nll)

    assert nll(0, False) == nll(1, False)
    assert nll(0, True) != nll(1, True)


# ---- what the decoder sees


def test_the_decoder_is_given_the_kept_or_all():
    batch = tiny.batch()
    tokens, mask = batch["tokens"], batch["mask"]
    _, posteriors = module().states(tokens, mask)
    log_alpha = jnp.where(mask, posteriors[-1].log_alpha[:, 1:], -jnp.inf)
    middle = float(jnp.exp(jnp.median(log_alpha[0])))

    def visible(when, threshold, train=False):
        model = module(cross_mask=when, threshold=threshold)
        return np.asarray(model.visible(posteriors, mask, train=train))

    np.testing.assert_array_equal(visible("never", middle), mask)
    np.testing.assert_array_equal(visible("evaluation", middle, train=True), mask)
    some = visible("evaluation", middle)
    np.testing.assert_array_equal(some[0], np.asarray(log_alpha[0] > np.log(middle)))
    assert some.any(axis=1).all()
    np.testing.assert_array_equal(visible("always", middle, train=True), some)
    assert (visible("always", 1e9).sum(axis=1) == 1).all()  # a row always has its largest


def test_writing_step_by_step_is_teacher_forcing():
    """The decoder's cached steps give the logits of the whole sentence."""
    model, batch = module(), tiny.batch()
    memories = jax.jit(model.remember)(batch["tokens"], batch["mask"])
    inputs, *_ = decoder_io(batch["tokens"], batch["mask"])
    whole = jax.jit(model.decode)(memories, inputs)
    caches, step = model.empty_caches(4, inputs.shape[1]), jax.jit(model.decode_step)
    for t in range(inputs.shape[1]):
        logits, caches = step(memories, caches, inputs[:, t], jnp.int32(t))
        assert_close(logits, whole[:, t], 1e-5)


def test_layers_and_their_mean():
    model, batch = module(), tiny.batch()
    tokens, mask = batch["tokens"], batch["mask"]
    layers = model.states_by_layer(tokens, mask)
    assert layers.shape == (4, *mask.shape, 16)
    np.testing.assert_array_equal(layers[0], model.encoder_input(tokens))
    last, _ = model.states(tokens, mask)
    assert_close(model.encoder.norm(layers[-1]), last, 1e-6)
    assert_close(masked_mean(layers, mask)[:, 2], layers[:, 2, 0], 1e-6)  # a row of one token
    assert_close(model.embed(tokens, mask)[1], jnp.mean(last[1, :3], axis=0), 1e-6)
    for found in (model, module(nvib_layers=0, plain_layers=2)):
        weights = found.last_attention(tokens, mask)
        assert weights.shape == (4, 6, 7)
        assert_close(jnp.sum(weights, axis=-1), jnp.ones((4, 6)), 1e-5)
        assert float(jnp.max(jnp.where(mask[:, None], 0.0, weights[:, :, 1:]))) < 1e-6


# ---- a run


@pytest.fixture(scope="module")
def trained():
    config = tiny.with_train(spelled(tiny.config("denoising")), steps=20)
    return loop.train(config).model


def test_it_trains_rewrites_and_says_what_it_cannot(trained, tmp_path):
    texts = ["the dog sees a cat", "a man walks"]
    assert len(trained.reconstruct(texts)) == 2
    assert trained.embed(texts).shape == (2, 16)
    for ask in (trained.encode, trained.score):
        with pytest.raises(ValueError, match="a denoising model encodes no texts to one posterior"):
            ask(texts)
    with pytest.raises(ValueError, match="a denoising model has no prior to draw texts from"):
        trained.sample(2)
    with pytest.raises(ValueError, match="a denoising model has no budget of vectors"):
        trained.reconstruct(texts, keep=0.5)
    with pytest.warns(nvib.text_model.UnusualText, match="1 of 3 words are unknown"):
        trained.reconstruct(["the żółw sleeps"])
    again = TextModel.load(trained.config.train.run_dir, which="last")
    assert again.reconstruct(texts) == trained.reconstruct(texts)


def test_a_run_in_two_parts_is_the_whole_one(trained, tmp_path):
    """Also with an export: the same parameters to the last bit."""
    parts = tiny.with_train(trained.config, run_dir=str(tmp_path / "parts"), steps=10)
    loop.train(parts)
    done = loop.train(tiny.with_train(parts, steps=20), resume=True).model
    for name, value in trained.params.items():
        np.testing.assert_array_equal(value, done.params[name], err_msg=name)
    export(done.description, done.params, tmp_path / "out")
    for name, value in TextModel.load(tmp_path / "out").params.items():
        np.testing.assert_array_equal(value, trained.params[name], err_msg=name)


def test_it_is_evaluated_and_reported(trained, tmp_path):
    """Every part of the page, from a run's folder; noise of a fifth costs what it says."""
    run = trained.config.train.run_dir
    found = protocol.evaluate_run(
        run, protocol.EvaluationConfig(sentences=8), progress=lambda line: None
    )
    assert found["kind"] == "denoising"
    assert {"reconstructions", "layers", "noise", "segments", "probes"} <= found.keys()
    assert [(row["kind"], row["share"]) for row in found["noise"][:2]] == [
        ("delete", 0.0),
        ("delete", 0.2),
    ]
    clean = found["noise"][0]
    assert clean["nats"] == pytest.approx(found["scores"]["nats"], rel=1e-5)
    assert [row["layer"] for row in found["layers"]] == [1, 2]
    assert all(len(row["layers"]) == 4 for row in found["probes"])  # the embedding and three layers
    for row in found["segments"]:
        assert len(row["owners"]) == len(row["text"])
    page = write_report([run], tmp_path / "report.html").read_text()
    for heading in (
        "What the NVIB layers keep",
        "Noise in characters",
        "Segments",
        "Linear probes",
    ):
        assert f">{heading}</h2>" in page


def test_wrong_configs_and_arguments():
    for options, words in (
        ({"heads": 3}, "model.heads is 3; wanted a divisor of model.dim, 16"),
        ({"deletion": 1.0}, "model.deletion is 1.0; wanted 0 <= deletion < 1"),
        ({"nvib_layers": -1}, "model.nvib_layers is -1; wanted at least 0"),
        ({"cross_mask": "often"}, "model.cross_mask is 'often'"),
    ):
        with pytest.raises(ValueError, match=words):
            DenoisingConfig(**SIZES | options)
    model, batch = module(), tiny.batch()
    with pytest.raises(ValueError, match="tokens has 9 positions; wanted at most 6"):
        model.states(jnp.zeros((1, 9), jnp.int32), jnp.ones((1, 9), bool))
    layer = model.encoder.nvib_layers[1]
    x = model.encoder_input(batch["tokens"])
    _, below = layer(x[:, :4], batch["mask"][:, :4])
    with pytest.raises(ValueError, match=r"previous.log_alpha\[:, 1:\]"):
        layer(x, batch["mask"], previous=below)
    with pytest.raises(ValueError, match="mask is False everywhere; wanted at least one valid"):
        layer(x, jnp.zeros_like(batch["mask"]))
    assert default_grammar().words
