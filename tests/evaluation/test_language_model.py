"""The language model against the grammar, whose probabilities are known, and against its axioms."""

import dataclasses
import functools
import itertools
import math
import signal
import subprocess
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from nvib_jax.data import DataConfig, Tokenizer, default_grammar, prepare
from nvib_jax.evaluation import language_model_training as training
from nvib_jax.evaluation.causal_transformer import (
    CausalTransformer,
    LanguageModelConfig,
    targets_of,
    token_log_probs,
)
from nvib_jax.evaluation.language_model import LanguageModel
from nvib_jax.evaluation.language_model_training import (
    cached_language_model,
    reverse_perplexity,
    train_language_model,
)
from nvib_jax.models.params import merge
from nvib_jax.modules.transformer import sinusoids

tiny.folder()  # compiled code is kept there
CONFIG = LanguageModelConfig(
    dim=32, heads=2, hidden=64, layers=1, dropout=0.0, steps=400, batch_size=32, learning_rate=1e-2
)
SHORT = dataclasses.replace(CONFIG, dim=8, hidden=8, steps=3)
LONG = " ".join(["the dog"] * 40)


@functools.cache
def tokenizer() -> Tokenizer:
    grammar = default_grammar()
    words = sorted(grammar.words)
    return Tokenizer.train([*grammar.sentences(0, 500), *words], 4000, pieces="words")


@functools.cache
def model() -> LanguageModel:
    """One layer of width 32, 400 steps: small, but it has learned the grammar's ways."""
    return train_language_model(default_grammar().sentences(0, 5000), tokenizer(), CONFIG)


@pytest.fixture(autouse=True)
def few_buckets(monkeypatch):
    """Each compiles a step."""
    monkeypatch.setattr(training, "BUCKETS", 2)


@pytest.fixture
def one_bucket(monkeypatch):
    monkeypatch.setattr(training, "BUCKETS", 1)


@pytest.fixture
def texts():
    return [*default_grammar().sentences(9, 70), "", "dog", "unknown"]


def module(vocab_size: int = 9, **changes) -> CausalTransformer:
    config = dataclasses.replace(CONFIG, layers=2, **changes)
    return CausalTransformer(config, vocab_size, rngs=nnx.Rngs(0))


def ids(*shape: int, most: int = 9, seed: int = 0):
    return np.random.default_rng(seed).integers(4, most, shape).astype(np.int32)


# ---- a distribution, causal


def test_no_model_beats_the_source():
    """The gap is a KL of some nats; its mean over 500 sentences is below 0 by chance never."""
    held_out = default_grammar().sentences(77, 500)
    exact = np.array([default_grammar().log_prob(text) for text in held_out])
    gaps = exact - model().log_prob(held_out)
    error = gaps.std() / 500**0.5
    assert gaps.mean() > 5 * error
    # It has learned: words drawn one by one at their rates would be 15 nats from the source.
    assert gaps.mean() < 6


def test_shuffled_words_are_less_likely_than_a_sentence():
    """It has learned order: 100 in 100, or p < 2^-100 were it a coin."""
    rng = np.random.default_rng(0)
    good = [text for text in default_grammar().sentences(78, 200) if len(text.split()) > 9][:50]
    bad = [" ".join(rng.permutation(text.split())) for text in good]
    assert np.all(model().log_prob(good) > model().log_prob(bad))


@jax.jit
def _scores(tokens, lengths):
    return token_log_probs(module(dropout=0.1), tokens, lengths)


def test_a_token_changes_nothing_before_it():
    tokens, lengths = ids(9, 8), np.full(9, 8, np.int32)
    before = np.asarray(_scores(tokens, lengths))
    for t in range(8):
        changed = tokens.copy()
        changed[:, t] = (tokens[:, t] - 4 + 1) % 5 + 4
        after = np.asarray(_scores(changed, lengths))
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert np.all(after[:, t] != before[:, t])
        assert np.any(after[:, t + 1 :] != before[:, t + 1 :])


def test_probabilities_sum_to_one():
    log_p = jax.jit(lambda tokens: module().log_probs(tokens))(ids(5, 6))
    assert log_p.shape == (5, 7, 9)
    np.testing.assert_allclose(np.exp(np.asarray(log_p, np.float64)).sum(-1), 1, rtol=1e-5)


