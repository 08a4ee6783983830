"""Batches as a function of (seed, step), of which a process reads some rows."""

import hashlib
import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvib_jax.data.batches import Batches, choose_buckets
from nvib_jax.data.config import DataConfig
from nvib_jax.data.prepare import prepare
from nvib_jax.data.token_file import TokenFile


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return prepare(DataConfig(cache_dir=str(folder), num_train=501, num_validation=37, num_test=9))


def make(data, split="train", **options):
    return Batches(data, split, **({"batch_size": 16, "seed": 5} | options))


def same(a, b):
    return all(np.array_equal(a[key], b[key]) for key in ("tokens", "mask", "index"))


def test_shapes_types_and_masks(data):
    batches = make(data)
    assert len(batches.buckets) == 4
    for step in range(len(batches)):
        batch = batches[step]
        rows, length = batch["tokens"].shape
        assert rows == 16
        assert length in batches.buckets
        assert (batch["tokens"].dtype, batch["mask"].dtype, batch["index"].dtype) == (
            np.int32,
            np.bool_,
            np.int32,
        )
        assert ((batch["tokens"] == 0) == ~batch["mask"]).all()
        shorter = max((b for b in batches.buckets if b < length), default=0)
        present = data.lengths["train"][batch["index"][batch["index"] >= 0]]
        assert (shorter < present).all()
        # Valid tokens come first, and as many as the sentence has.
        lengths = np.where(batch["index"] < 0, 0, data.lengths["train"][batch["index"]])
        assert np.array_equal(batch["mask"], np.arange(length) < lengths[:, None])


def test_rows_are_the_sentences_that_they_name(data):
    batch = make(data)[3]
    texts = data.sentences("train")
    for tokens, index in zip(batch["tokens"], batch["index"], strict=True):
        assert data.tokenizer.decode(tokens) == (texts[index] if index >= 0 else "")


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_sentence_once_an_epoch(data, split, shuffle):
    batches = make(data, split, shuffle=shuffle)
    size = len(data.lengths[split])
    for epoch in (0, 1, 7):
        steps = range(epoch * len(batches), (epoch + 1) * len(batches))
        index = np.concatenate([batches[step]["index"] for step in steps])
        assert sorted(index[index >= 0]) == list(range(size))
    # Filler rows only where a bucket runs out.
    assert len(batches) <= size // 16 + len(batches.buckets)


def test_buckets_pad_less_than_one_shape(data):
    padded = {
        count: sum(b["mask"].size for b in map(batches.__getitem__, range(len(batches))))
        for count in (1, 4)
        for batches in [make(data, buckets=choose_buckets(data.lengths["train"], count))]
    }
    assert padded[4] < 0.65 * padded[1]


# SHA-256 of batches as 0.1.0 made them, one sentence at a time out of array_record.
BY_0_1_0 = {
    ("train", True): "38b26816f1ac5e71",
    ("train", False): "df4763f158572c3a",
    ("validation", True): "2e1aee4af7c3a827",
    ("validation", False): "4574ce8d02c27498",
    ("test", True): "f3d893a7eca6b5cb",
    ("test", False): "ea052cdca33dfaa5",
}


