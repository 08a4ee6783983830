"""Classifiers: equal to those of `transformers`, started on other models, fine-tuned, kept."""

import dataclasses

import numpy as np
import pytest
from pretrained_made import made, pairs

from nvib_jax import pretrained
from nvib_jax.pretrained.evaluate import figures, untreated
from nvib_jax.pretrained.finetune import FinetuneConfig, finetune
from nvib_jax.pretrained.train import TrainingConfig, train

LABELS = ("long", "short")


def task(count, seed):
    """Texts, and whether they have many words."""
    texts, _ = pairs(count, seed)
    middle = np.median([len(text.split()) for text in texts])
    return texts, [LABELS[int(len(text.split()) <= middle)] for text in texts]


def started(family, folder):
    """A classifier on a tiny model's body."""
    made(family).to_hugging_face(folder)
    return pretrained.load(folder, labels=LABELS)


@pytest.mark.parametrize("family", ["bert", "bart", "t5"])
def test_it_learns_and_is_kept(family, tmp_path):
    model = started(family, tmp_path / "body")
    assert model.architecture.kind == "classifier"
    body = pretrained.load(tmp_path / "body")
    same = set(model.params) & set(body.params)
    assert len(same) > 20
    assert all((model.params[name] == body.params[name]).all() for name in same)
    texts, labels = task(96, 3)
    prior, how = model.empirical_prior(texts), {"steps": 60, "batch_size": 32}
    if family == "bert":  # bottlenecks compile for long
        config = FinetuneConfig(**how, train="all", learning_rate=1e-2)
        tuned = finetune(model, prior, texts, labels, config)
    else:
        read = model.reinterpret(prior, alpha=1.0)
        tuned = train(read, texts, labels, TrainingConfig(**how, learning_rate=1e-2))
    before, after = (m.score(texts, labels).accuracy() for m in (model, tuned))
    assert before < 0.7
    assert after > 0.85
    chance = tuned.probabilities(texts)
    np.testing.assert_allclose(chance.sum(1), 1, atol=1e-5)
    right = np.array([LABELS[i] for i in chance.argmax(1)]) == np.array(labels)
    assert right.mean() == pytest.approx(after)
    named = chance[np.arange(len(texts)), [LABELS.index(label) for label in labels]]
    np.testing.assert_allclose(-np.log(named), tuned.score(texts, labels).nats, atol=1e-4)
    assert all(0 < share.mean() < 1 for share in tuned.shares(texts).values())

    tuned.save(tmp_path / "tuned")
    again = pretrained.load(tmp_path / "tuned")
    assert again.architecture.labels == LABELS
    np.testing.assert_array_equal(again.probabilities(texts), chance)
    assert pretrained.inspect(tmp_path / "tuned")["kind"] == "classifier"


def test_labels_are_written_and_have_figures(tmp_path):
    model = started("bert", tmp_path / "body")
    texts, labels = task(32, 3)
    written = model.generate(texts)
    right = np.mean([a == b for a, b in zip(written, labels, strict=True)])
    assert 0 < right < 1
    assert right == pytest.approx(model.score(texts, labels).accuracy())
    found = figures(model, model.empirical_prior(texts), untreated(), texts, labels).summary()
    assert found["accuracy"] == found["exact"] == pytest.approx(right)


def test_the_head_is_trained_with_the_bottlenecks(tmp_path):
    """A head that was drawn a moment ago is of no use, so that "nvib" trains it too."""
    model = started("bert", tmp_path / "body")
    texts, labels = task(32, 3)
    config = FinetuneConfig(steps=2, batch_size=8, learning_rate=1e-2)
    tuned = finetune(model, model.empirical_prior(texts), texts, labels, config)
    moved = {name for name, p in model.params.items() if not (tuned.params[name] == p).all()}
    assert moved == {
        f"{layer}.{part}" for layer in ("pooler", "classifier") for part in ("kernel", "bias")
    }


def test_what_cannot_be(tmp_path):
    folder = tmp_path / "body"
    model = started("bert", folder)
    for labels, said in (
        (["one"], r"labels are \['one'\]; wanted at least 2, and each once"),
        (["a", "b", "a"], "wanted at least 2, and each once"),
        ("ab", "labels are 'ab'; wanted at least 2"),
    ):
        with pytest.raises(ValueError, match=said):
            pretrained.load(folder, labels=labels)
    made("gpt2").to_hugging_face(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="a gpt2 model has no head for labels; wanted one of bert"):
        pretrained.load(tmp_path / "gpt2", labels=LABELS)
    texts, labels = task(4, 3)
    with pytest.raises(
        ValueError, match=r"targets\[0\] is 'both'; wanted one of the labels long, s"
    ):
        model.score(texts, ["both", *labels[1:]])
    with pytest.raises(ValueError, match="4 texts have 3 targets; wanted as many"):
        model.score(texts, labels[1:])
    for call in (model.score, lambda texts: train(model, texts)):
        with pytest.raises(ValueError, match="a classifier needs targets, the label of each text"):
            call(texts)
    with pytest.raises(ValueError, match="tells no labels apart; load it with labels"):
        pretrained.load(folder).probabilities(texts)
    with pytest.raises(ValueError, match="not implemented but as a classifier, which `load` with"):
        train(pretrained.load(folder), texts)
    model.save(tmp_path / "kept")
    with pytest.raises(ValueError, match="the labels long, short apart; wanted these, or a model"):
        pretrained.load(tmp_path / "kept", labels=("a", "b"))
    assert pretrained.load(tmp_path / "kept", labels=LABELS).architecture.labels == LABELS
    several = {**model.config, "problem_type": "multi_label_classification"}
    for config, said in (
        (several, "problem_type = 'multi_label_classification', which is not implemented"),
        ({**model.config, "id2label": {"0": "score"}}, "has 1 label, a regression; wanted at leas"),
    ):
        dataclasses.replace(model, config=config).save(tmp_path / said[:5])
        with pytest.raises(ValueError, match=said):
            pretrained.load(tmp_path / said[:5])