def test_probabilities_of_all_sentences_sum_to_one():
    """Those of 0, 1 and 2 tokens of 6, and what three tokens begin: nothing is lost or doubled."""
    vocabulary = [0, 1, 3, 4, 5, 6]  # the end is no token
    rows = [row for n in range(4) for row in itertools.product(vocabulary, repeat=n)]
    tokens = np.array([[*row, *[0] * (3 - len(row))] for row in rows], np.int32)
    lengths = np.array([len(row) for row in rows], np.int32)
    run = jax.jit(lambda *arrays: token_log_probs(module(7), *arrays))
    log_p = np.asarray(run(tokens, lengths), np.float64)
    assert np.all(log_p[np.arange(4)[None] > lengths[:, None]] == 0)
    log_p[lengths == 3, 3] = 0  # of the longest, what begins so
    assert np.exp(log_p.sum(1)).sum() == pytest.approx(1, rel=1e-5)


def test_targets_by_hand():
    tokens = jnp.array([[5, 6, 7], [5, 0, 0], [0, 0, 0], [0, 0, 0]])
    targets, counted = targets_of(tokens, jnp.array([3, 1, 0, -1]))
    want = [[5, 6, 7, 2], [5, 2, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(targets, want)
    np.testing.assert_array_equal(counted, np.array(want) > 0)


def test_sinusoids_tell_positions_apart():
    found = sinusoids(500, 7)
    assert found.shape == (500, 7)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[3, [0, 4]], [math.sin(3), math.cos(3)], rtol=1e-6)
    assert len(np.unique(found.round(4), axis=0)) == 500


# ---- texts in, figures out


def test_padding_and_company_change_nothing(texts):
    together = model().log_prob(texts)
    assert together.dtype == np.float64
    np.testing.assert_allclose(model().log_prob(texts[::-1])[::-1], together, rtol=1e-5)
    alone = [model().log_prob([text])[0] for text in texts[-8:]]
    np.testing.assert_allclose(alone, together[-8:], rtol=1e-5)
    wider = dataclasses.replace(model(), buckets=(29,), _compiled={})
    np.testing.assert_allclose(wider.log_prob(texts), together, rtol=1e-5)


def test_perplexity_by_hand(texts):
    counts = model().token_counts(texts)
    assert counts.dtype == np.int64
    assert counts.tolist() == [len(text.split()) + 1 for text in texts]
    want = math.exp(-model().log_prob(texts).sum() / counts.sum())
    assert model().perplexity(texts) == pytest.approx(want, rel=1e-12)
    one = texts[0]
    want = math.exp(-model().log_prob([one])[0] / (len(one.split()) + 1))
    assert model().perplexity([one]) == pytest.approx(want, rel=1e-12)


def test_the_empty_sentence_ends_at_once():
    log_p = merge(model().graph, model().params).log_probs(jnp.zeros((1, 1), jnp.int32))
    want = float(log_p[0, 0, Tokenizer.special.eos])
    assert model().log_prob([""])[0] == pytest.approx(want, rel=1e-5)
    assert model().token_counts([""]).tolist() == [1]
    assert model().perplexity([""]) == pytest.approx(math.exp(-want), rel=1e-5)


def test_no_sentence_is_too_long(texts):
    """80 tokens where the longest bucket is 24: scored whole, beside others, and as a sum."""
    assert model().buckets[-1] < 25
    found = model().log_prob([LONG, texts[0]])
    assert found[1] == pytest.approx(model().log_prob([texts[0]])[0], rel=1e-5)
    row = np.array([tokenizer().encode(LONG)], np.int32)
    whole = token_log_probs(merge(model().graph, model().params), row, jnp.array([80]))
    assert found[0] == pytest.approx(float(whole.sum()), rel=1e-5)
    assert model().token_counts([LONG]).tolist() == [81]


def test_it_compiles_few_times(texts):
    fresh = dataclasses.replace(model(), _compiled={})
    fresh.log_prob([*texts, LONG, LONG + " dog"])
    fresh.log_prob(texts[:3])
    assert len(fresh.buckets) <= training.BUCKETS
    assert fresh._compiled["score"]._cache_size() <= len(fresh.buckets) + 1


@pytest.mark.parametrize("texts", [[], "a string"])
def test_no_texts_is_an_error(texts):
    calls = (
        model().log_prob, model().token_counts, model().perplexity,
        lambda t: train_language_model(t, tokenizer(), SHORT),
        lambda t: reverse_perplexity(t, held_out=["dog"], tokenizer=tokenizer(), config=SHORT),
        lambda t: reverse_perplexity(["dog"], held_out=t, tokenizer=tokenizer(), config=SHORT),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match=r"texts is .*wanted a list of at least one text"):
            call(texts)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"heads": 3}, "lm.heads is 3; wanted a divisor of lm.dim, 32"),
        ({"steps": 0}, "steps is 0; wanted at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0; wanted 0 <= dropout < 1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; wanted more than 0"),
    ],
)
def test_a_config_that_cannot_be_is_an_error(change, match):
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(CONFIG, **change)


