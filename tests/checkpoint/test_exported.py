"""A model as safetensors and JSON: written, read back, and refused where it is not whole."""

import errno
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors import safe_open

from nvib_jax.checkpoint.description import Description, without_places
from nvib_jax.checkpoint.exported import DESCRIPTION, WEIGHTS, export, load_exported
from nvib_jax.cli import main
from nvib_jax.data import prepare
from nvib_jax.presets import from_json
from nvib_jax.sweep import changed
from nvib_jax.text_model import TextModel


@pytest.fixture(scope="module")
def exported():
    folder = tiny.folder() / "exported"
    shutil.rmtree(folder, ignore_errors=True)
    files = exported_to(folder, TextModel.load(tiny.trained()[0].train.run_dir))
    assert [file.name for file in files] == [WEIGHTS, DESCRIPTION]
    return folder


def exported_to(folder, model):
    return export(model.description, model.params, folder)


def tiny_model(config=None):
    """Anything to export, untrained."""
    config = config or tiny.config()
    tokenizer = prepare(tiny.config().data).tokenizer
    params = {"one": jnp.ones(3)}
    return TextModel(Description.create(config, tokenizer, (24,), np.ones(3) / 3), params)


def test_what_is_read_is_what_was_written(exported):
    """Bit-equal parameters, the same config, tokenizer and counts; and so the same sentences."""
    model = TextModel.load(tiny.trained()[0].train.run_dir)
    again = TextModel.load(exported)
    assert again.params.keys() == model.params.keys()
    for name, value in model.params.items():
        np.testing.assert_array_equal(again.params[name], value, err_msg=name)
        assert again.params[name].shape == value.shape, name
    assert (again.config, again.buckets) == (without_places(model.config), model.buckets)
    assert again.tokenizer == model.tokenizer
    np.testing.assert_array_equal(again.count_probabilities, model.count_probabilities)
    assert again.sample(2) == model.sample(2)


def test_anyone_can_read_it(exported):
    """By safetensors alone; the names are the parameters', the shapes theirs."""
    with safe_open(exported / WEIGHTS, "numpy") as file:
        assert "output.kernel" in file.keys()  # noqa: SIM118 (no mapping)
        assert file.get_tensor("output.kernel").shape == (16, 430)
        assert file.get_tensor("latent.prior_values.alpha_delta").shape == ()
    described = json.loads((exported / DESCRIPTION).read_text())
    assert json.loads(described["config"])["model"]["dim"] == 16


def test_the_command(tmp_path, capsys):
    run = tiny.trained()[0].train.run_dir
    assert main(["export", run, "--out", str(tmp_path / "out"), "--checkpoint", "last"]) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / "out" / name) for name in (WEIGHTS, DESCRIPTION)
    ]
    assert main(["sample", str(tmp_path / "out"), "--count", "1"]) == 0
    assert main(["export", run, "--out", str(tmp_path / "out")]) == 1
    assert "holds a run or an exported model; name another folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION])
def test_what_cannot_be_written_is_named_and_leaves_nothing(monkeypatch, tmp_path, name):
    """The one file was named for the other, and what was left of the first refused the second."""
    model = tiny_model()
    plain = Path.replace

    def replace(self, target):
        if Path(target).name == name:
            raise OSError(errno.EIO, "Input/output error")
        return plain(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(OSError, match=rf"^\S+/{name} cannot be written: Input/output error$"):
            exported_to(tmp_path / "out", model)
    assert list((tmp_path / "out").iterdir()) == []
    exported_to(tmp_path / "out", model)


def test_no_folder_of_the_trainer_goes_with_it(tmp_path):
    """Its home, its disks and the name of its user were all in model.json."""
    data = {
        "source": "text", "digest": "0" * 16, "train": ("/home/me/a/train.txt", "b/more.txt"),
        "validation": ("~/me/valid.txt",), "tfds_dir": "/home/me/tfds", "cache_dir": "/home/me/c",
    }  # fmt: skip
    config = changed(tiny.config(), {"data": data, "train": {"run_dir": "/home/me/runs/x"}})
    exported_to(tmp_path / "out", tiny_model(config))
    written = (tmp_path / "out" / DESCRIPTION).read_text()
    assert "me/" not in written
    assert str(tiny.folder()) not in written
    found = from_json(json.loads(written)["config"])
    assert found.data.train == ("train.txt", "b/more.txt")
    assert (found.data.validation, found.data.digest) == (("valid.txt",), "0" * 16)
    assert (found.model, found.objective) == (config.model, config.objective)


def damaged(exported, tmp_path, change):
    folder = Path(shutil.copytree(exported, tmp_path / "copy"))
    change(folder)
    return folder


def drop(name):
    return lambda folder: (folder / name).unlink()


def cut(name):
    def change(folder):
        file = folder / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return change


def other_config(folder):
    values = json.loads((folder / DESCRIPTION).read_text())
    values["config"] = values["config"].replace('"hidden": 32', '"hidden": 48')
    (folder / DESCRIPTION).write_text(json.dumps(values))


def other_format(folder):
    values = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps({**values, "format": 1}))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (drop(DESCRIPTION), FileNotFoundError, r"copy is no exported model: it has no model.json"),
        (cut(DESCRIPTION), ValueError, r"copy is damaged"),
        (cut(WEIGHTS), ValueError, r"copy is damaged"),
        (other_config, ValueError, r"other parameters than its model.json says: decoder.layers"),
        (other_format, ValueError, r"copy has format 1; this version reads 3"),
    ],
)
def test_what_is_not_whole_is_refused(exported, tmp_path, change, error, match):
    with pytest.raises(error, match=match):
        load_exported(damaged(exported, tmp_path, change))
