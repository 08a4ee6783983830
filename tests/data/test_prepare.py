"""The cache: what is in it, what its name depends on, and WikiText-2."""

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nvib_jax.data.config import CleanConfig, DataConfig
from nvib_jax.data.grammar import default_grammar
from nvib_jax.data.prepare import cache_hash, prepare

from .corpora import LINES, grammar_config, make_text_config

# The package has the function under the name of the module.
prepare_module = importlib.import_module("nvib_jax.data.prepare")

WIKITEXT = Path(__file__).parents[3] / "shared" / "data" / "wikitext2"


@pytest.fixture
def text_config(tmp_path):
    return make_text_config(tmp_path)


# ---- what is in it


def test_the_grammar_prepared(tmp_path):
    config = grammar_config(tmp_path)
    data = prepare(config)
    assert data.path == tmp_path / cache_hash(config)
    assert {split: len(lengths) for split, lengths in data.lengths.items()} == {
        "train": 400,
        "validation": 50,
        "test": 40,
    }
    assert data.sentences("train") == default_grammar().sentences((0, 0), 400)
    assert data.sentences("test", 3) == default_grammar().sentences((0, 2), 3)
    # Words that the small training part lacks are pieces all the same.
    assert data.vocab_size == data.tokenizer.vocab_size == len(default_grammar().words) + 4
    for split, lengths in data.lengths.items():
        tokens = data.tokens(split, range(len(lengths)))
        assert [len(ids) for ids in tokens] == lengths.tolist()
        assert all(ids.dtype == np.int32 and ids.min() > 3 for ids in tokens)


def test_random_access(tmp_path):
    data = prepare(grammar_config(tmp_path))
    every = data.tokens("train", range(400))
    for picked in ([7, 399, 0, 7], np.array([3, 2]), []):
        assert list(map(list, data.tokens("train", picked))) == [list(every[i]) for i in picked]
    with pytest.raises(IndexError, match="split 'test' has sentences 0 to 39, got 40"):
        data.tokens("test", [1, 40])
    with pytest.raises(ValueError, match=r"no split 'dev', only \['test', 'train', 'validation'\]"):
        data.tokens("dev", [0])


def test_length_distribution(tmp_path):
    data = prepare(grammar_config(tmp_path))
    distribution = data.length_distribution
    assert distribution.shape == (data.max_tokens + 1,)
    assert distribution.sum() == pytest.approx(1)
    assert distribution[9] == np.mean(data.lengths["train"] == 9)
    assert distribution[:4].sum() == 0


def test_metadata_say_how_it_came_about(text_config):
    data = prepare(text_config)
    metadata = json.loads((data.path / "metadata.json").read_text())
    assert metadata["source"] == "text"
    assert metadata["layout"] == "lines"
    assert metadata["clean"]["min_tokens"] == 3
    assert metadata["vocab_size"] == data.vocab_size
    assert metadata["splits"]["train"]["sentences"] == len(LINES)
    assert metadata["splits"]["train"]["tokens"] == data.lengths["train"].sum()
    assert metadata["config"]["vocab_size"] == 50
    assert set(metadata["files"]) == {p.name for p in data.path.iterdir()} - {"metadata.json"}


def test_text_is_kept_in_order_and_shards(text_config, monkeypatch):
    monkeypatch.setattr(prepare_module, "_SENTENCES_PER_SHARD", 7)
    monkeypatch.setattr(prepare_module, "_ENCODED_AT_ONCE", 4)
    data = prepare(text_config)
    assert len(list(data.path.glob("train-*-of-00003.array_record"))) == 3
    assert data.sentences("train") == LINES
    assert data.tokenizer.decode(data.tokens("train", [8])[0]) == LINES[8]
    assert sorted(data.lengths) == ["train"]


def test_length_limits_are_in_tokens(text_config):
    lengths = prepare(text_config).lengths["train"]
    low, high = int(np.median(lengths)), int(lengths.max()) - 1
    clean = dataclasses.replace(text_config.clean, min_tokens=low, max_tokens=high)
    limited = prepare(dataclasses.replace(text_config, clean=clean)).lengths["train"]
    assert sorted(limited) == sorted(n for n in lengths if low <= n <= high)
    assert 0 < len(limited) < len(lengths)


def test_large_vocabularies_need_wider_records():
    class Wide:
        vocab_size = 65_537

    assert prepare_module._dtype(Wide()) == "<i4"
    Wide.vocab_size = 65_536
    assert prepare_module._dtype(Wide()) == "<u2"


