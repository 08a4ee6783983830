"""Which checkpoints a run may go on from: those of 0.1.0, and none that differ in what is read."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import tiny

import nvib_jax
from nvib_jax.checkpoint.compatible import check_same_run
from nvib_jax.checkpoint.description import Description
from nvib_jax.data import prepare
from nvib_jax.presets import load_preset, to_json
from nvib_jax.sweep import changed

CONFIGS = Path(nvib_jax.__file__).parent.parent / "configs"
# The `data.clean` of a quickstart run's config.json, as version 0.1.0 wrote it.
CLEAN = """{
  "drop_headings": true,
  "split_sentences": true,
  "join_marks": true,
  "keep_characters": "a-zA-Z0-9 ,'<>.",
  "join_punctuation": true,
  "lowercase": true,
  "min_tokens": 6,
  "max_tokens": 49
}"""


def saved_by_0_1_0(model):
    """What a checkpoint of 0.1.0 says of this model: its own cleaning, and no digest."""
    values = json.loads(to_json(model.config))
    values["data"]["clean"] = json.loads(CLEAN)
    values["data"]["cache_dir"] = "/work/ref/cache"
    values["data"].pop("digest")
    values["train"]["run_dir"] = "/work/ref/runs/quickstart"
    return {**model.to_json(), "config": json.dumps(values)}


@pytest.fixture(scope="module")
def model():
    tokenizer = prepare(tiny.config().data).tokenizer
    return Description.create(tiny.config(), tokenizer, (24,), np.ones(3) / 3)


def with_config(model, config):
    return dataclasses.replace(model, config=config)


def test_a_quickstart_of_0_1_0_goes_on(model):
    """It was refused: data.clean.keep_characters has another default, which no grammar reads."""
    quickstart = with_config(model, load_preset(CONFIGS / "quickstart.py"))
    longer = changed(quickstart.config, {"train": {"steps": 4000, "run_dir": "elsewhere"}})
    check_same_run(with_config(model, longer), saved_by_0_1_0(quickstart), Path("run"))


def test_what_is_read_must_be_the_same(model):
    quickstart = with_config(model, load_preset(CONFIGS / "quickstart.py"))
    meta = saved_by_0_1_0(quickstart)
    other = changed(quickstart.config, {"objective": {"lambda_gaussian": 0.5}})
    with pytest.raises(
        ValueError, match=r"config: objective.lambda_gaussian is 0.5, saved as 0.1;"
    ):
        check_same_run(with_config(model, other), meta, Path("run"))
    text = with_config(model, changed(quickstart.config, {"data": {"source": "text"}}))
    with pytest.raises(ValueError, match=r"data.clean.keep_characters is '', saved as \"a-zA"):
        check_same_run(text, saved_by_0_1_0(text), Path("run"))
