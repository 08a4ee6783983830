"""A trained model as a person uses it: texts in and out, in order, errors that name the text."""

import dataclasses
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import nvib_jax as nvib
from nvib_jax.evaluation import evidence_bound
from nvib_jax.generate import DecodingConfig
from nvib_jax.models.nvae import NVAE
from nvib_jax.models.summaries import form_of, mean_vector
from nvib_jax.text import engine
from nvib_jax.text_model import TextModel

# What is said of unusual texts has tests of its own, in test_text_input.py.
pytestmark = pytest.mark.filterwarnings("ignore::nvib_jax.text.as_typed.UnusualText")
TEXTS = ["the dog sleeps", "a cat that often waits runs", "the queen waits", "soldiers rest"]


@pytest.fixture(scope="module")
def model():
    """The trained parameters under two buckets, four rows at a time."""
    trained = TextModel.load(tiny.trained()[0].train.run_dir)
    patch = pytest.MonkeyPatch()
    patch.setattr(engine, "ROWS", 4)
    patch.setattr(engine, "FEW", 0)
    yield dataclasses.replace(trained.described(buckets=(4, 24)), _compiled={})
    patch.undo()


def test_padded(model):
    tokens, mask = model.padded([[5, 6], [7]], 3, 4)
    np.testing.assert_array_equal(tokens, [[5, 6, 0], [7, 0, 0], [0] * 3, [0] * 3])
    np.testing.assert_array_equal(mask, tokens > 0)


def test_reconstructions_come_in_order_whatever_the_buckets(model):
    texts = TEXTS * 3  # two buckets, several batches of each, the last not full
    together = model.reconstruct(texts)
    assert together == model.reconstruct(TEXTS) * 3
    assert [model.reconstruct([t])[0] for t in TEXTS] == together[:4]
    wide = model.described(buckets=(24,))
    assert wide.reconstruct(texts) == together


