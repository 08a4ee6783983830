"""A run folder is one run's at a time: refusals, kills, other machines, no locks at all."""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny

from nvib_jax import cli
from nvib_jax.training import claim as claims
from nvib_jax.training import loop
from nvib_jax.training.claim import CLAIM, Claim, Claimed

HOLD = """
import sys
from nvib_jax.training.claim import Claim
with Claim(sys.argv[1:]) as claim:
    print(claim.folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder():
    """Start a process that claims the first free of some folders; ends with the test."""
    started = []

    def hold(*folders):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, *map(str, folders)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process, process.stdout.readline().strip()

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def test_a_claim_is_there_until_it_is_released(tmp_path):
    with Claim([tmp_path / "a" / "run"]) as claim:
        assert claim.folder == tmp_path / "a" / "run"
        written = json.loads((claim.folder / CLAIM).read_text())
        assert written["process"] == os.getpid()
        assert written["host"] == socket.gethostname()
        with pytest.raises(Claimed):
            Claim([claim.folder])
        assert (claim.folder / CLAIM).exists()  # the refused one removes nothing
    assert list(tmp_path.iterdir()) == []  # neither the file nor the folders that it made
    with Claim([tmp_path / "b"]) as claim:
        (claim.folder / "config.json").write_text("{}")
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["config.json"]


def test_the_second_process_is_told_who_has_it(holder, tmp_path):
    process, _ = holder(tmp_path)
    with pytest.raises(Claimed) as refusal:
        Claim([tmp_path])
    assert re.fullmatch(
        rf"{tmp_path} is in use by process {process.pid} on {socket.gethostname()} since "
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC; wait for it, or name another run with "
        r"--train.run-dir",
        str(refusal.value),
    )
    process.communicate("")  # it ends by itself
    said = []
    Claim([tmp_path], say=said.append).release()
    assert not said


def test_a_killed_process_stands_in_nobodys_way(holder, tmp_path):
    process, _ = holder(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / CLAIM).exists()
    said = []
    with Claim([tmp_path], say=said.append):
        assert json.loads((tmp_path / CLAIM).read_text())["process"] == os.getpid()
    assert len(said) == 1
    assert f"{tmp_path} was left claimed by process {process.pid} on " in said[0]
    assert said[0].endswith(", which has ended")


def test_the_first_free_folder_is_taken(holder, tmp_path):
    names = [tmp_path / name for name in ("run", "run-2", "run-3")]
    assert [Path(holder(*names)[1]) for _ in range(2)] == names[:2]
    with Claim(names) as claim:
        assert claim.folder == names[2]
        with pytest.raises(Claimed, match=r"run-3 is in use by"):
            Claim(names)


def test_train_claims_before_anything_else(holder, tmp_path, monkeypatch):
    """Nothing is prepared, no checkpoint looked for, in a folder that another run has."""
    config = tiny.with_train(tiny.config(), run_dir=str(tmp_path / "run"))
    monkeypatch.setattr(loop, "prepare", lambda *a, **k: pytest.fail("prepared"))
    monkeypatch.setattr(loop, "_check_run_dir", lambda *a, **k: pytest.fail("looked"))
    process, _ = holder(tmp_path / "run")
    for resume in (False, None, True):
        with pytest.raises(FileExistsError, match=rf"in use by process {process.pid} on"):
            loop.train(config, resume=resume)
    assert [p.name for p in (tmp_path / "run").iterdir()] == [CLAIM]


def test_train_holds_the_claim_to_the_end(tmp_path, monkeypatch):
    config = tiny.with_train(tiny.config(), run_dir=str(tmp_path / "run"))

    def inside(*_):
        with pytest.raises(Claimed):
            Claim([tmp_path / "run"])
        raise ArithmeticError("seen")

    monkeypatch.setattr(loop, "_train", inside)
    with pytest.raises(ArithmeticError, match="seen"):
        loop.train(config)
    assert not (tmp_path / "run").exists()


def test_two_commands_without_a_name_take_two(holder, tmp_path, monkeypatch, capsys):
    """Both took runs/NAME, because the name was free until the first had prepared its data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "little.py").write_text(
        "from nvib_jax.config import Config\ndef config():\n    return Config()\n"
    )
    seen = []

    def train(config, claim, **_):
        seen.append((config.train.run_dir, claim.folder, claim._file is None))
        return loop.Trained(None, 0.0)

    monkeypatch.setattr(loop, "train", train)
    holder(tmp_path / "runs" / "little")
    assert cli.main(["train", "little.py"]) == 0
    assert seen == [("runs/little-2", Path("runs/little-2"), False)]
    (tmp_path / "runs" / "little" / "config.json").write_text("{}")
    assert cli.main(["train", "little.py", "--resume"]) == 1
    assert "runs/little is in use by process" in capsys.readouterr().err


