"""Where prepared data lie, and how they are found again."""

import dataclasses

import pytest

from nvib_jax.data.config import DataConfig, relocated
from nvib_jax.data.prepare import prepare

from .corpora import make_text_config


@pytest.fixture
def text_config(tmp_path):
    return make_text_config(tmp_path)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    small = {"num_train": 9, "num_validation": 0, "num_test": 0}
    monkeypatch.setenv("NVIB_CACHE", str(tmp_path / "a"))
    config = DataConfig(**small)
    assert config.cache_dir == ""
    assert prepare(config).path.parent == tmp_path / "a"
    monkeypatch.setenv("NVIB_CACHE", str(tmp_path / "b"))
    assert prepare(config).path.parent == tmp_path / "b"
    named = dataclasses.replace(config, cache_dir=str(tmp_path / "c"))
    assert prepare(named).path.parent == tmp_path / "c"
    # A reader of the run has a cache of its own; without one it takes the trainer's, if it is here.
    assert prepare(relocated(named)).path.parent == tmp_path / "b"
    monkeypatch.delenv("NVIB_CACHE")
    assert relocated(named) == named
    assert relocated(dataclasses.replace(named, cache_dir="/nowhere/c")).cache_dir == ""
    monkeypatch.setenv("NVIB_CACHE", "gs://bucket/cache")
    with pytest.raises(NotImplementedError, match="'gs://bucket/cache', a URL; wanted a folder"):
        prepare(config)


def test_prepared_data_are_found_without_their_text(text_config, tmp_path):
    data = prepare(text_config)
    noted = dataclasses.replace(text_config, digest=data.digest)
    (tmp_path / "text.txt").rename(tmp_path / "gone")
    assert prepare(noted).path == data.path
    with pytest.raises(FileNotFoundError, match=r"text.txt' matches nothing$"):
        prepare(text_config)
    with pytest.raises(ValueError, match=r"names other data: vocab_size is 51 and theirs 50"):
        prepare(dataclasses.replace(noted, vocab_size=51))
    elsewhere = dataclasses.replace(noted, cache_dir=str(tmp_path / "other"))
    with pytest.raises(FileNotFoundError, match=r"nor are the run's prepared data there, .*other/"):
        prepare(elsewhere)
    # Nothing says where they lay.
    assert str(tmp_path / "cache") not in (data.path / "metadata.json").read_text()


def test_buckets_too_short_are_refused_by_prepare(text_config):
    longest = prepare(text_config).max_tokens
    fitting = dataclasses.replace(text_config, buckets=(4, longest))
    assert prepare(fitting).max_tokens == longest
    message = rf"longest sentence has {longest} tokens, .*\(4, {longest - 1}\); .*--data.buckets"
    with pytest.raises(ValueError, match=message):
        prepare(dataclasses.replace(text_config, buckets=(4, longest - 1)))
