"""`nvib evaluate` end to end on the smallest run, and the tables beside its scores."""

import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest
import tiny

from nvib_jax import cli
from nvib_jax.data import prepare
from nvib_jax.evaluation import protocol
from nvib_jax.evaluation.collapse import collapse_report
from nvib_jax.evaluation.forms import (
    attention_distances,
    compare_budgets,
    compare_forms,
    compare_thresholds,
)
from nvib_jax.evaluation.language_model import LanguageModelConfig
from nvib_jax.evaluation.protocol import EvaluationConfig, evaluate_run, without_nan
from nvib_jax.evaluation.reconstruction import reconstruction_scores
from nvib_jax.evaluation.table import legend, load_scores, read_runs, save_scores, score_table
from nvib_jax.evaluation.usage import (
    attention_of,
    growth,
    token_usage,
    usage_by_length,
    vector_usage,
)
from nvib_jax.mixture import READS
from nvib_jax.text_model import TextModel

SMALL = EvaluationConfig(
    sentences=10, samples=20, draws=2, pairs=2, lm=LanguageModelConfig(dim=16, steps=5, heads=2)
)


@pytest.fixture(scope="module")
def run():
    return tiny.trained()[0].train.run_dir


@pytest.fixture(scope="module")
def model(run):
    return TextModel.load(run)


@pytest.fixture(scope="module")
def texts(model):
    return prepare(model.config.data).sentences("test", 10)


def evaluated(run, parent, config):
    """The evaluation of a copy of the run, because the run's own folder is everyone's."""
    folder = shutil.copytree(run, parent / "run")
    lines = []
    return folder, evaluate_run(folder, config, progress=lines.append), lines


@pytest.fixture(scope="module")
def found(run, tmp_path_factory):
    """What is quick to measure."""
    config = dataclasses.replace(SMALL, draws=0, pairs=0, forms=False, language_model=False)
    return evaluated(run, tmp_path_factory.mktemp("evaluated"), config)


def test_everything_is_there_and_is_what_was_written(run, tmp_path):
    folder, result, lines = evaluated(run, tmp_path, SMALL)
    assert json.loads((folder / "evaluation.json").read_text()) == result
    assert (folder / "checkpoints" / str(result["step"])).is_dir()
    assert result["split"] == "test"
    assert result["sentences"] == 10
    scores = result["scores"]
    for name in (
        *("exact", "bleu", "chrf", "token_accuracy", "kept_hard", "kept_soft", "growth"),
        *("elbo_token", "elbo_token_error", "perplexity", "iwae_1_token", "iwae_2_token"),
        *("iwae_token", "source_sentence", "gap_sentence", "mutual_information"),
        *("active_dimensions", "kl_per_vector", "sample_self_bleu", "sample_memorised"),
        *("sample_forward_perplexity", "data_perplexity", "in_language"),
        *("interpolation_bleu_a", "interpolation_new", "interpolation_largest_step"),
    ):
        assert name in scores, name
    assert scores["iwae_token"] == scores["iwae_2_token"] >= scores["iwae_1_token"]
    assert scores["gap_sentence"] > 0
    assert [row["form"] for row in result["forms"]] == list(READS)
    assert len(result["interpolations"]) == 2
    right = sum(row["exact"] * row["sentences"] for row in result["by_length"])
    assert right == pytest.approx(10 * scores["exact"])
    assert any("reconstructing 10 sentences" in line for line in lines)
    check_table((folder, result), "sample PPL", "ELBO/token", "half to a")


def check_table(found, *columns):
    runs = read_runs([found[0]])
    head, line = score_table(runs).splitlines()
    named = [line.split("  ")[0] for line in legend(runs).splitlines()]
    assert re.split(r"  +", head.strip()) == ["seeds", *named]  # each column, in order
    assert all(len(line) > 20 for line in legend(runs).splitlines())
    for column in ("BLEU", "kept %", *columns):
        assert column in head
    assert line.startswith("run")
    assert f"{found[1]['scores']['bleu']:.1f}" in line.split()


def test_the_table_of_a_run(found):
    check_table(found, "in lang. %")