def no_locks(monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize(
    ("holder", "free"),
    [
        ({"process": 2**22 + 1, "host": socket.gethostname()}, True),  # above the largest number
        ({"process": os.getppid(), "host": socket.gethostname()}, False),
        ({"process": 2**22 + 1, "host": "another"}, False),
        ([], False),
    ],
)
def test_without_locks_the_file_is_the_claim(monkeypatch, tmp_path, holder, free):
    no_locks(monkeypatch)
    with Claim([tmp_path]), pytest.raises(Claimed, match=r"if that process has ended, remove .*/"):
        Claim([tmp_path])
    (tmp_path / CLAIM).write_text(json.dumps(holder))
    if free:
        Claim([tmp_path], say=lambda _: None).release()
        assert list(tmp_path.iterdir()) == []
    else:
        with pytest.raises(Claimed, match=r"is in use by "):
            Claim([tmp_path])


def foreign(folder, **changes):
    """A claim of a process of another machine, whose lock is not seen here."""
    values = {"process": 7, "host": "another", "since": "2026-11-21 10:00:00 UTC", **changes}
    (folder / CLAIM).write_text(json.dumps(values))


def test_a_live_run_of_another_machine_keeps_its_folder(monkeypatch, tmp_path):
    """Where locks are the host's own, as on gcsfuse, the second host's lock said nothing."""
    monkeypatch.setattr(claims, "LOOK_SECONDS", 0.02)
    foreign(tmp_path, beat=int(time.time()) - 1)
    timer = threading.Timer(0.3, foreign, [tmp_path], {"beat": int(time.time()) + 20})
    timer.start()
    with pytest.raises(Claimed, match=r"in use by process 7 on another since 2026-11-21 10:00:00"):
        Claim([tmp_path])
    timer.join()
    assert json.loads((tmp_path / CLAIM).read_text())["host"] == "another"


@pytest.mark.parametrize("age", [0, 3600, -3600])
def test_a_claim_of_another_machine_ends_when_it_stands_still(monkeypatch, tmp_path, age):
    monkeypatch.setattr(claims, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(claims, "STALE_SECONDS", 2.0)  # more than a beat is rounded by
    foreign(tmp_path, beat=int(time.time()) - age)
    said = []
    Claim([tmp_path], say=said.append).release()
    assert len(said) == (1 if age == 3600 else 2)  # it says what it waits for
    assert said[-1].endswith(", which has given no sign of life for minutes")


def test_a_claim_of_another_machine_without_beats_is_left_to_a_person(tmp_path):
    foreign(tmp_path)  # of version 0.1.0
    with pytest.raises(
        Claimed, match=rf"in use by .*; if that process has ended, remove .*{CLAIM}"
    ):
        Claim([tmp_path])


def test_a_claim_beats(monkeypatch, tmp_path):
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(time, "time", iter(range(10**9, 2 * 10**9)).__next__)
    read = lambda: json.loads((tmp_path / CLAIM).read_text())  # noqa: E731
    with Claim([tmp_path]):
        first, end = read(), time.monotonic() + 20
        while read()["beat"] == first["beat"] and time.monotonic() < end:
            time.sleep(0.02)
        again = read()
        assert again["beat"] > first["beat"]
        assert {**again, "beat": 0} == {**first, "beat": 0}
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CLAIM).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"run cannot be claimed: "):
        Claim([tmp_path / "run"])
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/run cannot be claimed: Not a directory"):
        Claim([tmp_path / "file" / "run"])


def test_what_is_released_by_one_may_be_removed_under_another(monkeypatch, tmp_path):
    """Between its opening and its locking, say: what is locked then is nobody's claim."""
    plain, removed = fcntl.flock, []

    def flock(file, how):
        if not removed:
            removed.append((tmp_path / CLAIM).unlink())
        plain(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with Claim([tmp_path]):
        assert removed
        with pytest.raises(Claimed):
            Claim([tmp_path])


@pytest.mark.parametrize("first", [True, False])
def test_of_several_processes_all_are_told(monkeypatch, tmp_path, first):
    """Process 1 touches nothing: it takes the folder's name from process 0, or its refusal."""
    monkeypatch.setattr(claims, "is_first", lambda: first)
    monkeypatch.setattr(claims, "everywhere", lambda good: good)
    monkeypatch.setattr(claims, "text_from_first", lambda text: str(tmp_path / "chosen"))
    with Claim([tmp_path / "chosen"]) as claim:
        assert claim.folder == tmp_path / "chosen"
        assert (tmp_path / "chosen" / CLAIM).exists() == first
    monkeypatch.setattr(claims, "everywhere", lambda good: False)
    with pytest.raises(Claimed, match=r"process 0 has no folder for this run"):
        Claim([tmp_path / "chosen"])
    assert list(tmp_path.iterdir()) == []
