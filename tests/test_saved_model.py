"""A model goes to the Hugging Face Hub, for which a folder stands in, and comes back."""

import dataclasses
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from huggingface_hub import ModelCard

import nvib_jax as nvib
from nvib_jax import hub
from nvib_jax.figures import in_words
from nvib_jax.text.card import model_card

COMMIT = "0123456789abcdef0123456789abcdef01234567"
EVALUATION = {
    "split": "test",
    "sentences": 512,
    "seed": 3,
    "scores": {"exact": 0.904, "bleu": 94.8, "growth": 1.0, "log_prob": None},
}


@pytest.fixture(scope="module")
def model():
    return nvib.load(tiny.trained()[0].train.run_dir)


@pytest.fixture
def the_hub(monkeypatch, tmp_path):
    """A folder that is the Hub, and what it was asked."""
    place, asked = tmp_path / "hub", []

    class Api:
        def create_repo(self, name, *, private, exist_ok):
            assert exist_ok
            asked.append(("create", name, private))
            (place / name).mkdir(parents=True, exist_ok=True)

        def create_branch(self, name, *, branch, exist_ok):
            asked.append(("branch", branch))

        def upload_folder(self, *, repo_id, folder_path, commit_message, revision):
            asked.append(("upload", repo_id, commit_message, revision))
            shutil.copytree(folder_path, place / repo_id / COMMIT)
            return SimpleNamespace(oid=COMMIT)

    def download(name, *, revision, allow_patterns, local_files_only):
        asked.append(("download", name, revision, allow_patterns, local_files_only))
        if not (place / name).is_dir():
            raise FileNotFoundError(f"404 for {name}")
        return str(place / name / COMMIT)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return SimpleNamespace(folder=place, asked=asked)


def test_there_and_back(model, the_hub, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    how = {"evaluation": EVALUATION, "private": True, "message": "first"}
    assert model.push_to_hub("me/small", **how) == COMMIT
    assert the_hub.asked == [("create", "me/small", True), ("upload", "me/small", "first", None)]
    files = {path.name for path in (the_hub.folder / "me/small" / COMMIT).iterdir()}
    assert files == {"model.safetensors", "model.json", "README.md"}
    said = []
    again = nvib.load("me/small", say=said.append)
    assert the_hub.asked[2:] == [
        ("download", "me/small", None, ["model.safetensors", "model.json"], False)
    ]
    assert said == [f"me/small: revision {COMMIT}"]
    assert again.params.keys() == model.params.keys()
    for name, value in model.params.items():
        np.testing.assert_array_equal(again.params[name], value, err_msg=name)


def test_a_revision_is_a_branch_there_and_asked_for_by_name(model, the_hub, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    model.push_to_hub("me/small", revision="wide")
    assert the_hub.asked[1:] == [
        ("branch", "wide"),
        ("upload", "me/small", "A model of nvib_jax", "wide"),
    ]
    said = []
    nvib.load("me/small", revision="wide", local_only=True, say=said.append)
    assert the_hub.asked[3][2:] == ("wide", ["model.safetensors", "model.json"], True)
    assert said == ["me/small: revision wide"]


def test_a_folder_is_not_looked_for_on_the_hub(the_hub, monkeypatch, tmp_path):
    """Nor is a misspelt name in a folder that is there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/quikstart", "quikstart", "./me/small", "a/b/c", tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="is no run: it has no folder checkpoints"):
            nvib.load(name)
    with pytest.raises(ValueError, match="revision is 'v1', but runs is a folder, which has none"):
        nvib.load("runs", revision="v1")
    assert the_hub.asked == []


def test_a_name_that_the_hub_does_not_have(the_hub, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    said = "me/none is no folder, and the Hub gave no model of this name"
    with pytest.raises(FileNotFoundError, match=rf"^{said}: 404 for me/none$"):
        nvib.load("me/none")
    with pytest.raises(FileNotFoundError, match=r"name \(only what was downloaded before was"):
        nvib.load("me/none", local_only=True)


def test_what_the_hub_does_not_take_is_said(model, the_hub, monkeypatch):
    def refuse(self, name, **_):
        raise LookupError("401  Unauthorized\nfor me")  # of no class that this library knows

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse, raising=False)
    for name in ("small", "me/small/x", "me/", "~/small"):
        with pytest.raises(ValueError, match=r"wanted USER/NAME, as in 'me/quickstart'"):
            model.push_to_hub(name)
    with pytest.raises(OSError, match=r"^the Hub did not take me/small: 401 Unauthorized for me$"):
        model.push_to_hub("me/small")
    assert the_hub.asked == []


def test_without_the_client_the_cure_is_named(model, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("huggingface_hub", "huggingface_hub.errors"):
        monkeypatch.setitem(sys.modules, name, None)
    for ask in (lambda: nvib.load("me/small"), lambda: model.push_to_hub("me/small")):
        with pytest.raises(ImportError, match=r"pip install 'nvib-jax\[hub\]'"):
            ask()


# ---- the card


def card_of(model, **how):
    return model_card(model.description, "me/small", parameters=1234, can=model.can, **how)


def test_the_card_says_what_it_is_and_how_to_use_it(model):
    text = card_of(model, evaluation=EVALUATION)
    header = ModelCard(text).data.to_dict()  # as the Hub reads it
    assert header == {"library_name": "nvib_jax", "tags": ["nvib", "jax", "text", "nvae"]}
    assert "# small\n" in text
    assert "| model | NVAE, 1,234 parameters, width 16 |" in text
    assert "| sentences | up to 24 tokens |" in text
    assert "| training | 20 steps of 16 sentences, seed 0 |" in text
    assert 'model = nvib.load("me/small")' in text
    assert "model.sample(5)" in text
    assert "Measured by `nvib evaluate` on 512 sentences of the test split, seed 3." in text
    assert "| sentences reconstructed exactly | 90.4% |\n| reconstruction BLEU" in text
    assert "| their exact log-probability, nats | - |" in text
    assert str(Path(tiny.folder())) not in text  # no folder of the machine
    assert "## Figures" not in card_of(model)


def test_a_card_shows_no_call_that_the_model_refuses(model):
    text = model_card(
        model.description, "me/small", parameters=1, can=lambda method: method == "embed"
    )
    assert "model.embed(" in text
    assert "model.sample(" not in text
    assert "model.reconstruct(" not in text


def test_every_kind_has_a_description(model):
    for kind in ("T", "VTV", "VTP", "VTS", "VTQ"):
        config = dataclasses.replace(
            model.config, model=dataclasses.replace(model.config.model, kind=kind)
        )
        text = card_of(model.described(config=config))
        assert f"with the latent {kind}, a rival of the nonparametric" in text
        assert f"| model | {kind}, 1,234 parameters" in text


def test_an_evaluation_without_scores_is_refused(model):
    for wrong in ({}, {"exact": 0.5}, {"scores": {"growth": 1.0}}):
        with pytest.raises(ValueError, match=r"no scores that a card shows; wanted what"):
            card_of(model, evaluation=wrong)


def test_figures_in_words():
    assert in_words({"bleu": float("nan"), "exact": 1.0}, {"exact": None}) == [
        ("sentences reconstructed exactly", ["100.0%", "-"]),
        ("reconstruction BLEU (sacrebleu)", ["-", "-"]),
    ]


@pytest.mark.parametrize("name", ["me/a", "a.b/c-d_e", "0/1"])
def test_names_of_the_hub(name):
    assert hub.is_name(name)
    assert not any(
        map(hub.is_name, (f"./{name}", f"/{name}", f"{name}/x", "a", "", "a /b", "../a"))
    )