def test_seeds_are_one_line(found, tmp_path):
    _, result, _ = found
    for seed in (0, 1):
        path = tmp_path / f"run-s{seed}"
        path.mkdir()
        copy = json.loads(json.dumps(result)) | {"name": path.name}
        copy["config"]["train"]["seed"] = seed
        copy["scores"]["bleu"] = 40.0 + 2 * seed
        (path / "evaluation.json").write_text(json.dumps(copy))
    runs = read_runs([tmp_path / "run-s0", tmp_path / "run-s1"])
    _, line = score_table(runs).splitlines()
    assert line.split()[:2] == ["run", "2"]
    assert "41.0 ±1.4" in line
    save_scores(runs, tmp_path / "scores.json")
    kept = load_scores(tmp_path / "scores.json")
    assert score_table(kept) == score_table(runs)
    head, rule, row = score_table(kept, ["bleu"], markdown=True).splitlines()
    assert (head, rule) == ("|  | seeds | BLEU |", "| --- | --: | --: |")
    assert row == "| run | 2 | 41.0 ±1.4 |"


def test_forms_by_their_own_functions(model, texts):
    rows = compare_forms(model, texts, forms=("exact", "drawn"))
    again = compare_forms(model, texts, forms=("drawn",))
    assert [row["form"] for row in rows] == ["exact", "drawn"]
    assert rows[1] == again[0]
    assert rows[0]["nats_per_token"] != rows[1]["nats_per_token"]


def test_distances_to_the_mean_of_draws(model, texts):
    """The mean of eight draws is nearer than a draw; with no noise all forms are the draw."""
    found = attention_distances(model, texts)
    assert set(found) == set(READS)
    assert 0 < found["expected_logit"] < found["drawn"]
    plain = dataclasses.replace(model, params=dict(model.params), _compiled={})
    plain.params["latent.log_variance.bias"] -= 60.0  # vectors without noise
    plain.params["latent.log_variance.kernel"] *= 0.0
    plain.params["latent.alpha_bias"] += 20.0  # weights without noise, the prior's of no weight
    plain.params["latent.alpha_linear"] *= 0.0
    for form, distance in attention_distances(plain, texts).items():
        assert distance < 1e-4, form


def test_a_budget_is_a_share_of_the_vectors(model, texts):
    """The whole is what `reconstruct` gives, a small share is less, and `keep` is the same."""
    rows = compare_budgets(model, texts, budgets=(0.2, 1.0))
    whole = reconstruction_scores(texts, model.reconstruct(texts))
    assert rows[1]["exact"] == whole["exact"]
    assert rows[1]["bleu"] == pytest.approx(whole["bleu"])
    assert 0.2 <= rows[0]["kept"] < rows[1]["kept"]
    part = reconstruction_scores(texts, model.reconstruct(texts, keep=0.2))
    assert rows[0]["bleu"] == pytest.approx(part["bleu"])
    assert model.reconstruct(texts, keep=24) == model.reconstruct(texts)
    for keep in (0, 1.5, -1, True, "half", float("nan")):
        with pytest.raises(ValueError, match=r"wanted a share as 0\.3, at most 1\.0, or a whole"):
            model.reconstruct(texts, keep=keep)


def test_thresholds_drop_vectors_and_leave_one(model, texts):
    rows = compare_thresholds(model, texts, thresholds=(0.0, 1e9))
    none, all_but_one = (row["kept"] for row in rows)
    assert none > all_but_one
    lengths = np.array([len(row) for row in model.tokenize(texts)])
    # The largest component stays: a token's vector or the prior's.
    assert all_but_one <= float((1 / lengths).mean()) + 1e-6


@pytest.mark.parametrize("form", ["average", "drawn"])
def test_kept_are_vectors_however_often_each_is_drawn(model, texts, form):
    options = dataclasses.replace(model.config.model, evaluation_form=form, num_samples=3)
    drawing = tiny.open_model(
        dataclasses.replace(model.config, model=options), prepare(model.config.data)
    )
    kept = [row["kept"] for row in compare_thresholds(drawing, texts, thresholds=(0.0, 1e9))]
    assert kept[0] == 1.0
    assert kept[1] < 0.5