# ---- training


def test_it_learns_the_shares_of_sentences_of_every_length():
    """Three of four are empty: every sentence weighs the same, whatever batch it comes in."""
    config = dataclasses.replace(CONFIG, dim=8, hidden=8, steps=300, batch_size=4)
    learned = train_language_model(["", "", "", "dog dog dog dog dog dog"], tokenizer(), config)
    share, other = np.exp(learned.log_prob(["", "dog dog dog dog dog dog"]))
    assert share == pytest.approx(0.75, abs=0.05)
    assert other == pytest.approx(0.25, abs=0.05)


def test_an_epoch_is_every_sentence_once():
    rows = [ids(n).tolist() for n in (0, 1, 2, 3, 5, 8, 8, 8, 13, 1, 2, 3)]
    batches = training._batches(rows, (3, 8, 13), dataclasses.replace(CONFIG, batch_size=3))
    for _ in range(2):
        seen = []
        for tokens, lengths in itertools.islice(batches, 3 + 2 + 1):
            assert len(tokens) == len(lengths) == 3
            seen += [r[:n].tolist() for r, n in zip(tokens, lengths, strict=True) if n >= 0]
        assert sorted(seen) == sorted(rows)


def test_training_is_a_function_of_the_seed_and_reports(one_bucket, texts):
    lines: list[str] = []
    config = dataclasses.replace(SHORT, dropout=0.3)
    first = train_language_model(
        texts, tokenizer(), config, validation=texts[:5], progress=lines.append
    )
    assert len(lines) == 4
    assert f"perplexity {first.perplexity(texts[:5]):.3f}" in lines[-1]
    again = train_language_model(texts, tokenizer(), config)
    other = train_language_model(texts, tokenizer(), dataclasses.replace(config, seed=1))
    np.testing.assert_array_equal(first.log_prob(texts), again.log_prob(texts))
    assert np.all(first.log_prob(texts) != other.log_prob(texts))


def test_reverse_perplexity_is_that_of_a_model_of_the_samples(one_bucket, texts):
    samples = default_grammar().sentences(4, 50)
    found = reverse_perplexity(samples, held_out=texts, tokenizer=tokenizer(), config=SHORT)
    assert found == train_language_model(samples, tokenizer(), SHORT).perplexity(texts)


# ---- kept on disk


def test_save_and_load(tmp_path, texts):
    path = tmp_path / "model.npz"
    model().save(path)
    back = LanguageModel.load(path, tokenizer())
    assert (back.config, back.buckets) == (CONFIG, model().buckets)
    np.testing.assert_array_equal(back.log_prob(texts), model().log_prob(texts))
    other = Tokenizer.train(["some other text"], 100, pieces="words")
    with pytest.raises(ValueError, match="trained with another tokenizer"):
        LanguageModel.load(path, other)