def test_batches_do_not_draw_the_same_noise(model):
    """Two buckets whose batches both come first: their keys differ."""

    def names(module, tokens, mask, key):
        return jnp.broadcast_to(jax.random.key_data(key), (len(tokens), 2))

    buckets = [len(row) <= 4 for row in model.tokenize(TEXTS * 3)]
    keys = {tuple(key) for key in model.measure(names, TEXTS * 3).tolist()}
    batches = sum(-(-buckets.count(short) // 4) for short in (True, False))
    assert len(keys) == batches >= 3


def test_decode_reads_a_posterior_as_the_model_was_made_to_be_read(model):
    posterior = model.encode(TEXTS)
    assert model.decode(posterior) == model.reconstruct(TEXTS)
    assert model.decode(posterior, "exact") == model.reconstruct(TEXTS, form="exact")
    drawn = model.decode(posterior, "drawn", seed=5)
    assert drawn == model.decode(*model.mixture(posterior, form="drawn", seed=5), seed=5)


@pytest.mark.parametrize(
    ("impulses", "kind", "preferred", "want"),
    [
        (True, None, "expected_logit", "exact"),  # the same in every form
        (False, "geometric", "exact", "expected_logit"),
        (False, "mean", "expected_logit", "simplified"),
        (False, "mean", "drawn", "simplified"),
        (False, "mean", "published", "published"),
        (False, None, "expected_logit", "expected_logit"),
        (False, None, "average", "simplified"),
    ],
)
def test_the_form_that_fits_a_mixtures_weights(impulses, kind, preferred, want):
    mixture = SimpleNamespace(log_variance=None if impulses else 0, weights_kind=kind)
    assert form_of(mixture, preferred) == want


def test_a_mixture_is_decoded_in_the_form_that_fits_it(model, monkeypatch):
    """Form "exact" of a mean mixture, the default of 0.1.0, gave a trained model's empty texts."""
    seen = []
    real = NVAE.memories
    monkeypatch.setattr(
        NVAE, "memories", lambda self, m, form: seen.append(form) or real(self, m, form)
    )
    fresh = dataclasses.replace(model, _compiled={})
    posterior = fresh.encode(TEXTS)
    fresh.decode(nvib.expected(posterior))
    fresh.decode(nvib.sample(jax.random.key(0), posterior))
    assert seen[0] in ("simplified", "expected_logit")
    assert seen[1] == "exact"


def test_a_model_says_what_it_is_in_a_line(model):
    assert repr(model) == str(model)
    assert re.fullmatch(
        r"TextModel\(NVAE, [\d,]+ parameters, width 16, vocabulary \d+, sentences of up to 24 "
        r"tokens\)",
        repr(model),
    )
    count = sum(p.size for p in model.params.values())
    assert f" {count:,} parameters" in repr(model)


def test_embed_is_the_mean_of_the_vectors_that_are_there(model):
    found, posterior = model.embed(TEXTS), model.encode(TEXTS)
    assert found.shape == (4, 16)
    assert found.dtype == np.float32
    for i, row in enumerate(model.tokenize(TEXTS)):
        alpha = np.exp(posterior.log_alpha[i, 1 : len(row) + 1])
        want = (alpha[:, None] * posterior.mean[i, 1 : len(row) + 1]).sum(0) / alpha.sum()
        np.testing.assert_allclose(found[i], want, rtol=1e-4, atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    np.testing.assert_allclose(model.embed(TEXTS[::-1])[::-1], found, rtol=1e-5, atol=1e-6)


def test_the_embedding_of_no_vectors_is_the_priors_mean():
    mean = jnp.arange(12.0).reshape(1, 3, 4)
    log_alpha = jnp.array([[0.0, -jnp.inf, 0.0]])
    posterior = nvib.Posterior(mean, mean, log_alpha, jnp.array([[True, True, False]]))
    np.testing.assert_array_equal(mean_vector(posterior), mean[:, 0])
    huge = dataclasses.replace(posterior, log_alpha=jnp.array([[0.0, 500.0, 0.0]]))
    np.testing.assert_array_equal(mean_vector(huge), mean[:, 1])


def test_score_is_the_bound_that_evaluation_averages(model):
    found = model.score(TEXTS, seed=3)
    assert found.shape == (4,)
    assert (found < 0).all()
    assert found.mean() == pytest.approx(evidence_bound(model, TEXTS, seed=3)["elbo_sentence"])
    assert (model.score(TEXTS, seed=3) == found).all()
    assert (model.score(TEXTS, seed=4) != found).all()


def test_a_plain_autoencoder_has_no_score(model):
    config = dataclasses.replace(model.config, model=tiny.model(kind="T").config)
    with pytest.raises(ValueError, match="the kind T has no density; wanted a variational latent"):
        model.described(config=config).score(TEXTS)


def test_seeds_name_draws(model):
    how = {"form": "drawn", "decoding": DecodingConfig(method="sample")}
    one, again, other = (model.reconstruct(TEXTS, seed=s, **how) for s in (1, 1, 2))
    assert one == again != other


def test_encode_then_decode_is_reconstruct(model):
    posterior = model.encode(TEXTS)
    assert posterior.mean.shape == (4, 25, 16)
    mixture, form = model.mixture(posterior)
    assert model.decode(mixture, form) == model.reconstruct(TEXTS)


@pytest.mark.parametrize("form", [None, "exact", "drawn"])
def test_interpolation_begins_and_ends_at_the_ends(model, form):
    path = model.interpolate(*TEXTS[:2], steps=3, form=form, seed=3)
    mixture, read = model.mixture(model.encode(TEXTS[:2]), form=form, seed=3)
    assert len(path) == 3
    assert [path[0], path[-1]] == model.decode(mixture, read)


def test_samples(model):
    how = DecodingConfig(method="sample")
    out = model.sample(9, decoding=how)
    assert len(out) == 9
    assert len(set(out)) > 5
    assert out == model.sample(9, decoding=how)
    assert out != model.sample(9, decoding=how, seed=1)
    # Batches of four: the second is no copy of the first.
    assert out[:4] != out[4:8]


def test_samples_have_the_lengths_that_were_asked_for(model, monkeypatch):
    seen = []

    real = nvib.sample_prior

    def prior_draw(key, prior, lengths, *, max_length):
        jax.debug.callback(lambda n: seen.extend(n.tolist()), lengths)
        return real(key, prior, lengths, max_length=max_length)

    monkeypatch.setattr("nvib_jax.mixture.sample_prior", prior_draw)
    fresh = model.described(count_probabilities=np.eye(25)[7])
    fresh.sample(3, lengths=[2, 5, 24])
    fresh.sample(2)
    jax.effects_barrier()
    assert sorted(seen) == sorted([2, 5, 24, 1, 7, 7, 1, 1])  # ones fill the batch


def test_vectors_are_counted(model, monkeypatch):
    """p(m): a relu model drops some vectors, and its prior draws must have as many as are left."""
    counted = model.counted(TEXTS)
    lengths = [len(row) for row in model.tokenize(TEXTS)]
    np.testing.assert_allclose(counted.count_probabilities, np.bincount(lengths, minlength=25) / 4)

    def half(self, tokens, mask, key=None):
        posterior = encode(self, tokens, mask, key)
        kept = jnp.arange(25)[None] % 2 == 0  # of 1..n, every second
        return dataclasses.replace(
            posterior, log_alpha=jnp.where(kept, posterior.log_alpha, -jnp.inf)
        )

    encode = NVAE.encode
    monkeypatch.setattr(NVAE, "encode", half)
    sparse = dataclasses.replace(model, _compiled={})
    np.testing.assert_allclose(
        sparse.counted(TEXTS).count_probabilities,
        np.bincount([max(n // 2, 1) for n in lengths], minlength=25) / 4,
    )


def test_a_method_compiles_once_a_shape(model):
    fresh = dataclasses.replace(model, _compiled={})
    for texts in (TEXTS[:1], TEXTS, TEXTS[2:]):
        fresh.reconstruct(texts)
    (run,) = fresh._compiled.values()
    assert run._cache_size() == len({4 if len(r) <= 4 else 24 for r in model.tokenize(TEXTS)})


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m: m.reconstruct([]), r"texts is \[\]; wanted a list of at least one text"),
        (lambda m: m.reconstruct("the dog"), r"texts is 'the dog'; wanted a list"),
        (lambda m: m.reconstruct(["the dog", ""]), r"the text '' has 0 tokens; wanted 1 to 24"),
        (lambda m: m.encode(["the dog " * 20]), r"the text 'the dog the.*' has 40 tokens; wanted"),
        (lambda m: m.interpolate("the dog", "a cat", steps=1), r"steps is 1; wanted at least 2"),
        (lambda m: m.sample(0), r"count is 0; wanted at least 1"),
        (lambda m: m.sample(2, lengths=[3]), r"lengths is \[3\]; wanted 2 of 1 to 24"),
        (lambda m: m.sample(1, lengths=[]), r"lengths is \[\]; wanted 1 of 1 to 24"),
        (lambda m: m.sample(2, lengths=[3, 25]), r"lengths is \[3, 25\]; wanted 2 of 1 to 24"),
        (lambda m: m.sample(2, lengths=[0, 2]), r"lengths is \[0, 2\]; wanted"),
        (lambda m: m.sample(1, lengths=[2.5]), r"lengths is \[2.5\]; wanted 1 of 1 to 24"),
        (lambda m: m.reconstruct(["the dog"], form="best"),
         r"form is 'best'; wanted one of .*exact.*drawn"),
        (lambda m: m.encode(["the dog", None]), r"texts\[1\] is None; wanted a str"),
        (lambda m: m.encode(None), r"texts is None; wanted a list"),
        (lambda m: m.decode(["the dog"]), r"latent is a list; wanted a Posterior or a Mixture"),
    ],
)  # fmt: skip
def test_errors(model, call, match):
    with pytest.raises(ValueError, match=match):
        call(model)