def test_a_latent_that_pools_is_told_by_its_kind(model, texts, monkeypatch):
    """Eight vectors are as many as the tokens of a batch in the bucket of 8, and mean others."""
    monkeypatch.setattr("nvib_jax.text.engine.FEW", 1)  # as if the texts were a thousand
    options = dataclasses.replace(model.config.model, kind="VTQ", latent_queries=8)
    config = dataclasses.replace(
        model.config, model=options, data=dataclasses.replace(model.config.data, buckets=(8, 24))
    )
    pooling = tiny.open_model(config, prepare(config.data))
    lengths = [len(row) for row in pooling.tokenize(texts)]
    assert min(lengths) <= 8 < max(lengths)  # two buckets
    for text, row in zip(texts, token_usage(pooling, texts), strict=True):
        assert row["tokens"] == text.split()
        assert row["pseudo_counts"] == []
    assert vector_usage(pooling, texts)["kept_soft"] > 0
    assert collapse_report(pooling, texts)["pseudo_count"] == 1.0
    assert attention_of(pooling, texts[0])[2] == ["prior", *map(str, range(1, 9))]


def test_usage_by_length_adds_up_to_the_share(model, texts):
    rows = usage_by_length(model, texts)
    assert sum(row["sentences"] for row in rows) == len(texts)
    share = sum(r["sentences"] * r["vectors"] / r["length"] for r in rows) / len(texts)
    assert share == pytest.approx(vector_usage(model, texts)["kept_hard"], rel=1e-6)


def test_growth_by_hand():
    rows = [{"length": n, "sentences": 3, "vectors": 2 * n**0.5} for n in (4, 9, 30)]
    assert growth(rows) == pytest.approx(0.5)
    assert growth([{**row, "vectors": row["length"] / 3} for row in rows]) == pytest.approx(1)
    assert math.isnan(growth(rows[:1]))


def test_tokens_have_their_vectors(model, texts):
    for text, row in zip(texts[:3], token_usage(model, texts[:3]), strict=True):
        assert " ".join(row["tokens"]).split() == text.split()
        assert len(row["tokens"]) == len(row["pseudo_counts"]) == len(row["attention"])
        assert 0 < sum(row["attention"]) <= 1 + 1e-5
        assert min(row["pseudo_counts"]) >= 0


def test_attention_by_word_is_what_token_usage_averages(model, texts):
    text = texts[0]
    attention, rows, columns = attention_of(model, text)
    words = text.split()
    assert (rows, columns) == ([*words, "(end)"], ["prior", *words])
    assert attention.shape == (len(rows), len(columns))
    np.testing.assert_allclose(attention.sum(1), 1, atol=1e-5)
    (usage,) = token_usage(model, [text])
    np.testing.assert_allclose(attention.mean(0)[1:], usage["attention"], atol=1e-6)


def test_what_is_switched_off_is_not_measured(run, monkeypatch):
    monkeypatch.setattr(protocol, "importance_bounds", None)
    monkeypatch.setattr(protocol, "begin_language_model", None)
    config = EvaluationConfig(sentences=4, samples=0, draws=0, pairs=0, forms=False)
    data = prepare(TextModel.load(run).config.data)
    result = protocol.measure(TextModel.load(run), data, config)
    assert "forms" not in result
    assert "samples" not in result
    assert "interpolations" not in result
    assert result["split"] == "test"


def test_a_single_sentence_has_no_way_to_another(run):
    config = EvaluationConfig(sentences=1, samples=0, draws=0, forms=False, language_model=False)
    model = TextModel.load(run)
    result = protocol.measure(model, prepare(model.config.data), config)
    assert result["sentences"] == 1
    assert "interpolations" not in result
    assert math.isnan(result["scores"]["elbo_token_error"])


@pytest.mark.parametrize("name", ["sentences", "samples", "draws", "seed"])
def test_negative_sizes(name):
    with pytest.raises(ValueError, match=f"{name} is -1; wanted at least 0"):
        EvaluationConfig(**{name: -1})


def test_nan_is_none():
    assert without_nan({"a": [1.0, float("nan")], "b": (float("inf"), "x", 2)}) == {
        "a": [1.0, None],
        "b": [None, "x", 2],
    }


def test_commands_without_a_run(capsys):
    for command in ("evaluate", "report"):
        assert cli.main([command]) == 1
        assert "no run was given; wanted folders" in capsys.readouterr().err
    assert cli.main(["evaluate", "/nowhere/at/all"]) == 1
    assert "/nowhere/at/all" in capsys.readouterr().err
