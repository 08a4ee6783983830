"""Data sets of the Hugging Face Hub, for whose packages small ones stand in here."""

import dataclasses
import json
import sys
from types import SimpleNamespace

import pytest

from nvib_jax.data import hf_source
from nvib_jax.data.config import CleanConfig, DataConfig
from nvib_jax.data.prepare import cache_hash, prepare
from nvib_jax.data.sources import has_split, read_sentences, resolve_layout, text_bytes

COMMITS = {None: "a" * 40, "v1": "b" * 40}
SPLITS = {"train": 60, "test": 20}


def review(split, i):
    return f"Review {i} of the {split} set. The café was quite good, said person {i * 7}."


@pytest.fixture(autouse=True)
def the_hub(monkeypatch):
    """A Hub with one data set; what it was asked."""
    asked = []

    class Api:
        def dataset_info(self, name, *, revision):
            asked.append(("info", name, revision))
            if name != "me/reviews":
                raise OSError(f"404  Client Error\nfor {name}")
            return SimpleNamespace(sha=COMMITS[revision])

    def split_names(path, config_name, *, revision):
        asked.append(("splits", path, config_name, revision))
        if config_name is None:
            raise ValueError("Config name is missing.\nPlease pick one among: ['de', 'en']")
        return list(SPLITS)

    def load(path, name, *, split, revision, streaming):
        assert streaming
        asked.append(("load", path, name, split, revision))
        for i in range(SPLITS[split]):
            yield {"text": review(split, i), "title": f"t{i}", "stars": i % 5}

    module = SimpleNamespace(load_dataset=load, get_dataset_split_names=split_names)
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    for cached in (hf_source._place, hf_source._splits):
        cached.cache_clear()
    yield asked
    for cached in (hf_source._place, hf_source._splits):
        cached.cache_clear()


@pytest.fixture
def config(tmp_path):
    return DataConfig(
        source="hf:me/reviews:en",
        cache_dir=str(tmp_path),
        vocab_size=120,
        clean=CleanConfig(min_tokens=1),
    )


def test_every_example_is_read_once_of_one_commit(config, the_hub):
    assert list(read_sentences(config, "train")) == [review("train", i) for i in range(60)]
    assert the_hub == [
        ("info", "me/reviews", None),
        ("splits", "me/reviews", "en", COMMITS[None]),
        ("load", "me/reviews", "en", "train", COMMITS[None]),
    ]


def test_splits_default_to_their_names(config):
    assert [has_split(config, split) for split in ("train", "validation", "test")] == [
        True, False, True,
    ]  # fmt: skip
    named = dataclasses.replace(config, validation=("test", "train"))
    assert len(list(read_sentences(named, "validation"))) == 80
    with pytest.raises(ValueError, match=r"no split 'dev' .data.test., only .'test', 'train'."):
        list(read_sentences(dataclasses.replace(config, test=("dev",)), "test"))


def test_another_feature(config):
    named = dataclasses.replace(config, text_feature="title")
    assert list(read_sentences(named, "test"))[:2] == ["t0", "t1"]
    for feature, message in [("body", "no feature 'body'"), ("stars", "no text in 'stars'")]:
        wrong = dataclasses.replace(config, text_feature=feature)
        said = rf"{message} .data.text_feature.*are \['text', 'title'\]"
        with pytest.raises(ValueError, match=said):
            list(read_sentences(wrong, "train"))


def test_prepared_end_to_end_and_then_without_the_hub(config, monkeypatch):
    data = prepare(config, workers=1)
    assert sorted(data.lengths) == ["test", "train"]
    assert resolve_layout(config) == "running"
    assert len(data.lengths["train"]) == 120  # two sentences each
    expected = {"the café was quite good, said person 7.", "review 1 of the train set."}
    assert expected <= set(data.sentences("train"))
    assert (
        json.loads((data.path / "metadata.json").read_text())["config"]["source"] == config.source
    )
    monkeypatch.setitem(sys.modules, "datasets", None)
    again = prepare(dataclasses.replace(config, digest=data.digest))
    assert again.path == data.path
    assert text_bytes(config) > 1 << 30


def test_the_hash_follows_what_is_read(config):
    before = cache_hash(config)
    for source in ("hf:me/reviews:de", "hf:me/reviews:en@v1"):
        assert cache_hash(dataclasses.replace(config, source=source)) != before
    assert cache_hash(dataclasses.replace(config, train=("test",))) != before
    assert cache_hash(dataclasses.replace(config, text_feature="title")) != before
    moved = dict(COMMITS)
    try:
        COMMITS[None] = "c" * 40  # the main branch has moved on
        hf_source._place.cache_clear()
        assert cache_hash(config) != before
    finally:
        COMMITS.update(moved)


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        (
            "hf:me/none",
            FileNotFoundError,
            "^hf:me/none cannot be read: 404 Client Error for me/none$",
        ),
        ("hf:me/reviews", ValueError, r"^hf:me/reviews: Config name is missing. Please pick one"),
        ("hf:a/b/c", ValueError, r"is 'hf:a/b/c'; wanted hf:USER/NAME, hf:USER/NAME:CONFIG or"),
        ("hf:../a", ValueError, r"is 'hf:../a'; wanted hf:USER/NAME"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_line(config, source, error, said):
    with pytest.raises(error, match=said):
        list(read_sentences(dataclasses.replace(config, source=source), "test"))


def test_a_stream_that_breaks_is_said(config, monkeypatch):
    def broken(*_, **__):
        yield {"text": review("train", 0)}
        raise LookupError("the peer\nwent away")

    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", broken)
    stream = read_sentences(config, "train")
    assert next(stream) == review("train", 0)
    with pytest.raises(FileNotFoundError, match=r"reviews:en cannot be read: the peer went away$"):
        next(stream)


def test_without_the_package_the_cure_is_named(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"needs the package datasets; pip install 'nvib-jax\[d"):
        list(read_sentences(config, "train"))
