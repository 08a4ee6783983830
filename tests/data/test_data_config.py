"""Presets and other people's text: what follows from one to the other."""

import dataclasses
from pathlib import Path

import pytest

from nvib_jax.cli.launch import Prepare, _read
from nvib_jax.data.config import (
    PUBLISHED_CHARACTERS,
    CleanConfig,
    DataConfig,
    cache_root,
    fit_to_text,
)
from nvib_jax.presets import from_json, load_preset, to_json

CONFIGS = Path(__file__).parents[2] / "configs"


def read(*arguments):
    return _read(Prepare, [str(CONFIGS / "quickstart.py"), *arguments])[0].config.data


def test_buckets_of_a_preset_are_for_its_own_text():
    assert read().buckets == (8, 14, 24)
    assert read("--data.num-train", "99", "--data.seed", "3").buckets == (8, 14, 24)
    own = ("--data.source", "text", "--data.train", "mine.txt")
    assert read(*own).buckets == ()
    assert read(*own, "--data.buckets", "16", "49").buckets == (16, 49)
    wikitext = load_preset(CONFIGS / "wikitext2_cpu.py").data
    moved = dataclasses.replace(wikitext, train=("elsewhere/train.txt",))
    assert fit_to_text(moved, wikitext).buckets == wikitext.buckets
    longer = dataclasses.replace(wikitext, clean=CleanConfig(max_tokens=60))
    assert fit_to_text(longer, wikitext).buckets == ()


def test_a_digest_does_not_follow_to_another_text():
    preset = DataConfig(source="text", train=("a.txt",), digest="0123456789abcdef")
    assert fit_to_text(dataclasses.replace(preset, batch_size=9), preset).digest == preset.digest
    other = dataclasses.replace(preset, train=("b.txt",))
    assert fit_to_text(other, preset).digest == ""
    named = dataclasses.replace(other, digest="f" * 16)
    assert fit_to_text(named, preset).digest == "f" * 16


@pytest.mark.parametrize("name", ["wikitext2", "wikitext2_cpu", "base", "pod"])
def test_presets_of_the_papers_keep_the_papers_characters(name):
    assert load_preset(CONFIGS / f"{name}.py").data.clean.keep_characters == PUBLISHED_CHARACTERS


def test_no_config_says_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("NVIB_CACHE", str(tmp_path))
    config = load_preset(CONFIGS / "quickstart.py")
    assert str(tmp_path) not in to_json(config)
    assert cache_root(config.data) == tmp_path
    monkeypatch.delenv("NVIB_CACHE")
    assert cache_root(config.data) == Path("~/.cache/nvib_jax").expanduser()


def test_a_config_of_0_1_0_is_read_as_it_was_meant():
    text = """{"data": {"source": "text", "train": ["a.txt"], "cache_dir": "/home/a/cache",
        "clean": {"keep_characters": "a-zA-Z0-9 ,'<>.", "min_tokens": 6}}}"""
    data = from_json(text).data
    assert data.cache_dir == "/home/a/cache"
    assert data.clean.keep_characters == PUBLISHED_CHARACTERS
    assert data.digest == ""
