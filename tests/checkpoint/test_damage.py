"""Checkpoints that something happened to: found out or harmless, never a silent wrong restore."""

import json
import math
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from nvib_jax.checkpoint.integrity import Damaged, check_fingerprints, fingerprints
from nvib_jax.checkpoint.reading import CheckpointReader
from nvib_jax.checkpoint.retention import FOLDER, Keep, saved_steps
from nvib_jax.checkpoint.store import DAMAGED, Checkpoints
from nvib_jax.data import prepare
from nvib_jax.text_model import TextModel
from nvib_jax.training import loop
from nvib_jax.training.feed import describe
from nvib_jax.training.sharding import make_mesh, plan_state
from nvib_jax.training.step import TrainState

# Orbax's readers leave coroutines behind when one of them fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

FILES = (
    "meta/metadata",
    "params/_METADATA",
    "params/manifest.ocdbt",
    "params/ocdbt.process_0/manifest.ocdbt",
    "params/ocdbt.process_0/d/LARGEST",
    "optimizer/_METADATA",
    "optimizer/ocdbt.process_0/d/LARGEST",
    "_CHECKPOINT_METADATA",
)
KINDS = ("deleted", "cut", "flipped")
QUICK = {
    ("meta/metadata", "flipped"),
    ("params/_METADATA", "cut"),
    ("params/ocdbt.process_0/d/LARGEST", "flipped"),
    ("optimizer/ocdbt.process_0/d/LARGEST", "deleted"),
}
# Orbax can do without these, or finds what they say elsewhere.
HARMLESS = {
    FILES[-1],
    *(name for name in FILES if name.startswith("params/") and "/d/" not in name),
}


@pytest.fixture(scope="module")
def opened():
    """(plan, model, the state saved at step 20) of the finished run."""
    config = tiny.trained()[0]
    data = prepare(config.data)
    description = describe(config, data)
    plan = plan_state(config, make_mesh(config.mesh), description.structure)
    _, items = CheckpointReader(config.train.run_dir).restore(plan.state.items, description)
    return plan, description, jax.device_get(TrainState.of_items(items))


def restored(run, plan, description):
    said = []
    checkpoints = Checkpoints(run, say=said.append)
    try:
        _, items = checkpoints.resume(plan.state.items, description)
        return jax.device_get(TrainState.of_items(items)), said
    finally:
        checkpoints.close()


def copied(tmp_path):
    return Path(shutil.copytree(tiny.trained()[0].train.run_dir, tmp_path / "run"))


def hurt(run, name, kind, step="20"):
    """Damage one file of a checkpoint."""
    file = run / FOLDER / step / name
    if file.name == "LARGEST":
        file = max(file.parent.iterdir(), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    if kind == "deleted":
        file.unlink()
    elif kind == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        place = int(np.random.default_rng(len(content)).integers(len(content)))
        content[place] ^= 1
        file.write_bytes(content)


def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(n, k, marks=() if (n, k) in QUICK else pytest.mark.long)
        for n in FILES
        for k in KINDS
    ],
)
def test_damage_is_found_or_harmless(opened, tmp_path, name, kind):
    plan, model, whole = opened
    run = copied(tmp_path)
    hurt(run, name, kind)
    state, said = restored(run, plan, model)
    somewhere = kind != "deleted" and "/d/" in name  # perhaps what is hit is never read
    if int(state.step) == 20 and (name in HARMLESS or somewhere):
        assert same(state, whole)
        assert not said
        return
    assert int(state.step) == 10
    assert "the checkpoint of step 20 in" in said[0]
    assert "is damaged" in said[0]
    assert str(run / DAMAGED / "20.0") in said[1]
    assert saved_steps(run) == [10]
    assert (run / DAMAGED / "20.0").is_dir()


def test_a_reader_that_errs_is_found_out(opened, monkeypatch, tmp_path):
    """One bit of one number, wherever it went wrong: the values themselves are compared."""
    plan, model, _ = opened
    run, whole = copied(tmp_path), Checkpoints._read_items

    def wrong(self, step, shapes):
        items = whole(self, step, shapes)
        if step == 20:
            bias = np.asarray(items["params"]["output.bias"]).view(np.uint32).copy()
            bias[3] ^= 1
            items["params"]["output.bias"] = jax.numpy.asarray(bias.view(np.float32))
        return items

    monkeypatch.setattr(Checkpoints, "_read_items", wrong)
    state, said = restored(run, plan, model)
    assert int(state.step) == 10
    assert "['output.bias'] is" in said[0]


