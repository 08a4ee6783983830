"""The cache: what is in it, what its name depends on, and WikiText-2."""

import dataclasses
import importlib
import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvib_jax.data import build
from nvib_jax.data.config import PUBLISHED_CHARACTERS, CleanConfig, DataConfig
from nvib_jax.data.grammar import default_grammar
from nvib_jax.data.prepare import cache_hash, prepare

from .corpora import LINES, grammar_config, make_text_config

# The package has the function under the name of the module.
prepare_module: Any = importlib.import_module("nvib_jax.data.prepare")

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
    assert metadata["config"]["source"] == "text"
    assert metadata["layout"] == "lines"
    assert metadata["config"]["clean"]["min_tokens"] == 3
    assert metadata["hash"] == data.digest == data.path.name
    assert metadata["vocab_size"] == data.vocab_size
    assert metadata["splits"]["train"]["sentences"] == len(LINES)
    assert metadata["splits"]["train"]["tokens"] == data.lengths["train"].sum()
    assert metadata["config"]["vocab_size"] == 50
    assert set(metadata["files"]) == {p.name for p in data.path.iterdir()} - {"metadata.json"}


@pytest.mark.parametrize("workers", [1, 3])
def test_text_is_kept_in_order_by_any_number_of_processes(text_config, monkeypatch, workers):
    whole = prepare(text_config)
    files = {file.name: file.read_bytes() for file in whole.path.iterdir()}
    monkeypatch.setattr(build, "_BLOCK", 60)
    other = dataclasses.replace(text_config, cache_dir=f"{text_config.cache_dir}-{workers}")
    data = prepare(other, workers=workers)
    assert {file.name: file.read_bytes() for file in data.path.iterdir()} == files
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


def test_the_tokenizer_sees_a_sample_spread_over_the_text(text_config):
    config = dataclasses.replace(text_config, tokenizer_sentences=4)
    data = prepare(config)
    assert data.tokenizer != prepare(text_config).tokenizer
    assert len(data.lengths["train"]) == len(LINES)


# ---- its name

BATCHING = {"batch_size": 8, "buckets": (64,), "cache_dir": "elsewhere", "digest": "0" * 16}
ELSEWHERE = {"validation": ("text.txt",), "test": ("text.txt",), "train": ("text.txt", "more.txt")}
CHANGES = {
    "text": {
        **ELSEWHERE,
        "layout": "running",
        "vocab_size": 51,
        "pieces": "bytes",
        "tokenizer_sentences": 9,
        "clean": CleanConfig(min_tokens=4),
    },
    "grammar": {
        "vocab_size": 51,
        "pieces": "characters",
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
    monkeypatch.setattr(prepare_module, "build", None)
    again = prepare(text_config)
    assert again.path == first.path
    assert again.tokenizer == first.tokenizer


def test_preparing_twice_gives_the_same_bytes(text_config, tmp_path):
    first = prepare(text_config)
    second = prepare(dataclasses.replace(text_config, cache_dir=str(tmp_path / "second")))
    for file in first.path.iterdir():
        if file.name != "metadata.json":
            assert file.read_bytes() == (second.path / file.name).read_bytes(), file.name


def test_what_is_dropped_is_said(tmp_path):
    file = tmp_path / "other.txt"
    lines = [*LINES, "Ünd?", "!!!", "Die Ärztin zählt die Tür und " + "das Auto " * 30]
    file.write_text("\n".join(lines))
    clean = CleanConfig(keep_characters=PUBLISHED_CHARACTERS, min_tokens=3, max_tokens=40)
    config = make_text_config(tmp_path)
    config = dataclasses.replace(config, train=(str(file),), clean=clean, layout="lines")
    said: list[str] = []
    data = prepare(config, progress=said.append)
    (characters,) = (line for line in said if "of the characters dropped" in line)
    assert "letters among them 4, as in 'Ünd?'" in characters
    (sentences,) = (line for line in said if "of the sentences dropped" in line)
    assert sentences.startswith(f"train: {100 * 3 / len(lines):.1f} % of the sentences dropped: ")
    assert "1 empty after cleaning" in sentences
    assert "1 shorter than 3 tokens (data.clean.min_tokens), as 'nd'" in sentences
    assert "1 longer than 40 tokens (data.clean.max_tokens), as 'die rztin zhlt" in sentences
    dropped = data.metadata["splits"]["train"]["dropped"]
    assert (dropped["empty"], dropped["short"], dropped["long"]) == (1, 1, 1)
    assert dropped["lost"]["!"] == 3


def test_a_line_without_end_marks_is_prepared(tmp_path):
    """SentencePiece is quadratic in a sentence, and ends in an error above a mebibyte."""
    file = tmp_path / "other.txt"
    file.write_text("\n".join([*LINES, "word " * 300_000]))
    config = dataclasses.replace(make_text_config(tmp_path), train=(str(file),))
    assert prepare(config).metadata["splits"]["train"]["dropped"]["long"] == 1
    file.write_text("word " * 300_000)
    with pytest.raises(ValueError, match=r"no sentence of data.train .* 1 sentences .*data.layout"):
        prepare(config)


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
        source="text",
        train=(valid,),
        test=(test,),
        vocab_size=4000,
        clean=CleanConfig(keep_characters=PUBLISHED_CHARACTERS),
        cache_dir=str(tmp_path),
    )
    data = prepare(config, progress=lines.append)
    assert data.metadata["layout"] == "wikitext"
    # The published counts, after limits on length in BERT's shorter tokens, are 7,697 and 9,084.
    after = [line for line in lines if line.endswith("after cleaning")]
    counts = [int(line.split()[1].replace(",", "")) for line in after]
    assert 7697 < counts[0] < 1.05 * 7697
    assert 9084 < counts[1] < 1.05 * 9084
    assert 0.8 * 7697 < len(data.lengths["train"]) < 7697
    assert data.lengths["train"].min() == 6
    assert data.lengths["train"].max() == 49
    # What 0.1.0 made of these files, so that its figures hold.
    assert data.fingerprint == 459046825
    ids = np.concatenate(data.tokens("train", range(len(data.lengths["train"]))))
    assert zlib.crc32(ids.astype("<u2").tobytes()) == 4252693639
    characters = set("".join(data.sentences("train")))
    assert characters <= set("abcdefghijklmnopqrstuvwxyz0123456789 ,'<>.")
