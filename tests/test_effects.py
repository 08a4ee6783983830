"""Fields without effect are named, and refused where they are typed; schedules end in the run."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import tiny
from flax import nnx

import nvib_jax
from nvib_jax import cli
from nvib_jax.config import Config, ObjectiveConfig
from nvib_jax.effects import check_typed, remarks, without_effect
from nvib_jax.models.config import CausalConfig, DenoisingConfig
from nvib_jax.presets import load_preset
from nvib_jax.sweep import changed
from nvib_jax.training import loop
from nvib_jax.training.loss import loss_and_metrics

PRESETS = sorted((Path(nvib_jax.__file__).parent.parent / "configs").glob("*.py"))
# A config under which each field has an effect, by the fields that it needs.
NEEDS = {
    "model.pool": {"model": {"kind": "VTP"}},
    "model.stride_share": {"model": {"kind": "VTS"}},
    "model.latent_queries": {"model": {"kind": "VTQ"}},
    "model.codes": {"model": {"kind": "VQ"}},
    "model.code_gradient": {"model": {"kind": "VQ"}},
    "model.adversary": {"model": {"kind": "AAE"}},
    "objective.mmd_of": {"objective": {"lambda_mmd": 1.0}},
    "objective.mmd_bandwidth": {"objective": {"lambda_mmd": 1.0}},
    "model.initial_kept": {"model": {"pseudo_count": "relu"}},
    "train.weight_decay": {"train": {"optimizer": "adamw"}},
    "objective.free_vectors": {"objective": {"vector_price": 1.0}},
    "objective.anneal_steps": {"objective": {"anneal": "linear"}},
    "objective.dirichlet_from_start": {"objective": {"anneal": "cosine"}},
    "objective.anneal_cycle": {"objective": {"anneal": "cyclic", "anneal_cycle": 9}},
    "objective.alpha_delta_steps": {"objective": {"alpha_delta_start": 0.1}},
    "objective.capacity_steps": {"objective": {"capacity_gaussian": 0.1}},
    "data.layout": {"data": {"source": "text"}},
    "data.tfds_dir": {"data": {"source": "tfds:x"}},
    "data.num_train": {"data": {"source": "grammar"}},
    "data.clean.min_tokens": {"data": {"source": "text"}},
    "model.threshold": {"model": {"kind": "NVAE"}},
    "model.num_samples": {"model": {"kind": "VTV"}},
    "objective.lambda_gaussian": {"model": {"kind": "VTP"}},
    "objective.anneal": {"model": {"kind": "VTS"}},
    "objective.lambda_dirichlet": {"model": {"kind": "NVAE"}},
    "objective.dirichlet_form": {"model": {"kind": "NVAE"}},
    "objective.free_dirichlet": {"model": {"kind": "NVAE"}},
    "objective.capacity_dirichlet": {"model": {"kind": "NVAE"}},
    "objective.vector_price": {"model": {"kind": "NVAE"}},
}
GRAMMAR = ("data.layout", "data.tfds_dir", "data.clean.min_tokens")
IDLE = changed(
    Config(), {"train": {"optimizer": "adam"}, "data": {"source": "text"}, "model": {"kind": "T"}}
)


@pytest.mark.parametrize("name", NEEDS)
def test_a_field_has_an_effect_where_it_is_read_and_nowhere_else(name):
    idle = Config() if name in GRAMMAR else IDLE
    assert name in without_effect(idle)
    assert name not in without_effect(changed(Config(), NEEDS[name]))


@pytest.mark.parametrize("kind", ["VQ", "AAE"])
def test_what_takes_no_noise_has_no_kl_of_gaussians(kind):
    idle = without_effect(changed(Config(), {"model": {"kind": kind}}))
    for name in ("model.num_samples", "model.evaluation_form", "objective.lambda_gaussian"):
        assert idle[name] == "another model.kind than T, VQ and AAE"
    assert idle["model.alpha_delta"] == "model.kind NVAE"
    assert ("model.stride_share" in idle) == (kind == "AAE")
    assert ("model.pool" in idle) == (kind == "VQ")


def test_every_name_in_the_table_is_a_field():
    for name in {**without_effect(Config()), **without_effect(IDLE)}:
        *sections, field = name.split(".")
        part = functools.reduce(getattr, sections, Config())
        assert field in {f.name for f in dataclasses.fields(part)}, name


@pytest.mark.parametrize("model", [DenoisingConfig, CausalConfig])
def test_a_stack_without_bottlenecks_has_nothing_to_weigh(model):
    idle = without_effect(Config(model=model(nvib_layers=0)))
    some = without_effect(Config(model=model()))
    assert idle["model.alpha_delta"] == idle["objective.lambda_gaussian"] == "model.nvib_layers"
    assert "model.alpha_delta" not in some
    assert some["objective.vector_price"] == "an NVAE"
    fields = {f"model.{field.name}" for field in dataclasses.fields(model)}
    assert {name for name in idle if name.startswith("model.")} <= fields
    assert remarks(Config(model=model(nvib_layers=0, alpha_delta=0.5))) == [
        "without effect here: model.alpha_delta"
    ]


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_the_presets_set_nothing_in_vain(path):
    assert remarks(load_preset(path)) == []


def test_what_a_preset_sets_in_vain_is_one_line():
    config = changed(
        Config(), {"model": {"pool": "max"}, "objective": {"free_vectors": 0.5, "anneal_steps": 7}}
    )
    assert remarks(config) == [
        "without effect here: model.pool, objective.free_vectors, objective.anneal_steps"
    ]


@pytest.mark.parametrize(
    "arguments",
    [["--model.pool", "max"], ["--model.pool=max"], ["--train.weight-decay", "0.1"],
     ["--objective.free_vectors", "0.5"], ["--data.layout", "lines"],
     ["--data.clean.min-tokens", "2"], ["--data.clean.no-lowercase"]],
    ids=" ".join,
)  # fmt: skip
def test_an_option_without_effect_is_refused(arguments):
    config = changed(Config(), {"train": {"optimizer": "adam"}})
    name = arguments[0].partition("=")[0]
    with pytest.raises(ValueError, match=rf"^{name} has no effect without "):
        check_typed(["--train.steps", "3", *arguments], config)
    check_typed(["--train.steps", "3"], config)


@pytest.mark.parametrize(
    "name",
    ["model.threshold", "objective.lambda-dirichlet", "objective.free-dirichlet",
     "objective.dirichlet-form", "objective.capacity-dirichlet", "objective.gaussian-form",
     "objective.no-dirichlet-from-start", "objective.vector-price"],
)  # fmt: skip
def test_a_rival_has_no_pseudo_counts_to_set(name):
    """Its Dirichlet KL is 0, its Gaussian one always exact, its vectors cannot go."""
    rival = changed(Config(), {"model": {"kind": "VTV"}, "objective": {"anneal": "linear"}})
    with pytest.raises(ValueError, match=rf"^--{name} has no effect without model.kind NVAE"):
        check_typed([f"--{name}", "7"], rival)
    check_typed(["--objective.lambda-gaussian", "7"], rival)


def test_what_has_no_effect_trains_no_rival_otherwise():
    """A change of fields that are said to be idle leaves the gradient alone; another does not."""
    key, one, batch = jax.random.key(0), jnp.ones((), jnp.int32), tiny.batch()
    plain = ObjectiveConfig(gaussian_form="exact", lambda_gaussian=1.0)
    idle = dataclasses.replace(
        plain, lambda_dirichlet=7.0, dirichlet_form="exact", free_dirichlet=2.0, vector_price=3.0,
        gaussian_form="expected_count", dirichlet_from_start=True,
    )  # fmt: skip
    model = tiny.model(kind="VTV")

    @jax.jit
    def gradients(model):
        return [
            nnx.grad(lambda m, o=o: loss_and_metrics(m, batch, key, one, o)[0])(model).latent.mean
            for o in (plain, idle, dataclasses.replace(plain, lambda_gaussian=2.0))
        ]

    first, same, other = (jax.tree.leaves(g) for g in gradients(model))
    assert all(bool(jnp.all(a == b)) for a, b in zip(first, same, strict=True))
    assert not any(bool(jnp.allclose(a, b)) for a, b in zip(first, other, strict=True))


def test_the_command_refuses_it(tmp_path, capsys):
    (tmp_path / "little.py").write_text(
        "from nvib_jax.config import Config\ndef config():\n    return Config()\n"
    )
    assert cli.main(["train", str(tmp_path / "little.py"), "--model.pool", "max"]) == 1
    said = "nvib train: --model.pool has no effect without model.kind VTP or AAE\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"objective": {"anneal": "linear", "anneal_start": 500, "anneal_steps": 600}},
         ["the run ends at step 1000 (train.steps), before objective.anneal_start + anneal_steps "
          "does, at step 1100"]),
        ({"objective": {"anneal": "linear", "anneal_start": 400, "anneal_steps": 600}}, []),
        ({"objective": {"alpha_delta_start": 0.1, "alpha_delta_steps": 1001}},
         ["the run ends at step 1000 (train.steps), before objective.alpha_delta_steps does, at "
          "step 1001"]),
        ({"objective": {"capacity_dirichlet": 0.1, "capacity_steps": 2000}},
         ["the run ends at step 1000 (train.steps), before objective.capacity_steps does, at step "
          "2000"]),
        ({"train": {"steps": 50}},
         ["the run ends at step 50 (train.steps), before train.warmup_steps does, at step 100"]),
    ],
)  # fmt: skip
def test_a_schedule_that_the_run_cuts_off_is_named(sections, said):
    assert remarks(changed(Config(), sections)) == said


def test_a_schedule_that_nothing_reads_cuts_nothing_off():
    late = {"objective": {"anneal": "linear", "anneal_start": 500, "anneal_steps": 600}}
    said = remarks(changed(Config(), {"model": {"kind": "VQ"}, **late}))
    assert len(said) == 1
    assert said[0].startswith("without effect here: objective.anneal")


def test_a_run_says_so(monkeypatch, tmp_path, capsys):
    class Enough(Exception):
        pass

    def fit(*_, **__):
        raise Enough

    monkeypatch.setattr(loop, "_fit", fit)
    config = tiny.with_train(tiny.config(), run_dir=str(tmp_path / "run"), steps=5)
    with pytest.raises(Enough):
        loop.train(config)
    assert "the run ends at step 5 (train.steps), before objective" in capsys.readouterr().out