def test_a_run_goes_on_from_the_one_before(opened, tmp_path):
    """Damaged at 20, resumed from 10, and 20 is made again: the same parameters."""
    run = copied(tmp_path)
    hurt(run, "optimizer/_METADATA", "cut")
    loop.train(tiny.with_train(tiny.trained()[0], run_dir=str(run)), resume=True)
    assert saved_steps(run) == [10, 20]
    assert same(restored(run, *opened[:2])[0], opened[2])
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [(r["step"], r["split"]) for r in records]
    assert len(steps) == len(set(steps)) == 6  # those after step 10 are written once


def test_loading_passes_a_damaged_one_over(tmp_path):
    """`which="last"` is then the one before; nothing in the folder is touched."""
    run, said = copied(tmp_path), []
    hurt(run, "params/_METADATA", "cut")
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    model = TextModel.load(run, which="last", say=said.append)
    assert "step 20" in said[0]
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before
    whole = tiny.trained()[0].train.run_dir
    (other,) = (s for s in saved_steps(whole) if s != 20)
    shutil.rmtree(run / FOLDER / "20")
    assert same(model.params, TextModel.load(run, which="last").params)
    assert other == 10


def rename(run, *pairs):
    """Folders of checkpoints under each other's names."""
    for old, _ in pairs:
        (run / FOLDER / old).rename(run / FOLDER / f"moving-{old}")
    for old, new in pairs:
        (run / FOLDER / f"moving-{old}").rename(run / FOLDER / new)


def test_a_checkpoint_of_another_step_than_its_name_is_damaged(opened, tmp_path):
    """Exchanged, step 10's weights were taken for step 20's, silently."""
    run, said = copied(tmp_path), []
    rename(run, ("10", "20"), ("20", "10"))
    for which in ("best", "last"):
        with pytest.raises(ValueError, match=r"no checkpoint in .* is whole"):
            TextModel.load(run, which=which, say=said.append)
    assert len(said) == 4
    assert "step 20 in" in said[-2]
    assert "is damaged (it says that it is of step 10)" in said[-2]
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole"):
        restored(run, *opened[:2])


def test_a_checkpoint_renamed_to_a_later_step_is_set_aside(opened, tmp_path):
    """Training went on and ended in "there is one of a later step"."""
    run = copied(tmp_path)
    rename(run, ("20", "99"))
    assert TextModel.load(run, which="last", say=lambda _: None).config == tiny.as_saved(
        opened[1].config
    )
    loop.train(tiny.with_train(tiny.trained()[0], run_dir=str(run)), resume=True)
    assert saved_steps(run) == [10, 20]
    assert (run / DAMAGED / "99.0").is_dir()
    assert same(restored(run, *opened[:2])[0], opened[2])


def test_a_checkpoint_of_another_step_is_never_the_best(tmp_path):
    """Its objective would keep it for good, and the best one go."""
    run = copied(tmp_path)
    rename(run, ("20", "15"))
    assert list(Keep(run / FOLDER, 1, 1, 0).objectives.values()).count(math.inf) == 1
    assert Keep(run / FOLDER, 1, 1, 0).objectives[15] == math.inf


@pytest.mark.parametrize("name", ["012", "²", "7 copy", "+5", "9" * 5000])
def test_a_name_that_is_no_step(tmp_path, name):
    (tmp_path / FOLDER).mkdir()
    if len(name) < 256:
        (tmp_path / FOLDER / name).mkdir()
    (tmp_path / FOLDER / "3").write_text("a file")
    (tmp_path / FOLDER / "5").mkdir()
    assert saved_steps(tmp_path) == [5]


@pytest.mark.parametrize("name", ["meta/metadata", "_CHECKPOINT_METADATA", "params/_METADATA"])
@pytest.mark.parametrize("content", [b"[" * 10**5, b"[]", b"\xff"], ids=["deep", "list", "0xff"])
def test_bad_meta_data_of_one_do_not_block_the_others(opened, tmp_path, name, content):
    """Deep JSON ended `train --resume` and `sample` in a RecursionError, a whole one beside it."""
    plan, model, whole = opened
    run, said = copied(tmp_path), []
    (run / FOLDER / "20" / name).write_bytes(content)
    for which in ("last", "best"):
        TextModel.load(run, which=which, say=said.append)
    state, more = restored(run, plan, model)
    assert bool(said) == (int(state.step) == 10)
    assert more or not said
    assert same(state, whole) or said
    assert name != "meta/metadata" or said


