"""What goes wrong while preparing: half a cache is never read, and none is left behind."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nvib_jax.data.cache_folder import building_name
from nvib_jax.data.config import CleanConfig
from nvib_jax.data.prepare import prepare
from nvib_jax.data.prepared import PreparedData

from .corpora import LINES, grammar_config, make_text_config


@pytest.fixture
def text_config(tmp_path):
    return make_text_config(tmp_path)


def test_nothing_left_after_cleaning(tmp_path, text_config):
    file = tmp_path / "numbers.txt"
    file.write_text("!!!\n???\n")
    with pytest.raises(ValueError, match=r"no sentence of data.train is left .* 0 sentences"):
        prepare(dataclasses.replace(text_config, train=(str(file),)))
    clean = CleanConfig(min_tokens=48)
    message = rf"no sentence of data.train is left .* {len(LINES)} .* none of 48 to 49 tokens"
    with pytest.raises(ValueError, match=message):
        prepare(dataclasses.replace(text_config, clean=clean))
    assert not list(Path(text_config.cache_dir).iterdir())


def test_unreadable_text_leaves_nothing(tmp_path, text_config):
    file = tmp_path / "latin.txt"
    file.write_bytes(b"one fine line.\n" * 500 + b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"latin.txt is not UTF-8: byte 0xe9 at offset 7503"):
        prepare(dataclasses.replace(text_config, validation=(str(file),)))
    assert not list(Path(text_config.cache_dir).iterdir())


class Interrupted(Exception):
    pass


def interrupt_at(stage):
    def progress(line):
        if stage in line:
            raise Interrupted(line)

    return progress


@pytest.mark.parametrize("stage", ["after cleaning", "vocabulary", "test: 40 sentences, "])
def test_an_exception_leaves_nothing(tmp_path, stage):
    with pytest.raises(Interrupted):
        prepare(grammar_config(tmp_path), progress=interrupt_at(stage))
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from nvib_jax.data import DataConfig, prepare

def progress(line):
    if line.startswith("validation: 50 sentences, "):
        os.kill(os.getpid(), signal.SIGKILL)

prepare(DataConfig(cache_dir=sys.argv[1], num_train=400, num_validation=50, num_test=40),
        progress=progress)
"""


def test_a_killed_run_leaves_no_cache_and_the_next_cleans_up(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert (left / "tokenizer.model").exists()
    with pytest.raises(FileNotFoundError, match=r"no prepared data at .* has no metadata.json"):
        PreparedData.load(left)
    data = prepare(grammar_config(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [data.path.name]
    assert len(data.sentences("train")) == 400


def test_two_at_once(tmp_path):
    """While one run is about to finish, another prepares the same: both get the cache."""
    config = grammar_config(tmp_path)
    inner = []

    def progress(line):
        if line.startswith("test: 40 sentences, "):
            inner.append(prepare(config))

    data = prepare(config, progress=progress)
    assert data.path == inner[0].path
    assert [path.name for path in tmp_path.iterdir()] == [data.path.name]


def test_a_running_process_keeps_its_folder(tmp_path):
    mine = tmp_path / building_name("0123")
    mine.mkdir(parents=True)
    old = tmp_path / ".building-0123-abcd-otherhost-1"
    old.mkdir()
    other = tmp_path / ".building-4567-abcd-otherhost-1"
    other.mkdir()
    os.utime(old, (0, 0))
    prepare(grammar_config(tmp_path))
    assert mine.exists()
    assert other.exists()
    assert not old.exists()


@pytest.mark.parametrize("name", ["tokenizer.model", "lengths_test.npy", "train-00000-of-00001"])
def test_damage_is_named_and_mended(tmp_path, name):
    config = grammar_config(tmp_path)
    data = prepare(config)
    (file,) = data.path.glob(f"{name}*")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"damaged: {name}.* has \d+ bytes, expected \d+"):
        PreparedData.load(data.path)
    assert len(prepare(config).sentences("test")) == 40
    file.unlink()
    with pytest.raises(ValueError, match=rf"damaged: {name}.* is missing"):
        PreparedData.load(data.path)


def test_other_versions_are_refused(tmp_path):
    data = prepare(grammar_config(tmp_path))
    metadata = json.loads((data.path / "metadata.json").read_text())
    (data.path / "metadata.json").write_text(json.dumps(metadata | {"format_version": 99}))
    with pytest.raises(ValueError, match="has format version 99, expected 1"):
        PreparedData.load(data.path)
    (data.path / "metadata.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON, the cache is damaged"):
        PreparedData.load(data.path)
