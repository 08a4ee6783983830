"""What goes wrong while preparing: half a cache is never read, and none is left behind."""

import dataclasses
import errno
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from nvib_jax.data import cache_folder, prepared, token_file
from nvib_jax.data.cache_folder import building_name
from nvib_jax.data.config import CleanConfig
from nvib_jax.data.prepare import cache_hash, prepare
from nvib_jax.data.prepared import PreparedData
from nvib_jax.data.token_file import TokenWriter
from nvib_jax.data.workers import ordered_map

from .corpora import LINES, grammar_config, make_text_config


@pytest.fixture
def text_config(tmp_path):
    return make_text_config(tmp_path)


def test_nothing_left_after_cleaning(tmp_path, text_config):
    file = tmp_path / "numbers.txt"
    file.write_text("!!!\n???\n")
    clean = CleanConfig(keep_characters="a-z ")
    with pytest.raises(ValueError, match=r"no sentence of data.train is left .* 0 sentences"):
        prepare(dataclasses.replace(text_config, train=(str(file),), clean=clean))
    clean = CleanConfig(min_tokens=48)
    message = rf"no sentence of data.train is left .* {len(LINES)} .* none with 48 to 49 tokens"
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


TOGETHER = """
import sys
from nvib_jax.data import DataConfig, prepare

prepare(DataConfig(cache_dir=sys.argv[1], num_train=400, num_validation=50, num_test=40),
        progress=print)
"""


def test_a_killed_run_leaves_no_cache_and_the_next_cleans_up(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".building-*")
    assert (left / "tokenizer.model").exists()
    with pytest.raises(FileNotFoundError, match=r"no prepared data at .* has no metadata.json"):
        PreparedData.load(left)
    data = prepare(grammar_config(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [data.path.name]
    assert len(data.sentences("train")) == 400


def test_one_prepares_and_the_others_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_folder, "LOOK_SECONDS", 0.01)
    config = grammar_config(tmp_path)
    waiting = threading.Event()
    said: list[str] = []

    def second():
        prepare(config, progress=lambda line: (said.append(line), waiting.set()))

    other = threading.Thread(target=second)

    def progress(line):
        if "vocabulary" in line:
            other.start()
            assert waiting.wait(20)
            assert not (tmp_path / cache_hash(config)).exists()

    data = prepare(config, progress=progress)
    other.join(20)
    assert not other.is_alive()
    # It prepared nothing itself, and said for whom it waited.
    me = f"{socket.gethostname()}, process {os.getpid()}"
    assert said == [f"waiting for {data.path}, which {me} prepares"]
    assert [path.name for path in tmp_path.iterdir()] == [data.path.name]


def test_processes_that_start_together_prepare_once(tmp_path):
    command = [sys.executable, "-c", TOGETHER, str(tmp_path)]
    crew = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=120)[0] for process in crew]
    assert [process.returncode for process in crew] == [0, 0, 0]
    assert sum("vocabulary" in lines for lines in said) == 1, said
    assert len(list(tmp_path.iterdir())) == 1


def test_a_claim_of_a_dead_process_is_taken_over(tmp_path):
    config = grammar_config(tmp_path)
    claim = tmp_path / f".claim-{cache_hash(config)}"
    claim.mkdir()
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    (claim / "owner").write_text(f"{socket.gethostname()}, process {done.stdout.strip()} 0")
    data = prepare(config)
    assert [path.name for path in tmp_path.iterdir()] == [data.path.name]