def test_a_checkpoint_that_goes_while_it_is_read_is_no_damage(tmp_path, monkeypatch):
    """The run goes on, saves another and removes the one that is being read: that one is read."""
    run, said = copied(tmp_path), []
    later = tmp_path / "later"
    (run / FOLDER / "20").rename(later)
    plain = CheckpointReader._read_items

    def read(self, step, shapes):
        if step == 10:
            later.rename(run / FOLDER / "20")
            shutil.rmtree(run / FOLDER / "10")
        return plain(self, step, shapes)

    monkeypatch.setattr(CheckpointReader, "_read_items", read)
    model = TextModel.load(run, say=said.append)
    wanted = TextModel.load(tiny.trained()[0].train.run_dir, which="last")
    assert same(model.params, wanted.params)
    assert not said


def test_a_reader_says_that_it_reads(tmp_path):
    """A folder that nobody may read was said to be one that nobody can write."""
    run, said = copied(tmp_path), []
    for step in ("10", "20"):
        shutil.rmtree(run / FOLDER / step / "params")
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole"):
        TextModel.load(run, say=said.append)
    assert not any("written" in line for line in said)


def test_none_is_whole(opened, tmp_path):
    run = copied(tmp_path)
    for step in ("10", "20"):
        hurt(run, "meta/metadata", "cut", step)
    for which in ("best", "last"):
        with pytest.raises(ValueError, match=r"no checkpoint in .* is whole"):
            TextModel.load(run, which=which, say=lambda _: None)
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole"):
        restored(run, *opened[:2])
    assert saved_steps(run) == [10, 20]  # a passing error of a disk would look the same
    assert not (run / DAMAGED).exists()


