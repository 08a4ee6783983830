"""Runs of the kinds without noise, from training to their evaluation."""

import dataclasses

import numpy as np
import pytest
import tiny

from nvib_jax.evaluation.language_model import LanguageModelConfig
from nvib_jax.evaluation.protocol import EvaluationConfig, evaluate_run
from nvib_jax.text_model import TextModel
from nvib_jax.training import loop

SMALL = EvaluationConfig(
    sentences=10, samples=20, draws=2, pairs=2, lm=LanguageModelConfig(dim=16, steps=5, heads=2)
)


@pytest.mark.parametrize("kind", ["VQ", "AAE"])
def test_a_run_trains_goes_on_writes_and_is_evaluated(kind, tmp_path):
    config = tiny.config(steps=6, eval_every=3)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, kind=kind, codes=16),
        train=dataclasses.replace(config.train, run_dir=str(tmp_path / "run")),
    )
    whole = loop.train(tiny.with_train(config, run_dir=str(tmp_path / "whole"))).model
    loop.train(tiny.with_train(config, steps=3))
    model = loop.train(config, resume=True).model
    for name, value in whole.params.items():
        np.testing.assert_array_equal(model.params[name], value, err_msg=name)
    fresh = model.description.fresh()
    moved = {n for n, p in model.params.items() if bool(np.any(np.asarray(p) != fresh[n]))}
    parts = ("codebook", "code_use", "code_prior") if kind == "VQ" else ("up", "judge")
    assert all(any(n.startswith(f"latent.{part}") for n in moved) for part in parts)

    model = TextModel.load(config.train.run_dir)
    texts = ["the dog sees a cat", "a cat sees the dog"]
    assert len(model.reconstruct(texts)) == 2
    assert len(model.sample(3, lengths=[1, 2, 5])) == 3
    assert len(model.interpolate(*texts, steps=3)) == 3

    found = evaluate_run(config.train.run_dir, SMALL, progress=lambda line: None)
    scores = found["scores"]
    assert found["kind"] == kind
    assert scores["in_language"] is not None
    assert scores["kl_gaussian"] == scores["kl_dirichlet"] == 0
    if kind == "AAE":
        assert scores["elbo_token"] is None
        with pytest.raises(
            ValueError, match="the kind AAE has no density; wanted a variational latent"
        ):
            model.score(texts)
        return
    parts = scores["log_likelihood"] + scores["log_prob_count"] - scores["kl_codes"]
    assert scores["elbo_sentence"] == pytest.approx(parts, abs=1e-3)
    assert 0 < scores["kl_codes"] < 20 * np.log(16) * 1.5
    # Codes are certain, so every draw is the same, and more of them are no tighter bound.
    assert scores["iwae_2_sentence"] == pytest.approx(scores["iwae_1_sentence"], abs=1e-3)
    assert 0 <= scores["mutual_information"] <= scores["mutual_information_most"] + 1e-5