def test_a_claim_of_another_host_is_taken_over_when_it_stands_still(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_folder, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(cache_folder, "STALE_SECONDS", 0.5)
    config = grammar_config(tmp_path)
    owner = tmp_path / f".claim-{cache_hash(config)}" / "owner"
    owner.parent.mkdir()
    owner.write_text("elsewhere, process 1 0")
    beats = []

    def alive():
        for i in range(8):
            owner.write_text(f"elsewhere, process 1 {i}")
            beats.append(time.monotonic())
            time.sleep(0.1)

    other = threading.Thread(target=alive)
    other.start()
    said: list[str] = []
    data = prepare(config, progress=said.append)
    assert said[0] == f"waiting for {data.path}, which elsewhere, process 1 prepares"
    assert time.monotonic() - beats[-1] >= 0.5
    other.join()
    assert [path.name for path in tmp_path.iterdir()] == [data.path.name]


def test_a_cache_is_read_on_while_it_is_removed(tmp_path):
    data = prepare(grammar_config(tmp_path))
    before = data.sentences("train", 40)
    shutil.rmtree(data.path)
    assert data.sentences("train", 40) == before


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left on device"):
            prepare(grammar_config(tmp_path))
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(TokenWriter, "write", full)
    with pytest.raises(OSError, match=r"No space left on device where prepared data .*NVIB_CACHE"):
        prepare(grammar_config(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_worker_that_dies_is_named(tmp_path):
    with pytest.raises(ChildProcessError, match="a process that prepares data ended with status"):
        list(ordered_map(os._exit, [3], workers=1 + 1))
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(functools.partial(divmod, 1), [1, 0], workers=2))
    assert list(ordered_map(functools.partial(divmod, 7), range(1, 40), workers=2)) == [
        divmod(7, i) for i in range(1, 40)
    ]


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


NAMES = ["tokenizer.model", "test.lengths.npy", "train.checksums.npy", "train.tokens"]


@pytest.mark.parametrize("name", NAMES)
def test_damage_is_named_and_mended(tmp_path, name):
    config = grammar_config(tmp_path)
    data = prepare(config)
    file = data.path / name
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
    with pytest.raises(ValueError, match="has format version 99, expected 2"):
        PreparedData.load(data.path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"5", b"null", b"{}", b'{"a": 1}', b"\xff" * 9, b"[" * 200_000,
     b'{"format_version": 2, "checksum": 5}', b"1" * 5000],
    ids=lambda c: repr(c[:9]),
)  # fmt: skip
def test_bad_metadata_are_damage(tmp_path, content):
    config = grammar_config(tmp_path, num_train=9, num_validation=0, num_test=0)
    path = prepare(config).path
    (path / "metadata.json").write_bytes(content)
    said: list[str] = []
    assert len(prepare(config, progress=said.append).sentences("train")) == 9
    assert f"the cache {path} is damaged: metadata.json is n" in said[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    config = grammar_config(tmp_path_factory.mktemp("whole"), num_test=0)
    return prepare(config).path


FLIPPED = ["metadata.json", "tokenizer.model", "train.lengths.npy", "train.checksums.npy",
           "train.tokens"]  # fmt: skip


@pytest.mark.parametrize("at_once", [0, 1 << 30])
@pytest.mark.parametrize("name", FLIPPED)
def test_no_flipped_bit_comes_through(whole, tmp_path, name, at_once, monkeypatch):
    """Any bit of any file: opening or reading raises, or what is read is what was written."""
    monkeypatch.setattr(prepared, "_CHECKED_AT_ONCE", at_once)
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    file = copy / name
    content = file.read_bytes()
    data = PreparedData.load(whole)
    right = [ids.tolist() for ids in data.tokens("train", range(400))]
    found = 0
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(content) * 8, 25).tolist():
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        file.write_bytes(flipped)
        (copy / "damaged.txt").unlink(missing_ok=True)
        try:
            read = PreparedData.load(copy).tokens("train", range(400))
            assert [ids.tolist() for ids in read] == right
        except ValueError as error:
            found += "damaged" in str(error) or "format version" in str(error)
    # A space between two of the metadata's fields may become another one.
    assert found == 25 if name != "metadata.json" else found > 15


def test_large_caches_are_checked_as_they_are_read(tmp_path, monkeypatch):
    """Damage that is found in training is mended by the next `prepare`."""
    monkeypatch.setattr(prepared, "_CHECKED_AT_ONCE", 0)
    monkeypatch.setattr(token_file, "CHUNK", 64)
    config = grammar_config(tmp_path)
    path = prepare(config).path
    right = PreparedData.load(path).tokens("train", range(400))
    content = bytearray((path / "train.tokens").read_bytes())
    content[1000] ^= 4
    (path / "train.tokens").write_bytes(content)
    data = PreparedData.load(path)
    read, errors = 0, 0
    for i in np.random.default_rng(0).permutation(400):
        try:
            ids, mask = data.padded("train", np.array([i, -1]), 24)
            assert ids[0][mask[0]].tolist() == right[i].tolist()
            read += 1
        except ValueError as error:
            errors += "bytes 960 to 1024 of train.tokens are not what was written" in str(error)
    assert errors > 0
    assert read == 400 - errors
    assert read > 350
    said: list[str] = []
    again = prepare(config, progress=said.append)
    assert "bytes 960 to 1024" in said[0]
    assert [ids.tolist() for ids in again.tokens("train", range(400))] == [
        ids.tolist() for ids in right
    ]