def digest(batches, count):
    found = hashlib.sha256()
    for step in range(count):
        for key in ("tokens", "mask", "index"):
            array = batches[step][key]
            found.update(str((array.shape, array.dtype)).encode() + array.tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize(("split", "shuffle"), BY_0_1_0)
def test_batches_are_those_of_0_1_0(data, split, shuffle):
    batches = make(data, split, shuffle=shuffle)
    assert digest(batches, 2 * len(batches) + 3) == BY_0_1_0[split, shuffle]


def test_rows_in_given_buckets_are_those_of_0_1_0(data):
    assert data.fingerprint == 529066900
    assert digest(make(data, buckets=(8, 14, 24), rows=range(4, 8)), 50) == "cd6d438340bc2126"


def test_a_batch_reads_no_sentence_by_itself(data, monkeypatch):
    """A loop over rows, or a thread for each batch, is what starved the accelerator."""
    monkeypatch.setattr(TokenFile, "rows", None)
    assert make(data)[0]["mask"].any()


def test_seed_and_epoch_name_the_order(data):
    batches, n = make(data), len(make(data))
    assert same(batches[2], make(data)[2])
    assert not same(batches[2], make(data, seed=6)[2])
    assert not same(batches[2], batches[2 + n])
    still = make(data, shuffle=False)
    assert same(still[2], still[2 + n])
    assert same(still[2], make(data, shuffle=False, seed=6)[2])


def test_access_in_any_order(data):
    n = len(make(data))
    forward = [make(data)[step] for step in range(2 * n + 3)]
    batches = make(data)
    for step in np.random.default_rng(0).permutation(2 * n + 3):
        assert same(batches[step], forward[step])


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_iteration_is_indexing_from_any_step(data, prefetch):
    batches = make(data)
    n = len(batches)
    for start in (0, n - 2):
        iterator = make(data).iterate(start, prefetch=prefetch)
        for step, batch in zip(range(start, start + n + 3), iterator, strict=False):
            assert same(batch, batches[step])


def test_threads_share_batches(data):
    batches, plain = make(data), make(data)
    n = len(batches)
    wrong = []

    def read(steps):
        wrong.extend(step for step in steps if not same(batches[step], plain_batches[step]))

    plain_batches = [plain[step] for step in range(2 * n)]
    threads = [threading.Thread(target=read, args=(range(p, 2 * n, 3),)) for p in range(3)]
    threads += [threading.Thread(target=read, args=(range(2 * n - 1, 0, -2),))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("processes", [2, 4, 16])
def test_the_global_batch_does_not_depend_on_processes(data, processes):
    whole = make(data)
    shares = np.arange(whole.batch_size).reshape(processes, -1)
    parts = [make(data, rows=rows) for rows in shares]
    for step in (0, 1, len(whole) - 1, len(whole)):
        shards = [part[step] for part in parts]
        joined = {key: np.concatenate([s[key] for s in shards]) for key in shards[0]}
        assert same(joined, whole[step])
        assert parts[0].sentences(step) == [i for i in whole[step]["index"] if i >= 0]


# ---- buckets


def brute_force(lengths, count):
    values = sorted(set(lengths))
    inner = itertools.chain(*(itertools.combinations(values[:-1], k) for k in range(count)))
    return min(padding(lengths, (*chosen, values[-1])) for chosen in inner)


def padding(lengths, buckets):
    return sum(min(b for b in buckets if b >= length) for length in lengths)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(1, 5))
def test_chosen_buckets_pad_least(lengths, count):
    buckets = choose_buckets(np.array(lengths), count)
    assert list(buckets) == sorted(set(buckets))
    assert len(buckets) <= count
    assert buckets[-1] == max(lengths)
    assert padding(lengths, buckets) == brute_force(lengths, count)


def test_given_buckets_are_kept(data):
    batches = make(data, buckets=(8, 32))
    widths = {batches[step]["tokens"].shape[1] for step in range(len(batches))}
    assert widths == {8, 32}


# ---- what is asked wrongly


def test_errors(data):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        make(data, batch_size=0)
    with pytest.raises(ValueError, match=r"rows must be of \[0, 16\), got \[15, 16\]"):
        make(data, rows=[15, 16])
    longest = data.lengths["train"].max()
    message = rf"longest sentence of 'train' has {longest} tokens, .* \(4, 8\); .*--data.buckets"
    with pytest.raises(ValueError, match=message):
        make(data, buckets=(4, 8))
    with pytest.raises(ValueError, match="no split 'dev'"):
        make(data, "dev")
    with pytest.raises(IndexError, match="step must be at least 0, got -1"):
        make(data)[-1]
    with pytest.raises(ValueError, match="need count >= 1 and some lengths, got 0 and 1"):
        choose_buckets(np.array([3]), 0)
