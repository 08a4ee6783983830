"""Too little memory: refused where that is certain, one sentence where it happens."""

import dataclasses

import jax
import pytest
import tiny

from nvib_jax import cli
from nvib_jax.config import MeshConfig
from nvib_jax.training import loop
from nvib_jax.training.guards import memory
from nvib_jax.training.sharding import make_mesh

LIMIT = 2**20


@pytest.fixture
def little(monkeypatch):
    """A device of one MiB."""
    monkeypatch.setattr(memory, "available", lambda mesh: LIMIT)


def shapes(count=1000):
    return {"kernel": jax.ShapeDtypeStruct((count,), "float32")}


@pytest.mark.usefixtures("little")
def test_a_batch_that_cannot_fit_is_refused_before_anything_is_written(tmp_path):
    config = tiny.with_train(tiny.config(), run_dir=str(tmp_path / "run"), accumulate=2)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=80_000))
    with pytest.raises(ValueError) as error:
        loop.train(config)
    said = str(error.value)
    assert "on each device, which has 0.0: 80,000 sentences of up to 24 tokens in 2 parts" in said
    for cure in ("--data.batch-size", "--train.accumulate", "--model.remat", "--dry-run"):
        assert cure in said
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("little")
def test_the_least_is_counted_by_hand():
    """Width 16, two layers, 24 tokens, float32: 3,072 bytes a sentence; 16 a parameter."""
    config, mesh = tiny.config(), make_mesh(MeshConfig(data=1))

    def check(rows, count, mesh=mesh, accumulate=1):
        data = dataclasses.replace(config.data, batch_size=rows)
        changed = tiny.with_train(dataclasses.replace(config, data=data), accumulate=accumulate)
        memory.check_memory(changed, mesh, shapes(count), 24)

    check(341, 0)
    for rows, count in ((342, 0), (341, 66), (1, 65_536)):
        with pytest.raises(ValueError, match=r"a step needs at least 0.0 GiB"):
            check(rows, count)
    check(341, 62)
    check(341 * 2, 0, accumulate=2)
    check(341 * 4, 0, make_mesh(MeshConfig(data=4)))


def test_a_machine_says_what_it_has():
    mesh = make_mesh(MeshConfig())
    assert 2**26 < memory.available(mesh) * mesh.size < 2**45


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes."),
        RuntimeError("std::bad_alloc"),
        MemoryError(),
    ],
)
def test_running_out_is_one_sentence(error, tmp_path, monkeypatch, capsys):
    """A traceback, before."""

    def step(*_, **__):
        raise error

    monkeypatch.setattr(loop, "make_train_step", lambda *a, **k: step)
    (tmp_path / "little.py").write_text(
        "from nvib_jax.presets import from_json\n"
        f"def config():\n    return from_json({loop.to_json(tiny.config())!r})\n"
    )
    arguments = ["train", str(tmp_path / "little.py"), "--train.run-dir", str(tmp_path / "run")]
    assert cli.main(arguments) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith(
        "nvib train: there is too little memory for 16 sentences of up to 24 tokens in 1 parts, "
    )
    assert "turn down --data.batch-size, turn up --train.accumulate, or --model.remat" in err


def test_another_error_is_left_as_it_is():
    with (
        pytest.raises(RuntimeError, match=r"^a driver$"),
        memory.memory_explained(tiny.config(), shapes(), 24),
    ):
        raise RuntimeError("a driver")


def test_a_librarys_error_is_one_line(monkeypatch, capsys):
    def broken(name, rest):
        raise RuntimeError("UNKNOWN: write()\nfailed")

    monkeypatch.setattr(cli, "_run", broken)
    assert cli.main(["prepare", "x.py"]) == 1
    assert capsys.readouterr().err == "nvib prepare: UNKNOWN: write() failed; --debug shows where\n"
    with pytest.raises(RuntimeError):
        cli.main(["prepare", "x.py", "--debug"])
