"""Trials of `configs/trials`: they run, and are what they say; results are made at full length."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from nvib_jax.models.build import FAMILIES
from nvib_jax.models.params import AXES

WINDOW_GATE = Path(__file__).resolve().parent.parent / "configs" / "trials" / "window_gate.py"


@pytest.fixture
def trial(monkeypatch):
    """The trial's module; what it registers is taken back."""
    monkeypatch.setitem(FAMILIES, "window_gate", None)
    for name in ("gate_in.kernel", "gate_out.kernel"):
        monkeypatch.setitem(AXES, name, None)
    spec = importlib.util.spec_from_file_location("window_gate", WINDOW_GATE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "window_gate", module)
    spec.loader.exec_module(module)
    return module


def test_a_window_gate_cannot_count(trial):
    """The same words in the middle of a sentence have the same gate wherever they stand."""
    config = trial.WindowGateConfig(**tiny.SMALL, window=1, share=0.5)
    model = trial.WindowGateNVAE(config, vocab_size=20, max_length=9, rngs=nnx.Rngs(0))
    tokens = jnp.array([[4, 5, 6, 7, 8, 9, 10, 11, 0], [12, 13, 14, 4, 5, 6, 7, 8, 9]])
    mask = tokens > 0
    score = np.asarray(model.score(tokens, mask))
    np.testing.assert_allclose(score[0, 1:4], score[1, 4:7], rtol=1e-5)
    assert abs(score[0, 0] - score[1, 3]) > 1e-3  # another neighbour to the left
    posterior = model.encode(tokens, mask, jax.random.key(0))
    assert int(posterior.present[:, 1:].sum()) == 8  # of 17, the share of a half


@pytest.mark.long
def test_the_trial_holds_its_share(tmp_path):
    command = [sys.executable, str(WINDOW_GATE), "--run-dir", str(tmp_path / "run")]
    subprocess.run([*command, "--steps", "30", "--sentences", "64", "--window", "1"], check=True)
    found = json.loads((tmp_path / "run" / "trial.json").read_text())
    assert 0.35 < found["kept_hard"] < 0.55
    assert found["choice_position"] < 0.3
