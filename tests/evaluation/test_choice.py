"""What the choice of vectors depends on, for choices that are known."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from nvib_jax.data.grammar import default_grammar
from nvib_jax.evaluation.choice import choice, choice_scores, correlation_at_fixed, explained
from nvib_jax.text_model import TextModel

TEXTS = default_grammar().sentences(987654, 200)


@pytest.fixture(scope="module")
def model():
    return TextModel.load(tiny.trained()[0].train.run_dir)


def chosen_by(monkeypatch, model, rule):
    """`choice` of a model that keeps what `rule(tokens, place)` says, with pseudo-count 2."""

    def measure(self, function, texts, *args, **options):
        rows = self.tokenize(texts)
        kept = np.zeros((len(rows), self.max_length), bool)
        for i, row in enumerate(rows):
            kept[i, : len(row)] = [rule(token, place) for place, token in enumerate(row)]
        return kept, np.where(kept, np.log(2.0), -np.inf)

    monkeypatch.setattr(type(model), "measure", measure)
    return choice(model, TEXTS, grammar=True)


def test_a_stride_is_explained_by_the_position_alone(monkeypatch, model):
    found = chosen_by(monkeypatch, model, lambda token, place: place % 4 == 3)
    assert found["explained"]["position"]["kept"] == pytest.approx(1.0)
    assert found["explained"]["position_and_length"]["kept"] == pytest.approx(1.0)
    assert found["explained"]["class"]["kept"] < 0.2
    assert np.isnan(found["explained"]["position"]["log_pseudo_count"])  # all are 2
    assert np.isnan(found["information"])  # the number is a function of the length
    assert [row["kept"] for row in found["by_position"][:5]] == [0, 0, 0, 1, 0]
    assert found["by_position"][0] == {"position": 1, "tokens": 200, "kept": 0.0}


def test_a_choice_of_words_is_explained_by_the_word(monkeypatch, model):
    grammar = default_grammar()
    nouns = {
        model.tokenizer.encode(word)[0]
        for word in grammar.words
        if grammar.class_of(word) in ("PERSON", "PLACE", "THING", "ANIMAL")
    }
    found = chosen_by(monkeypatch, model, lambda token, place: token in nouns)
    for name in ("word", "class"):
        assert found["explained"][name]["kept"] == pytest.approx(1.0)
    assert found["explained"]["position"]["kept"] < 0.3
    assert found["information"] > 0.1  # a sentence of more nouns is less likely
    shares = {row["class"]: row["kept"] for row in found["by_class"]}
    assert (shares["PERSON"], shares["THE"]) == (1.0, 0.0)
    assert sum(row["tokens"] for row in found["by_class"]) == sum(len(t.split()) for t in TEXTS)


def test_chance_is_what_random_groups_explain():
    """200 random groupings; 5 standard errors: a false alarm in a million."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=300)
    found = [explained(rng.permutation(np.arange(300) % 20), values) for _ in range(200)]
    error = np.std(found) / 200**0.5
    assert abs(np.mean(found) - 19 / 299) < 5 * error


def test_no_variance_is_no_share():
    assert np.isnan(explained(np.arange(3), np.ones(3)))
    assert np.isnan(explained(np.zeros(0), np.zeros(0)))


def test_lengths_alone_do_not_correlate():
    """The number rises with the length and so does the information; among equals nothing does."""
    lengths = np.repeat([4, 8, 12], 2)
    counts, information = lengths / 2.0, lengths * 3.0 + np.array([0, 1, 0, 1, 0, 1])
    assert np.corrcoef(counts, information)[0, 1] > 0.99
    assert np.isnan(correlation_at_fixed(lengths, counts, information))
    counts = counts + np.array([0, 1, 0, 1, 1, 0])
    assert correlation_at_fixed(lengths, counts, information) == pytest.approx(1 / 3)


def test_of_a_real_model(model):
    """The share kept by position adds up to the share kept, and a draw is not read."""
    from nvib_jax.evaluation.usage import vector_usage

    found = choice(model, TEXTS[:40], grammar=True)
    tokens = sum(row["tokens"] for row in found["by_position"])
    kept = sum(row["tokens"] * row["kept"] for row in found["by_position"])
    lengths = [len(text.split()) for text in TEXTS[:40]]
    assert tokens == sum(lengths)
    posterior = model.encode(TEXTS[:40])
    above = np.asarray(posterior.log_alpha[:, 1:] > jnp.log(0.1)) & np.asarray(
        posterior.mask[:, 1:]
    )
    assert kept == above.sum()
    assert choice_scores(found)["choice_position"] == found["explained"]["position"]["kept"]
    assert vector_usage(model, TEXTS[:40])["kept_hard"] == pytest.approx(
        np.mean(above.sum(axis=1) / lengths)
    )
    config = dataclasses.replace(model.config.model, evaluation_form="drawn")
    drawn = model.described(config=dataclasses.replace(model.config, model=config))
    assert choice(drawn, TEXTS[:40], grammar=True)["by_class"] == found["by_class"]