def test_a_passing_error_moves_nothing(opened, monkeypatch, tmp_path):
    """No memory, say, for either: both are there for the next try."""
    plan, model, whole = opened
    run = copied(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_read_items", lambda *_: 1 / 0)
        with pytest.raises(ValueError, match=r"no checkpoint in .* is whole"):
            restored(run, plan, model)
    assert saved_steps(run) == [10, 20]
    state, said = restored(run, plan, model)
    assert same(state, whole)
    assert not said


def test_links_are_not_followed(opened, tmp_path):
    """A file that leads out of the folder is damage, whatever it leads to."""
    run = copied(tmp_path)
    file = run / FOLDER / "20" / "meta" / "metadata"
    shutil.copy(file, tmp_path / "elsewhere")
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    state, said = restored(run, *opened[:2])
    assert int(state.step) == 10
    assert "metadata is a link or a special file" in said[0]


@pytest.mark.parametrize("kind", ["pipe", "linked folder"])
def test_reading_ends_and_stays_inside(tmp_path, kind):
    """A pipe would be read for ever, a linked folder leads elsewhere."""
    run, said = copied(tmp_path), []
    step = run / FOLDER / "20"
    if kind == "pipe":
        (step / "meta" / "metadata").unlink()
        os.mkfifo(step / "meta" / "metadata")
    else:
        step.rename(tmp_path / "elsewhere")
        step.symlink_to(tmp_path / "elsewhere")
    TextModel.load(run, which="last", say=said.append)
    assert "step 20" in said[0]
    assert "is a link" in said[0]


def test_no_code_of_a_file_is_run(monkeypatch):
    """Nothing is unpickled."""

    def refuse(*_, **__):
        raise AssertionError("a pickle was opened")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    TextModel.load(tiny.trained()[0].train.run_dir)


# ---- disks


@pytest.fixture
def mount(tmp_path):
    """Mount something over a folder, by `mount`'s own arguments; gone when the test is."""
    mounted = []

    def make(folder, *arguments):
        folder.mkdir(exist_ok=True)
        done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(
                f"nothing can be mounted here ({done.stderr.strip()}); disks are not tested"
            )
        mounted.append(folder)

    yield make
    for folder in dict.fromkeys(reversed(mounted)):
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("seen", [True, False], ids=["seen before", "met while writing"])
def test_a_full_disk(mount, tmp_path, monkeypatch, capfd, seen):
    """The first checkpoint fits, the second does not: one sentence, and the first is whole."""
    usage = shutil.disk_usage("/")
    disk = tmp_path / "disk"
    run, other = disk / "run", disk / "another program's file"

    def disk_usage(path):
        if not saved_steps(run):
            return usage
        if seen:
            return usage._replace(free=0)
        if not other.exists():  # there is a checkpoint now: room for half of another is left
            written = sum(f.stat().st_size for f in (run / FOLDER).rglob("*") if f.is_file())
            other.write_bytes(bytes(free(disk).free - written // 2))
        return usage._replace(free=2**40)

    free = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    mount(disk, "-t", "tmpfs", "-o", "size=20m", "tmpfs")
    config = tiny.with_train(tiny.trained()[0], run_dir=str(run), steps=40)
    reason = r"it takes .* MiB and 0.0 MiB are free" if seen else "No space left on device"
    with pytest.raises(
        OSError,
        match=rf"the checkpoint of step 20 cannot be written to .*disk/run/checkpoints: {reason}; "
        "the last good one is of step 10$",
    ):
        loop.train(config)
    out, err = capfd.readouterr()
    # Saving goes on in the background, so the error is found at the next save at the latest.
    assert "held-out     40" not in out
    assert err == ""  # neither Orbax nor tensorstore has more to say
    monkeypatch.undo()
    assert saved_steps(disk / "run") == [10]
    wanted = TextModel.load(tiny.trained()[0].train.run_dir, which="last")
    assert TextModel.load(disk / "run", which="last").params.keys() == wanted.params.keys()
    for left in (disk / "run" / FOLDER).iterdir():
        assert left.name == "10" or "tmp" in left.name
    other.unlink(missing_ok=True)
    loop.train(tiny.with_train(config, steps=20), resume=True)
    assert same(TextModel.load(disk / "run", which="last").params, wanted.params)


def test_a_read_only_disk(mount, tmp_path):
    run = copied(tmp_path)
    mount(run, "--bind", str(run))
    subprocess.run(["mount", "-o", "remount,ro,bind", str(run)], check=True)
    config = tiny.with_train(tiny.trained()[0], run_dir=str(run), steps=30)
    with pytest.raises(OSError, match=r"run.*Read-only file system|Read-only file system.*run"):
        loop.train(config, resume=True)
    assert saved_steps(run) == [10, 20]
    TextModel.load(run)


def test_a_folder_that_vanishes(monkeypatch, tmp_path):
    """The run's folder is removed under it: the run stops with its name."""
    config = tiny.with_train(tiny.trained()[0], run_dir=str(tmp_path / "run"))
    plain, taken = loop.arrays_of, []

    def arrays(batch):
        taken.append(0)
        if len(taken) == 15:
            (tmp_path / "run").rename(tmp_path / "gone")
            (tmp_path / "run").write_text("a file now")
        return plain(batch)

    monkeypatch.setattr(loop, "arrays_of", arrays)
    with pytest.raises(OSError, match=r"cannot be written to .*/run/"):
        loop.train(config)


# ---- fingerprints


def test_a_fingerprint_is_of_values_shape_and_dtype():
    x = jax.numpy.arange(6, dtype=jax.numpy.float32).reshape(2, 3)
    found = fingerprints({"x": x})["['x']"]
    for other in (x.T, x.reshape(3, 2), x.astype(jax.numpy.bfloat16), x.astype(int), -x, x[::-1]):
        assert fingerprints({"x": other})["['x']"] != found
    with jax.enable_x64(True):
        halves = [jax.numpy.array([1.0 + d], jax.numpy.float64) for d in (0, 2**-12)]
        assert fingerprints(halves[:1]) != fingerprints(halves[1:])
    zeros = jax.numpy.zeros(4)
    assert fingerprints([zeros]) != fingerprints([-zeros])  # bits, not numbers


def test_every_single_bit_counts():
    """Any one bit of an array, and any exchange of two elements of a permutation."""
    base = np.random.default_rng(0).integers(0, 2**32, 40, dtype=np.uint32)
    seen = {fingerprints([base])["[0]"]}
    for place in range(40):
        for bit in (0, 1, 7, 16, 31):
            changed = base.copy()
            changed[place] ^= np.uint32(1 << bit)
            seen.add(fingerprints([changed])["[0]"])
        swapped = base.copy()
        swapped[[place, (place + 1) % 40]] = swapped[[(place + 1) % 40, place]]
        seen.add(fingerprints([swapped])["[0]"])
    assert len(seen) == 1 + 40 * 6


def test_a_fingerprint_does_not_depend_on_the_layout():
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from nvib_jax.config import MeshConfig

    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    x = jax.random.normal(jax.random.key(0), (8, 6, 4))
    tree = {"x": x, "n": jax.numpy.int32(7), "b": x > 0, "h": x.astype(jax.numpy.bfloat16)}
    spread = jax.device_put(tree, NamedSharding(mesh, P()))
    spread["x"] = jax.device_put(x, NamedSharding(mesh, P(("data", "fsdp"), "tensor")))
    assert fingerprints(spread) == fingerprints(tree)
    with pytest.raises(Damaged, match=r"\['n'\] is"):
        check_fingerprints(fingerprints({**tree, "n": jax.numpy.int32(8)}), fingerprints(tree))
    del spread["x"]
    with pytest.raises(Damaged, match=r"\['x'\] is None, saved as"):
        check_fingerprints(fingerprints(spread), fingerprints(tree))
