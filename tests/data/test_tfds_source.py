"""TFDS, for real: a builder of our own, prepared in array_record, read without TensorFlow."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from nvib_jax.data.config import CleanConfig, DataConfig
from nvib_jax.data.prepare import cache_hash, prepare
from nvib_jax.data.sources import has_split, read_sentences, resolve_layout

COUNTS = {"train": 120, "test": 30}


def review(split, i):
    return f"Review {i} of the {split} set. The café was quite good, said person {i * 7}."


class NvibTinyReviews(tfds.core.GeneratorBasedBuilder):
    """Two sentences an example; no validation split."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"text": tfds.features.Text(), "stars": tfds.features.Scalar(np.int64)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split):
        for i in range(COUNTS[split]):
            yield i, {"text": review(split, i), "stars": i % 5}


class NvibNeedsTensorflow(NvibTinyReviews):
    """Its generation imports TensorFlow, as that of many data sets does."""

    def _generate_examples(self, split):
        import tensorflow

        yield 0, {"text": str(tensorflow), "stars": 0}


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    builder = NvibTinyReviews(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return folder


@pytest.fixture
def config(tfds_dir, tmp_path):
    return DataConfig(
        source="tfds:nvib_tiny_reviews",
        tfds_dir=str(tfds_dir),
        cache_dir=str(tmp_path),
        vocab_size=120,
        clean=CleanConfig(min_tokens=1),
    )


def test_every_example_is_read_once(config):
    documents = list(read_sentences(config, "train"))
    assert sorted(documents) == sorted(review("train", i) for i in range(120))
    assert "tensorflow" not in sys.modules


def test_splits_default_to_their_names_and_take_slices(config, tfds_dir):
    assert has_split(config, "train")
    assert not has_split(config, "validation")
    named = DataConfig(
        source=config.source,
        tfds_dir=str(tfds_dir),
        train=("train[:75%]",),
        validation=("train[75%:]", "test"),
    )
    train, validation = (list(read_sentences(named, s)) for s in ("train", "validation"))
    assert len(train) == 90
    assert len(validation) == 60
    assert not set(train) & set(validation)


def test_prepared_end_to_end(config):
    data = prepare(config)
    assert sorted(data.lengths) == ["test", "train"]
    assert resolve_layout(config) == "running"
    assert len(data.lengths["train"]) == 240
    expected = {"the café was quite good, said person 7.", "review 1 of the train set."}
    assert expected <= set(data.sentences("train"))
    with pytest.raises(ValueError, match=r"no split 'validation', only .'test', 'train'."):
        data.split_lengths("validation")


READ_ONLY = """
import dataclasses, sys
from nvib_jax.data import DataConfig, prepare

config = DataConfig(source="tfds:nvib_tiny_reviews", tfds_dir=sys.argv[1], cache_dir=sys.argv[2],
                    vocab_size=120)
print(prepare(config).metadata["splits"]["train"]["sentences"], "tensorflow" in sys.modules)
"""


def test_prepared_data_need_no_builder(tfds_dir, tmp_path):
    """In a process that knows nothing of the class, as `nvib prepare` is."""
    command = [sys.executable, "-c", READ_ONLY, str(tfds_dir), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["240", "False"]


def test_an_unprepared_data_set_is_prepared(tmp_path):
    config = DataConfig(source="tfds:nvib_tiny_reviews", tfds_dir=str(tmp_path))
    assert len(list(read_sentences(config, "test"))) == 30
    assert list(tmp_path.rglob("*.array_record*"))


def test_the_hash_follows_the_shards(config, tmp_path, tfds_dir):
    import shutil

    before = cache_hash(config)
    moved = tmp_path / "moved"
    shutil.copytree(tfds_dir, moved)
    elsewhere = DataConfig(**{**vars(config), "tfds_dir": str(moved)})
    assert cache_hash(elsewhere) == before
    shard = next(moved.rglob("*train.array_record*"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert cache_hash(elsewhere) != before


# ---- what bad names get


def test_unknown_name_gets_the_nearest(tfds_dir):
    config = DataConfig(source="tfds:nvib_tiny_review", tfds_dir=str(tfds_dir))
    message = r"TFDS has no data set 'nvib_tiny_review' .the nearest are .*nvib_tiny_reviews"
    with pytest.raises(ValueError, match=message):
        next(read_sentences(config, "train"))


def test_unknown_split_and_feature(config):
    with pytest.raises(ValueError, match=r"no split 'dev' .data.test., only .'test', 'train'."):
        list(read_sentences(DataConfig(**{**vars(config), "test": ("dev",)}), "test"))
    for feature, message in [("body", "no feature 'body'"), ("stars", "no text in 'stars'")]:
        with pytest.raises(ValueError, match=rf"{message} .data.text_feature.*are \['text'\]"):
            list(read_sentences(DataConfig(**{**vars(config), "text_feature": feature}), "train"))


@pytest.mark.parametrize("file_format", ["tfrecord", "parquet"])
def test_other_formats_are_refused(config, tmp_path, tfds_dir, file_format):
    import shutil

    shutil.copytree(tfds_dir, tmp_path / "copy")
    info = next((tmp_path / "copy").rglob("dataset_info.json"))
    content = json.loads(info.read_text())
    content["fileFormat"] = file_format
    info.write_text(json.dumps(content))
    moved = DataConfig(**{**vars(config), "tfds_dir": str(tmp_path / "copy")})
    message = rf"as {file_format}, expected array_record.*nvib-jax\[tf\]"
    with pytest.raises(ValueError, match=message):
        list(read_sentences(moved, "train"))


@pytest.mark.skipif("tensorflow" in sys.modules, reason="TensorFlow is here")
def test_needing_tensorflow_is_said(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    config = DataConfig(source="tfds:nvib_needs_tensorflow", tfds_dir=str(tmp_path))
    message = r"tfds:nvib_needs_tensorflow needs TensorFlow, .*pip install 'nvib-jax\[tf\]'"
    with pytest.raises(ValueError, match=message):
        next(read_sentences(config, "train"))