def test_the_tokenizer_sees_a_sample_spread_over_the_text(text_config):
    config = dataclasses.replace(text_config, tokenizer_sentences=4)
    data = prepare(config)
    assert data.tokenizer != prepare(text_config).tokenizer
    assert len(data.lengths["train"]) == len(LINES)


# ---- its name

BATCHING = {"batch_size": 8, "buckets": (64,), "cache_dir": "elsewhere"}
ELSEWHERE = {"validation": ("text.txt",), "test": ("text.txt",), "train": ("text.txt", "more.txt")}
CHANGES = {
    "text": {
        **ELSEWHERE,
        "layout": "running",
        "vocab_size": 51,
        "tokenizer_sentences": 9,
        "clean": CleanConfig(min_tokens=4),
    },
    "grammar": {
        "vocab_size": 51,
        "tokenizer_sentences": 9,
        "num_train": 9,
        "num_validation": 9,
        "num_test": 9,
        "seed": 9,
    },
}


@pytest.mark.parametrize(
    ("source", "name"), [(source, name) for source, names in CHANGES.items() for name in names]
)
def test_every_field_that_matters_changes_the_hash(
    source, name, text_config, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("more.txt").write_text("more")
    config = text_config if source == "text" else DataConfig()
    value = CHANGES[source][name]
    assert cache_hash(dataclasses.replace(config, **{name: value})) != cache_hash(config)


def test_fields_of_batching_and_file_names_do_not(text_config, tmp_path):
    before = cache_hash(text_config)
    assert cache_hash(dataclasses.replace(text_config, **BATCHING)) == before
    copy = tmp_path / "copy.txt"
    copy.write_text("\n".join(LINES))
    assert cache_hash(dataclasses.replace(text_config, train=(str(copy),))) == before
    copy.write_text("\n".join(LINES) + "!")
    assert cache_hash(dataclasses.replace(text_config, train=(str(copy),))) != before


def test_every_field_is_read():
    """By the hash, by the sources of TFDS (their own tests), or by batching."""
    tested = {*BATCHING, *CHANGES["text"], *CHANGES["grammar"]}
    fields = {field.name for field in dataclasses.fields(DataConfig)}
    assert fields - tested == {"source", "text_feature", "tfds_dir"}


def test_prepared_once(text_config, monkeypatch):
    first = prepare(text_config)
    monkeypatch.setattr(prepare_module, "_build", None)
    again = prepare(text_config)
    assert again.path == first.path
    assert again.tokenizer == first.tokenizer


def test_preparing_twice_gives_the_same_bytes(text_config, tmp_path):
    first = prepare(text_config)
    second = prepare(dataclasses.replace(text_config, cache_dir=str(tmp_path / "second")))
    for file in first.path.iterdir():
        if file.name != "metadata.json":
            assert file.read_bytes() == (second.path / file.name).read_bytes(), file.name


def test_importing_the_package_is_light():
    code = "import nvib_jax.data, nvib_jax.data.config, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"tensorflow", "tensorflow_datasets", "sentencepiece", "lark", "grain", "array_record"}
    assert not heavy & set(done.stdout.split())


# ---- WikiText-2, where it is present


@pytest.mark.skipif(not WIKITEXT.is_dir(), reason=f"WikiText-2 is not at {WIKITEXT}")
def test_wikitext2(tmp_path):
    valid, test = str(WIKITEXT / "valid.txt"), str(WIKITEXT / "test.txt")
    lines = []
    config = DataConfig(
        source="text", train=(valid,), test=(test,), vocab_size=4000, cache_dir=str(tmp_path)
    )
    data = prepare(config, progress=lines.append)
    assert data.metadata["layout"] == "wikitext"
    # The published counts, after limits on length in BERT's shorter tokens, are 7,697 and 9,084.
    counts = [int(line.split()[1].replace(",", "")) for line in lines[:2]]
    assert 7697 < counts[0] < 1.05 * 7697
    assert 9084 < counts[1] < 1.05 * 9084
    assert 0.8 * 7697 < len(data.lengths["train"]) < 7697
    assert data.lengths["train"].min() == 6
    assert data.lengths["train"].max() == 49
    characters = set("".join(data.sentences("train")))
    assert characters <= set("abcdefghijklmnopqrstuvwxyz0123456789 ,'<>.")
