"""What embeddings are worth: arithmetic by hand, published file formats, a model end to end."""

import numpy as np
import pytest
import tiny
from scipy import stats

from nvib_jax.data.grammar import default_grammar
from nvib_jax.evaluation import embeddings
from nvib_jax.evaluation.embeddings import area, cosines, embedding_scores, first_right, spearman
from nvib_jax.evaluation.sentence_scores import classification_scores, sts_scores
from nvib_jax.evaluation.sentence_tasks import (
    Classification,
    Similarity,
    read_classes,
    read_probing,
    read_sst,
    read_sts,
    read_sts_benchmark,
    read_trec,
)
from nvib_jax.evaluation.word_noise import replaced_word, word_noise
from nvib_jax.text_model import TextModel


@pytest.fixture(scope="module")
def model():
    return TextModel.load(tiny.trained()[0].train.run_dir)


# ---- arithmetic


def test_spearman_is_scipys():
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = rng.integers(0, 6, 40).astype(float), rng.normal(size=40)
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert np.isnan(spearman(np.ones(3), np.arange(3.0)))
    with pytest.raises(ValueError, match="a has 2 values and b 3; wanted as many"):
        spearman(np.ones(2), np.ones(3))


def test_cosines_ranks_and_areas():
    x = np.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(cosines(x, np.array([[4.0, 3.0]])), [[0.96], [0.0]])
    similar = np.array([[0.9, 0.1, 0.9], [0.2, 0.1, 0.3], [0.0, 0.0, 0.5]])
    assert first_right(similar) == pytest.approx((0.5 + 0 + 1) / 3)  # a tie is half a hit
    assert area(np.array([2.0, 2.0]), np.array([1.0, 2.0, 3.0])) == 0.5


def test_word_noise_replaces_and_drops_a_share():
    """Of 24,000 words; within 5 standard errors of a tenth: false alarm 6e-7 each."""
    rng = np.random.default_rng(0)
    text, words = " ".join(["the"] * 24), ["dog"]
    noisy = [word_noise(text, 0.1, rng, words).split() for _ in range(1000)]
    count = 24_000
    for found in (
        sum(w == "dog" for n in noisy for w in n),
        count - sum(map(len, noisy)),
    ):
        assert abs(found - count / 10) < 5 * np.sqrt(count * 0.09)
    assert word_noise(text, 0.0, rng, words) == text
    assert word_noise("the", 0.5, np.random.default_rng(1), words) in ("the", "dog")


def test_a_near_duplicate_is_a_sentence_with_one_other_word():
    rng = np.random.default_rng(0)
    for text in default_grammar().sentences(7, 40):
        new = replaced_word(text, rng)
        assert default_grammar().contains(new)
        pairs = list(zip(text.split(), new.split(), strict=True))
        assert sum(a != b for a, b in pairs) == 1
    with pytest.raises(ValueError, match="is not in the grammar's language"):
        replaced_word("the dog sees cat", rng)


# ---- files


def test_sts_benchmark(tmp_path):
    plain = 'main-news\theadlines\t2016\t0042\t4.5\tA "dog" runs.\tA dog ran.\n'
    (tmp_path / "sts-test.csv").write_text(plain + plain.replace("4.5", "0") + "\n")
    found = read_sts_benchmark(tmp_path / "sts-test.csv")
    assert found == Similarity("sts-test", ['A "dog" runs.'] * 2, ["A dog ran."] * 2, [4.5, 0.0])
    header = (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    )
    row = "0\tnews\tf\t2012\t1\tnone\tnone\tA cat.\tA dog.\t1.25\n"
    (tmp_path / "dev.tsv").write_text(header + row)
    assert read_sts_benchmark(tmp_path / "dev.tsv").scores == [1.25]
    (tmp_path / "bad.csv").write_text("a\tb\n")
    with pytest.raises(ValueError, match=r"bad.csv:1 has 2 columns; wanted at least 7"):
        read_sts_benchmark(tmp_path / "bad.csv")
    (tmp_path / "worse.csv").write_text(plain.replace("4.5", "much"))
    with pytest.raises(ValueError, match=r"worse.csv:1 has the score 'much'; wanted a number"):
        read_sts_benchmark(tmp_path / "worse.csv")


def test_years_of_sts(tmp_path):
    (tmp_path / "STS.input.MSRvid.txt").write_text("A cat.\tA dog.\nOne.\tTwo.\tmore\nx\ty\n")
    (tmp_path / "STS.gs.MSRvid.txt").write_text("3.5\n\n5\n")
    (found,) = read_sts(tmp_path)
    assert found == Similarity("MSRvid", ["A cat.", "x"], ["A dog.", "y"], [3.5, 5.0])
    (tmp_path / "STS.gs.MSRvid.txt").write_text("3.5\n")
    with pytest.raises(ValueError, match=r"has 3 lines and STS.gs.MSRvid.txt 1; wanted as many"):
        read_sts(tmp_path)
    (tmp_path / "STS.gs.MSRvid.txt").unlink()
    with pytest.raises(ValueError, match=r"has no STS.gs.MSRvid.txt beside it"):
        read_sts(tmp_path)
    with pytest.raises(ValueError, match=r"has no STS.input.\*.txt"):
        read_sts(tmp_path / "empty")