def test_what_is_no_language_model_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "model.npz"
    with pytest.raises(FileNotFoundError):
        LanguageModel.load(path, tokenizer())
    model().save(path)
    content = path.read_bytes()
    for broken in (b"", b"text", content[: len(content) // 2]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="no saved language model"):
            LanguageModel.load(path, tokenizer())
    np.savez(path, x=np.zeros(3))
    with pytest.raises(ValueError, match="no saved language model"):
        LanguageModel.load(path, tokenizer())
    monkeypatch.setattr("nvib_jax.evaluation.language_model.FORMAT", 99)
    model().save(path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="has format 99; this version reads 1"):
        LanguageModel.load(path, tokenizer())


def test_a_corpus_has_its_model_trained_once(one_bucket, tmp_path, monkeypatch, texts):
    trained = []

    def train(sentences, *args, **kw):
        trained.append(sentences)
        return train_language_model(sentences, *args, **kw)

    monkeypatch.setattr(training, "train_language_model", train)
    monkeypatch.setattr(training, "TRAINING_SENTENCES", 30)
    corpus = DataConfig(num_train=90, num_validation=5, num_test=5, cache_dir=str(tmp_path))
    data = prepare(corpus)
    first = cached_language_model(data, SHORT)
    again = cached_language_model(prepare(corpus), SHORT)
    assert len(trained) == 1
    np.testing.assert_array_equal(again.log_prob(texts), first.log_prob(texts))
    # At most so many, from one end of the split to the other.
    every = data.sentences("train")
    assert len(set(trained[0])) == len(set(trained[0]) & set(every)) > 25
    assert (trained[0][0], trained[0][-1]) == (every[0], every[-1])

    cached_language_model(data, dataclasses.replace(SHORT, steps=4))
    cached_language_model(prepare(dataclasses.replace(corpus, seed=1)), SHORT)
    assert len(trained) == 3
    kept = sorted(tmp_path.glob("language_model-*.npz"))
    assert len(kept) == 3
    for file in kept:
        file.write_bytes(b"damaged")
    lines: list[str] = []
    cached_language_model(data, SHORT, progress=lines.append)
    assert len(trained) == 4
    assert "no saved language model" in lines[0]
    assert "training it again" in lines[0]
    # Nothing but corpora and models is left behind.
    assert len(list(tmp_path.iterdir())) == 2 + 3


def test_an_interrupted_training_leaves_nothing(one_bucket, tmp_path, monkeypatch):
    data = prepare(DataConfig(num_train=9, num_validation=5, num_test=5, cache_dir=str(tmp_path)))

    def fails(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", fails)
    with pytest.raises(KeyboardInterrupt):
        cached_language_model(data, SHORT)
    assert list(tmp_path.iterdir()) == [data.path]


@pytest.mark.long
def test_it_trains_in_a_process_beside_this_one(tmp_path, monkeypatch, texts):
    """The same model as this process would train; without the process, this one trains."""
    monkeypatch.setattr(training, "BUCKETS", 4)  # as in the other process
    data = prepare(DataConfig(num_train=90, num_validation=5, num_test=5, cache_dir=str(tmp_path)))
    want = train_language_model(data.sentences("train"), data.tokenizer, SHORT).log_prob(texts)
    monkeypatch.setattr(training, "BESIDE_STEPS", 1)
    monkeypatch.setattr(training, "train_language_model", None)
    with training.begin_language_model(data, SHORT, lambda line: None) as trained:
        np.testing.assert_allclose(trained().log_prob(texts), want, rtol=1e-5)
    monkeypatch.undo()

    monkeypatch.setattr(training, "BESIDE_STEPS", 1)
    monkeypatch.setattr(training.sys, "executable", "false")
    lines: list[str] = []
    other = dataclasses.replace(SHORT, seed=1)
    with training.begin_language_model(data, other, lines.append) as trained:
        assert trained().config == other
    assert "language model: the process beside this one failed" in lines


def test_the_process_ends_when_nobody_waits_for_it(tmp_path, monkeypatch):
    data = prepare(DataConfig(num_train=9, num_validation=5, num_test=5, cache_dir=str(tmp_path)))
    begun = []

    def sleeps(command, **options):
        begun.append(subprocess.Popen(["sleep", "1000"], **options))
        return begun[0]

    monkeypatch.setattr(training, "BESIDE_STEPS", 1)
    monkeypatch.setattr(training, "subprocess", SimpleNamespace(Popen=sleeps, DEVNULL=-3))

    def leave():
        with training.begin_language_model(data, SHORT, lambda line: None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert begun[0].returncode == -signal.SIGKILL
