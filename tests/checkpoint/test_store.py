"""Checkpoints: saved and restored bit-equal, a run goes on as if never cut, wrong ones refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from nvib_jax.checkpoint.integrity import seal
from nvib_jax.checkpoint.reading import CheckpointReader
from nvib_jax.checkpoint.retention import FOLDER, saved_steps
from nvib_jax.checkpoint.store import Checkpoints
from nvib_jax.data import prepare
from nvib_jax.presets import from_json, to_json
from nvib_jax.text_model import TextModel
from nvib_jax.training import loop
from nvib_jax.training.optimizer import make_optimizer
from nvib_jax.training.step import TrainState


def contents(folder):
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def opened():
    """(config, a state of other values than any saved one, the untrained model)."""
    config = tiny.trained()[0]
    model = tiny.open_model(config, prepare(config.data))
    params = jax.tree.map(lambda x: x + 1, model.params)
    optimizer = make_optimizer(config.train)
    state = TrainState.create(params, optimizer)
    return config, dataclasses.replace(state, step=jax.numpy.int32(7)), model


def last_state(config):
    """The last state saved by a run."""
    model = tiny.open_model(config, prepare(config.data))
    optimizer = make_optimizer(config.train)
    state = TrainState.create(model.params, optimizer)
    reader = CheckpointReader(config.train.run_dir)
    return TrainState.of_items(reader.restore(state.items, model.description)[1])


def assert_same(a, b):
    leaves = [jax.tree_util.tree_leaves_with_path(x) for x in (a, b)]
    assert len(leaves[0]) == len(leaves[1])
    for (path, x), (_, y) in zip(*leaves, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=str(path))
        assert x.dtype == y.dtype


# ---- round trip


def test_save_and_restore_are_inverse(opened, tmp_path):
    _, state, model = opened
    state.opt_state[1][0].mu["output.kernel"] = state.params["output.kernel"] * 0.37
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, state.items, model.description, 1.0)
    checkpoints.close()
    assert saved_steps(tmp_path) == [7]
    start = jax.tree.map(jax.numpy.zeros_like, state)
    again = Checkpoints(tmp_path)
    step, items = again.resume(start.items, model.description)
    assert step == 7
    assert_same(items, state.items)
    again.close()


def test_restored_onto_any_placement(opened, tmp_path):
    """Saved from one device, restored whole on each of eight, as the abstract arrays say."""
    from nvib_jax.config import MeshConfig
    from nvib_jax.training.sharding import make_mesh, whole

    _, state, model = opened
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, state.items, model.description, 1.0)
    spread = jax.device_put(
        jax.tree.map(jax.numpy.zeros_like, state), whole(make_mesh(MeshConfig()))
    )
    restored = TrainState.of_items(checkpoints.resume(spread.items, model.description)[1])
    checkpoints.close()
    assert_same(restored, state)
    assert restored.params["output.kernel"].sharding.device_set == set(jax.devices())


def test_the_best_and_the_last_are_kept(opened, tmp_path):
    _, state, model = opened
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step, objective in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5)):
        params = {n: p + step for n, p in model.params.items()}
        now = dataclasses.replace(state, step=jax.numpy.int32(step), params=params)
        checkpoints.save(step, now.items, model.description, objective)
    checkpoints.close()
    assert saved_steps(tmp_path) == [2, 4]
    for which, step in (("best", 2), ("last", 4)):
        loaded = TextModel.load(tmp_path, which=which)
        np.testing.assert_array_equal(
            loaded.params["output.bias"], model.params["output.bias"] + step
        )


def test_a_loaded_model_is_the_trained_one():
    config, _ = tiny.trained()
    model = TextModel.load(config.train.run_dir, which="last")
    assert_same(model.params, last_state(config).params)
    assert model.config == tiny.as_saved(config)
    assert model.buckets == (24,)
    assert model.tokenizer == prepare(config.data).tokenizer
    np.testing.assert_allclose(model.count_probabilities.sum(), 1, rtol=1e-6)


def test_loading_leaves_the_run_alone(tmp_path):
    source = tiny.trained()[0].train.run_dir
    run = shutil.copytree(source, tmp_path / "run")
    litter = run / FOLDER / "99.orbax-checkpoint-tmp-1"  # another process is saving
    (litter / "params").mkdir(parents=True)
    before = contents(run)
    for which in ("best", "last"):
        TextModel.load(run, which=which)
    assert contents(run) == before


# ---- going on


def step_losses(config):
    lines = Path(config.train.run_dir, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return {(r["step"], r["split"]): r["loss"] for r in records}, len(records)


class Crash(RuntimeError):
    pass


def crash_at(monkeypatch, step, error=Crash):
    """Make batch number `step` raise."""
    plain = loop.open_batches

    def broken(config, data, mesh, split, **kw):
        batches = plain(config, data, mesh, split, **kw)
        if split == "train":
            inner = batches.iterate

            def iterate(start):
                for i, batch in enumerate(inner(start), start + 1):
                    if i == step:
                        raise error
                    yield batch

            batches.iterate = iterate
        return batches

    monkeypatch.setattr(loop, "open_batches", broken)


def test_a_run_cut_off_goes_on_as_if_it_had_not_been(monkeypatch, capsys):
    """20 steps = 14 steps, a crash, `resume` from the checkpoint at 10: bit-equal in everything."""
    whole = tiny.trained()[0]
    config = tiny.with_train(whole, run_dir=str(tiny.folder() / "cut"))
    with monkeypatch.context() as patch:
        crash_at(patch, 15)
        with pytest.raises(Crash):
            loop.train(config)
    assert saved_steps(config.train.run_dir) == [10]
    assert (15, "train") not in step_losses(config)[0]
    # A record of a step beyond the checkpoint, and one cut off in the middle: dropped by resume.
    with open(f"{config.train.run_dir}/metrics.jsonl", "a", encoding="utf-8") as stream:
        stream.write('{"step": 12, "split": "train", "loss": 99.0}\n{"step": 13, "spl')
    loop.train(config, resume=True)
    assert "resumed at step 10" in capsys.readouterr().out
    assert_same(last_state(config), last_state(whole))
    assert step_losses(config) == step_losses(whole)


@pytest.mark.long
def test_more_steps_are_a_continuation():
    """10 steps, then `--train.steps 20`: the same as 20 at once, where the rate does not decay."""
    whole = tiny.trained()[0]
    assert whole.train.schedule == "constant"
    parts = tiny.with_train(whole, run_dir=str(tiny.folder() / "parts"), steps=10)
    loop.train(parts)
    loop.train(tiny.with_train(parts, steps=20, log_every=20), resume=True)
    assert_same(last_state(parts), last_state(whole))


def test_resuming_a_finished_run_gives_the_trained_model():
    config = tiny.trained()[0]
    run = tiny.folder() / "finished"
    shutil.copytree(config.train.run_dir, run)
    found = loop.train(tiny.with_train(config, run_dir=str(run)), resume=True)
    assert_same(found.model.params, last_state(config).params)


def test_resuming_with_fewer_steps_leaves_what_the_run_says_of_itself(tmp_path, capsys):
    """finished.json and config.json said 10 of a run of 20."""
    config = tiny.trained()[0]
    run = shutil.copytree(config.train.run_dir, tmp_path / "run")
    names = "finished.json", "config.json"
    before = {name: json.loads((run / name).read_text()) for name in names}
    fewer = tiny.with_train(config, run_dir=str(run), steps=10)
    loop.train(fewer, resume=True)
    assert {name: json.loads((run / name).read_text()) for name in before} == before
    assert "the run is at step 20 already; train.steps is 10" in capsys.readouterr().out


def test_resuming_with_fewer_steps_finishes_nothing(tmp_path):
    """A run that was cut short at step 20 of 40 was said to be finished at 20."""
    config = tiny.trained()[0]
    run = shutil.copytree(config.train.run_dir, tmp_path / "run")
    (run / "finished.json").unlink()
    loop.train(tiny.with_train(config, run_dir=str(run), steps=10), resume=True)
    assert not (run / "finished.json").exists()
    loop.train(tiny.with_train(config, run_dir=str(run)), resume=True)
    assert json.loads((run / "finished.json").read_text())["steps"] == 20


# ---- refusals


def test_a_run_is_never_overwritten():
    config = tiny.trained()[0]
    run = tiny.folder() / "trained"
    before = contents(run)
    with pytest.raises(FileExistsError, match=r"trained holds a run already; --resume continues"):
        loop.train(config)
    assert contents(run) == before


def test_resume_without_a_checkpoint(tmp_path):
    config = tiny.with_train(tiny.config(), run_dir=str(tmp_path / "new"))
    with pytest.raises(FileNotFoundError, match=r"new has no checkpoint; train without --resume"):
        loop.train(config, resume=True)
    assert not (tmp_path / "new").exists()


def test_an_unfinished_first_save_is_no_run(tmp_path):
    """Killed while saving: neither is there a run to continue nor one in the way."""
    (tmp_path / FOLDER / "5.orbax-checkpoint-tmp-17").mkdir(parents=True)
    assert saved_steps(tmp_path) == []
    config = tiny.with_train(tiny.config(), run_dir=str(tmp_path))
    assert loop._check_run_dir(config, False) == []


def test_resume_with_another_config_names_the_fields():
    config = tiny.trained()[0]
    run = tiny.folder() / "trained"
    before = contents(run)
    other = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, alpha_delta=0.5),
        objective=dataclasses.replace(config.objective, lambda_gaussian=0.25),
    )
    match = r"model.alpha_delta is 0.5, saved as 0.3; objective.lambda_gaussian is 0.25, saved as"
    with pytest.raises(ValueError, match=match):
        loop.train(other, resume=True)
    assert (run / "config.json").read_text() == to_json(tiny.as_saved(config))
    assert {p for p in before if FOLDER in p.parts} == {
        p for p in contents(run) if FOLDER in p.parts
    }


def test_resume_on_other_data_is_refused(opened):
    config, state, model = opened
    checkpoints = CheckpointReader(config.train.run_dir)
    other = model.described(buckets=(8, 24))
    with pytest.raises(ValueError, match=r"is of other data: its buckets differ"):
        checkpoints.restore(state.items, other.description)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda run: None, FileNotFoundError, r"run is no run: it has no folder checkpoints"),
        (lambda run: (run / FOLDER).mkdir(parents=True), FileNotFoundError, r"no finished check"),
        (lambda run: (run / FOLDER / "5.orbax-checkpoint-tmp-1").mkdir(parents=True),
         FileNotFoundError, r"no finished checkpoint"),
    ],
)  # fmt: skip
def test_a_folder_without_a_run(tmp_path, make, error, match):
    make(tmp_path / "run")
    with pytest.raises(error, match=match):
        TextModel.load(tmp_path / "run")


def test_which_is_best_or_last():
    with pytest.raises(ValueError, match=r"which is 'first'; wanted 'best' or 'last'"):
        TextModel.load(tiny.trained()[0].train.run_dir, which="first")


def edited(tmp_path, change):
    """A copy of the trained run whose saved meta data are changed."""
    run = tmp_path / "run"
    shutil.copytree(tiny.trained()[0].train.run_dir, run)
    for meta in run.glob(f"{FOLDER}/*/meta/metadata"):
        values = json.loads(meta.read_text())
        del values["sha256"]
        change(values)
        meta.write_text(json.dumps(seal(values)))
    return run


def test_a_checkpoint_of_another_format(tmp_path):
    run = edited(tmp_path, lambda meta: meta.update(format=99))
    with pytest.raises(ValueError, match=r"has format 99; this version reads 3"):
        TextModel.load(run)


def test_a_checkpoint_of_another_model(tmp_path):
    def wider(meta):
        config = from_json(meta["config"])
        model = dataclasses.replace(config.model, hidden=48)
        meta["config"] = to_json(dataclasses.replace(config, model=model))

    match = r"another model: .*down.kernel is saved as float32\[32, 16\], the config makes it float"
    with pytest.raises(ValueError, match=match):
        TextModel.load(edited(tmp_path, wider))


def test_a_checkpoint_with_a_field_this_version_lacks(tmp_path):
    def older(meta):
        meta["config"] = meta["config"].replace('"alpha_delta"', '"alpha_dleta"')

    match = r"config.model has no field 'alpha_dleta'; did you mean 'alpha_delta'"
    with pytest.raises(ValueError, match=match):
        TextModel.load(edited(tmp_path, older))