def test_senteval(tmp_path):
    probing = "tr\tNN\tone dog\nva\tNNS\ttwo dogs\nte\tNNS\tthree dogs\ntr\tNNS\tfour\n"
    (tmp_path / "subj_number.txt").write_text(probing)
    found = read_probing(tmp_path / "subj_number.txt")
    assert found.train == [("NN", "one dog"), ("NNS", "four")]
    assert found.test == [("NNS", "three dogs")]
    (tmp_path / "bad.txt").write_text("xx\ta\tb\n")
    with pytest.raises(ValueError, match=r"bad.txt:1 is 'xx\\ta\\tb'; wanted tr, va or te"):
        read_probing(tmp_path / "bad.txt")

    (tmp_path / "rt-polarity.pos").write_bytes("a caf\xe9 film\n\n".encode("latin-1"))
    (tmp_path / "rt-polarity.neg").write_text("dull\u2028film\n")
    files = {label: tmp_path / f"rt-polarity.{label}" for label in ("pos", "neg")}
    mr = read_classes("MR", files)
    assert mr == Classification("MR", [("pos", "a café film"), ("neg", "dull\u2028film")], [])

    (tmp_path / "train").write_text("good film\t1\nbad film\t0\n")
    (tmp_path / "test").write_text("fine\t1\n")
    assert read_sst(tmp_path / "train", tmp_path / "test").test == [("1", "fine")]
    with pytest.raises(ValueError, match=r"train:1 is 'good film.*wanted LABEL:more"):
        read_trec(tmp_path / "train", tmp_path / "test")

    (tmp_path / "train_5500.label").write_text("DESC:manner How ?\nHUM:ind Who ?\n")
    (tmp_path / "TREC_10.label").write_text("HUM:gr Which team ?\n")
    trec = read_trec(tmp_path / "train_5500.label", tmp_path / "TREC_10.label")
    assert trec.train == [("DESC", "How ?"), ("HUM", "Who ?")]
    assert trec.test == [("HUM", "Which team ?")]


# ---- with a model


def test_scores_of_a_model(model, monkeypatch):
    monkeypatch.setattr(embeddings, "LIKE", 40)
    found = embedding_scores(model, count=24)
    assert set(found["retrieval"]) == {"0.10", "0.20"}
    for scores in (*found["retrieval"].values(), found["near_duplicates"]):
        assert set(scores) == {"mean", "whitened", "kernel", "words"}
        assert all(0 <= value <= 1 for value in scores.values())
    assert found["retrieval"]["0.10"]["words"] > 0.8
    assert found["near_duplicates"]["words"] > 0.8
    assert [row["label"] for row in found["probes"]][:2] == ["number", "subject"]
    again = embedding_scores(model, count=24)
    assert again["retrieval"] == found["retrieval"]


@pytest.mark.filterwarnings("ignore::nvib_jax.text.as_typed.UnusualText")
def test_sts_of_a_model(model):
    """Scores that are the words' own cosines are ranked perfectly by the words."""
    texts = default_grammar().sentences(3, 12)
    near = [word_noise(t, 0.2, np.random.default_rng(i), ["dog"]) for i, t in enumerate(texts)]
    counts = embeddings.word_counts(texts, near)
    scores = np.diag(cosines(*counts)).tolist()
    whole = Similarity("one", [*texts, "the dog " * 30], [*near, "a cat"], [*scores, 5.0])
    rows = sts_scores(model, [whole, Similarity("two", texts, near, scores)], clean=False)
    assert [row["name"] for row in rows] == ["one", "two", "all"]
    assert [row["left_out"] for row in rows] == [1, 0, 1]
    assert [row["words"] for row in rows] == pytest.approx([1.0] * 3)
    assert all(-1 <= row[name] <= 1 for row in rows for name in ("mean", "whitened", "kernel"))


def test_classes_of_a_model(model):
    """The number of words can be told from an embedding; labels at random cannot be."""
    texts = default_grammar().sentences(4, 200)
    labelled = [("long" if len(t.split()) > 8 else "short", t) for t in texts]
    cross = classification_scores(model, Classification("by length", labelled, []), clean=False)
    assert cross["texts"] == 200
    assert cross["accuracy"] > cross["majority"]
    split = Classification("by length", labelled[:150], [*labelled[150:], ("long", "dog " * 30)])
    found = classification_scores(model, split, how="whitened", clean=False)
    assert (found["texts"], found["left_out"], found["classes"]) == (50, 1, 2)
    assert 0 <= found["accuracy"] <= 1
