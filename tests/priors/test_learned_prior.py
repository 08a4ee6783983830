"""A prior that is fitted to a model's latents: what it draws, keeps, and refuses."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import nvib_jax as nvib
from nvib_jax import cli
from nvib_jax.data import prepare
from nvib_jax.evaluation.learned_bound import learned_bound
from nvib_jax.models.params import merge
from nvib_jax.priors import LearnedPrior, PriorConfig, Sampling, fit_prior
from nvib_jax.priors.points import PointMap, features
from nvib_jax.priors.prior import ARRAYS, DESCRIPTION
from nvib_jax.text_model import TextModel

SMALL = {"steps": 1, "batch_size": 8, "dim": 16, "heads": 2, "hidden": 16, "layers": 1}
QUICK = Sampling(steps=2, method="euler")


@pytest.fixture(scope="module")
def model():
    return TextModel.load(tiny.trained()[0].train.run_dir)


@pytest.fixture(scope="module")
def texts():
    return prepare(tiny.trained()[0].data).sentences("train")[:24]


@pytest.fixture(scope="module")
def prior(model, texts):
    labels = {"label": ["long" if len(text.split()) > 7 else "short" for text in texts]}
    return fit_prior(model, texts, PriorConfig(**SMALL), labels=labels)


def posterior(rows=3, size=4, width=5, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    mean = jax.random.normal(keys[0], (rows, size, width), jnp.float32)
    log_alpha = jax.random.normal(keys[1], (rows, size), jnp.float32)
    log_alpha = log_alpha.at[0, 1].set(-jnp.inf)  # not present
    mask = jnp.arange(size)[None] < jnp.array([[4], [2], [3]])
    spread = jnp.full(mean.shape, -1.0, jnp.float32)
    return nvib.make_posterior(mean, spread, log_alpha, mask, nvib.Prior.standard(width))


def whitening_of(found, share=1.0):
    there = np.asarray(found.present[:, 1:])
    vectors = np.asarray(features(found))[there]
    return PointMap.of(vectors, np.asarray(found.log_variance)[:, 1:][there], share), vectors


def test_points_have_mean_0_and_variance_1_and_lead_back():
    found = posterior()
    whitening, vectors = whitening_of(found)
    points, there = whitening.points(found)
    np.testing.assert_array_equal(there.sum(-1), [3, 2, 3])
    np.testing.assert_array_equal(there, jnp.sort(there, axis=-1, descending=True))
    real = np.asarray(points)[np.asarray(there)]
    np.testing.assert_allclose(real.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(np.cov(real.T), np.eye(real.shape[1]), atol=1e-4)
    back = whitening.posterior(points, there, nvib.Prior.standard(5))
    returned = np.asarray(features(back))[np.asarray(there)]
    np.testing.assert_allclose(returned, vectors, atol=1e-4)
    np.testing.assert_allclose(back.log_variance[:, 1:][there], -1.0, rtol=1e-6)


def test_fewer_directions_hold_the_share_that_is_asked():
    found = posterior(size=4, seed=1)
    whole, _ = whitening_of(found)
    some, _ = whitening_of(found, share=0.7)
    variances = np.asarray(whole.scale) ** 2
    rank = len(some.scale)
    assert rank < len(variances)
    assert variances[:rank].sum() >= 0.7 * variances.sum() > variances[: rank - 1].sum()


def test_whitening_wants_vectors_that_differ():
    with pytest.raises(ValueError, match="there are 1 vectors; wanted at least 2"):
        PointMap.of(np.ones((1, 3)), np.ones((1, 2)), 1.0)
    with pytest.raises(ValueError, match="all vectors are the same"):
        PointMap.of(np.ones((5, 3)), np.ones((1, 2)), 1.0)


def test_it_draws_texts_and_the_model_stays(model, prior):
    before = {name: np.asarray(p).copy() for name, p in model.params.items()}
    written = model.sample(3, prior=prior, sampling=QUICK, seed=1)
    assert written == model.sample(3, prior=prior, sampling=QUICK, seed=1)
    assert len(written) == 3
    for name, param in model.params.items():
        np.testing.assert_array_equal(param, before[name])
    counts = jnp.array([1, 4], jnp.int32)
    drawn = prior.draw(model, jax.random.key(0), counts, sampling=QUICK)
    np.testing.assert_array_equal(drawn.present[:, 1:].sum(-1), counts)
    other = prior.draw(model, jax.random.key(1), counts, sampling=QUICK)
    assert jnp.abs(drawn.mean - other.mean).max() > 1e-3
    standard = merge(model.graph, model.params).latent.prior
    np.testing.assert_array_equal(drawn.mean[0, 0], standard.mean)


def test_what_is_saved_is_what_is_loaded(model, prior, tmp_path):
    files = prior.save(tmp_path)
    assert [file.name for file in files] == [ARRAYS, DESCRIPTION]
    loaded = LearnedPrior.load(tmp_path)
    assert loaded.config == prior.config
    assert loaded.labels == {"label": ("long", "short")}
    how = {"prior": loaded, "sampling": QUICK, "labels": {"label": "long"}, "seed": 4}
    assert model.sample(2, **how) == model.sample(2, **{**how, "prior": prior})


def test_files_that_are_no_prior(prior, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no prior\.safetensors; nvib fit-prior makes"):
        LearnedPrior.load(tmp_path)
    prior.save(tmp_path)
    said = json.loads((tmp_path / DESCRIPTION).read_text())
    for change, wanted in (
        ({"format": 9}, "has format 9; wanted 1"),
        ({"config": {**said["config"], "dim": 32}}, "do not belong together"),
        ({"config": {"nonsense": 1}}, "is damaged"),
        ({"labels": None}, "is damaged"),
    ):
        (tmp_path / DESCRIPTION).write_text(json.dumps({**said, **change}))
        with pytest.raises(ValueError, match=wanted):
            LearnedPrior.load(tmp_path)
    (tmp_path / DESCRIPTION).write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        LearnedPrior.load(tmp_path)


def test_another_model_and_unknown_labels_are_refused(model, prior):
    other = dataclasses.replace(
        model, params={name: p + 1 if p.ndim else p for name, p in model.params.items()}
    )
    with pytest.raises(ValueError, match="was fitted to other parameters"):
        other.sample(1, prior=prior)
    with pytest.raises(ValueError, match="label is 'middle'; wanted one of long, short"):
        model.sample(1, prior=prior, labels={"label": "middle"})
    with pytest.raises(ValueError, match="'tense' is no label of this prior; it has label"):
        model.sample(1, prior=prior, labels={"tense": "past"})
    with pytest.raises(ValueError, match="labels and sampling are of a learned prior"):
        model.sample(1, labels={"label": "long"})


def test_fitting_wants_a_label_for_each_text(model, texts):
    with pytest.raises(ValueError, match="label tense has 1 values; wanted 24"):
        fit_prior(model, texts, PriorConfig(**SMALL), labels={"tense": ["past"]})
    with pytest.raises(ValueError, match="kind 'gaussians' takes none"):
        fit_prior(model, texts, PriorConfig(kind="gaussians"), labels={"a": ["b"] * len(texts)})
    with pytest.raises(ValueError, match=r"prior\.noise is 0\.0; wanted more than 0"):
        PriorConfig(noise=0.0)
    with pytest.raises(ValueError, match=r"prior\.heads is 5; wanted a divisor"):
        PriorConfig(heads=5)


@pytest.mark.parametrize(
    ("kind", "field", "value", "other"),
    [("gaussians", "layers", 2, "flow"), ("flow", "components", 8, "gaussians")],
)
def test_a_field_of_the_other_kind_is_refused(model, texts, kind, field, value, other):
    said = f"prior.{field} is {value}, which has no effect on prior.kind {kind}; wanted prior.kind"
    with pytest.raises(ValueError, match=f"{said} {other}"):
        fit_prior(model, texts, PriorConfig(kind=kind, **{field: value}))


def test_the_bound_is_the_sum_of_its_parts(model, prior, texts):
    found = learned_bound(model, prior, texts[:8], sampling=QUICK)
    parts = found["log_likelihood"] - found["kl"] + found["log_prob_count"]
    assert found["elbo_sentence"] == pytest.approx(parts, rel=1e-4)
    assert found["elbo_sentence_error"] > 0
    assert found["elbo_sentence"] < 0


def test_commands(prior, tmp_path, capsys, texts):
    run = tiny.trained()[0].train.run_dir
    lines = tmp_path / "labelled.tsv"
    lines.write_text("".join(f"{'ab'[i % 2]}\t{text}\n" for i, text in enumerate(texts)))
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    given = ["fit-prior", str(run), "--out", str(tmp_path / "p"), "--labelled", str(lines)]
    assert cli.main([*given, *sizes]) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / "p" / n) for n in (ARRAYS, DESCRIPTION)
    ]
    how = ["--sampling.steps=2", "--count=2", "--label=a"]
    assert cli.main(["sample", str(run), "--prior", str(tmp_path / "p"), *how]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    lines.write_text("no tab\n")
    assert cli.main([*given, *sizes]) == 1
    assert "labelled.tsv:1 is 'no tab'; wanted label, tab, sentence" in capsys.readouterr().err
    assert cli.main(["sample", str(run), "--prior", "learned"]) == 1
    assert "has no prior.safetensors" in capsys.readouterr().err


def test_a_language_model_as_a_prior(model):
    """Its sentences are encoded and written again; those that do not fit are left out."""

    class Writer(TextModel):
        def sample(self, count, **how):
            assert how["decoding"].method == "sample"
            return [("the dog sleeps", "", " ".join(["dog"] * 25))[i % 3] for i in range(count)]

    writer = Writer(model.description, model.params)
    written = model.sample(4, prior=writer)
    assert written == model.reconstruct(["the dog sleeps"] * 4, clean=False)
    with pytest.raises(ValueError, match="are of priors that are no TextModel"):
        model.sample(1, prior=writer, labels={"a": "b"})
    writer = dataclasses.replace(writer)
    Writer.sample = lambda self, count, **how: [""] * count
    with pytest.raises(ValueError, match="wrote 0 sentences of 1 to 24 tokens in 8 attempts"):
        model.sample(1, prior=writer)


def test_directions_without_variance_are_left_out():
    """Rivals' log pseudo-counts are all 0, and dividing by their deviation would give NaN."""
    vectors = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    vectors[:, 3] = 0.0
    point_map = PointMap.of(vectors, np.zeros((1, 3)), 1.0)
    assert point_map.scale.shape == (3,)
    assert np.isfinite(point_map.coordinates(vectors)).all()


def test_options_of_a_learned_prior_are_not_taken_for_the_standard_one(capsys):
    run = str(tiny.trained()[0].train.run_dir)
    assert cli.main(["sample", run, "--sampling.steps=7"]) == 1
    assert "labels and sampling are of a learned prior" in capsys.readouterr().err


def test_a_prior_of_another_checkpoint_is_named_and_left_out(prior, tmp_path, monkeypatch):
    """`nvib evaluate` measures the rest of the run."""
    import shutil

    from nvib_jax.evaluation import protocol

    run = tmp_path / "run"
    shutil.copytree(tiny.trained()[0].train.run_dir, run)
    dataclasses.replace(prior, digest="0" * 64).save(run / "prior")
    given, said = [], []
    monkeypatch.setattr(protocol, "measure", lambda *a, prior, **k: given.append(prior) or {})
    protocol.evaluate_run(run, progress=said.append)
    prior.save(run / "prior")
    protocol.evaluate_run(run, progress=said.append)
    assert given[0] is None
    assert given[1] is not None
    assert [line[:31] for line in said if "prior" in line] == ["the learned prior is left out: "]
