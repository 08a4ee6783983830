"""What goes wrong while preparing: half a cache is never read, and none is left behind."""

import dataclasses
import errno
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nvib_jax.data import cache_folder
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
    # The other one writes every tenth of a second; on a busy machine its thread may wait for long.
    monkeypatch.setattr(cache_folder, "STALE_SECONDS", 2.0)
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
    assert time.monotonic() - beats[-1] >= 2.0
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


def test_a_worker_that_dies_at_its_start_is_named_and_the_others_end(monkeypatch):
    """It was a bare BrokenPipeError, and the workers before it stayed."""
    started, plain = [], subprocess.Popen

    def popen(words, **options):
        program = words[2] if not started else "raise SystemExit(3)"
        started.append(plain([*words[:2], program, *words[3:]], **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    large = functools.partial(max, b"x" * 10**6)  # more than a pipe takes
    with pytest.raises(ChildProcessError, match=r"prepares data ended with status 3$"):
        list(ordered_map(large, [b"y"], workers=3))
    assert [process.poll() for process in started] == [-signal.SIGKILL, 3]


@pytest.mark.parametrize(
    ("item", "error", "said"),
    [
        ("(_ for _ in ()).throw(type('Odd', (Exception,), {})('the reason'))",
         RuntimeError, r"Odd\('the reason'\)"),
        ("(_ for _ in ()).throw(__import__('xmlrpc.client').client.ProtocolError('the reason', 1,"
         " '', {}))", RuntimeError, r"ProtocolError for the reason"),
        ("lambda: 0", Exception, "pickle"),
    ],
    ids=["no pickle", "no unpickling", "result"],
)  # fmt: skip
def test_a_workers_error_is_told_though_pickle_does_not_take_it(item, error, said):
    with pytest.raises(error, match=said) as raised:
        list(ordered_map(eval, ["1", item], workers=2))
    assert not isinstance(raised.value, ChildProcessError)
    assert list(ordered_map(eval, ["1", "2"], workers=2)) == [1, 2]


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
