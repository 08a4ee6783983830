"""Damage on disk: any bit that was flipped is found before anything made of it is given."""

import json
import shutil

import numpy as np
import pytest

from nvib_jax.data import prepared, token_file
from nvib_jax.data.prepare import prepare
from nvib_jax.data.prepared import PreparedData

from .corpora import grammar_config

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
