"""Configuration: presets, JSON, typos, and that no field is there for nothing."""

import ast
import dataclasses
import inspect
import itertools
import json
import math
from pathlib import Path

import pytest

import nvib_jax
from nvib_jax.config import Config, MeshConfig, ObjectiveConfig, TrainConfig
from nvib_jax.data import DataConfig
from nvib_jax.evaluation.causal_transformer import LanguageModelConfig
from nvib_jax.evaluation.protocol import EvaluationConfig
from nvib_jax.models.nvae import NVAEConfig
from nvib_jax.presets import changed, from_json, load_preset, preset_names, sections, to_json

ROOT = Path(nvib_jax.__file__).parent
PRESETS = sorted((ROOT.parent / "configs").glob("*.py"))


# ---- presets


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_every_preset_loads_and_opens_with_its_command(path):
    config = load_preset(path)
    assert from_json(to_json(config)) == config
    assert f"nvib train configs/{path.name}" in path.read_text(encoding="utf-8")[:200]


def test_there_are_presets():
    assert {p.stem for p in PRESETS} >= {"quickstart", "wikitext2", "wikitext2_cpu"}


def preset(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text, encoding="utf-8")
    return path


MAKE = "from nvib_jax.config import *\ndef config():\n    return "


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (MAKE + "Config(train=TrainConfig(step=3))", r"keyword.*'step'; did you mean 'steps'"),
        (MAKE + "Config(modell=None)", r"'modell'; did you mean 'model'"),
        (MAKE + "TrainConfig()", r"config\(\) of .*mine.py gives TrainConfig; wanted Config"),
        (MAKE + "Config(train=TrainConfig(steps=0))", r"train.steps is 0; wanted at least 1"),
        ("x = 1", r"mine.py: .*no attribute 'config'"),
        ("import nowhere", r"mine.py: ModuleNotFoundError: No module named 'nowhere'"),
        ("def config(:", r"mine.py: SyntaxError"),
        (MAKE + "undefined", r"mine.py: NameError: name 'undefined'"),
    ],
)  # fmt: skip
def test_a_preset_that_is_wrong(tmp_path, text, match):
    with pytest.raises(ValueError, match=match):
        load_preset(preset(tmp_path, text))


def test_a_preset_that_is_not_there_names_those_that_are(tmp_path):
    preset(tmp_path, "")
    with pytest.raises(FileNotFoundError, match=r"other.py does not exist; .* has mine.py"):
        load_preset(tmp_path / "other.py")
    with pytest.raises(FileNotFoundError, match=r"did you mean .*/mine.py\?$"):
        load_preset(tmp_path / "mien.py")
    known = r"nowhere/other.py does not exist; the library's presets are .*quickstart, "
    with pytest.raises(FileNotFoundError, match=known):
        load_preset(tmp_path / "nowhere" / "other.py")
    with pytest.raises(FileNotFoundError, match="did you mean quickstart, a preset of the library"):
        load_preset("nowhere/quikstart.py")


def test_a_preset_of_the_library_is_known_by_its_name(tmp_path, monkeypatch):
    """From anywhere; a file that has this name goes first."""
    monkeypatch.chdir(tmp_path)
    assert preset_names() == [path.stem for path in PRESETS]
    assert load_preset("quickstart") == load_preset(ROOT.parent / "configs" / "quickstart.py")
    (tmp_path / "quickstart").mkdir()
    assert load_preset("quickstart").data.source == "grammar"
    with pytest.raises(FileNotFoundError, match=r"config quickstart.py does not exist"):
        load_preset("quickstart.py")


def test_changes_are_of_fields_that_are_there():
    config = changed(Config(), {"train": {"steps": 7}, "model": {"kind": "VTV"}})
    assert (config.train.steps, config.model.kind) == (7, "VTV")
    assert config.data == Config().data
    with pytest.raises(ValueError, match=r"^config has no field 'trian'; did you mean 'train'\?$"):
        changed(Config(), {"trian": {"steps": 7}})
    with pytest.raises(ValueError, match=r"^train has no field 'step'; did you mean 'steps'\?$"):
        changed(Config(), {"train": {"step": 7}})


def test_a_preset_that_is_no_python_file(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"config.toml is no Python file"):
        load_preset(path)


# ---- JSON


def test_the_config_of_a_run_is_a_preset(tmp_path):
    path = tmp_path / "config.json"
    config = dataclasses.replace(Config(), train=TrainConfig(steps=7))
    path.write_text(to_json(config))
    assert load_preset(path) == config


def test_json_keeps_every_value_and_type():
    config = Config(
        data=DataConfig(source="text", train=("a", "b"), buckets=(4, 8)),
        model=NVAEConfig(threshold=0.25, dropout=0.0),
        train=TrainConfig(seed=3),
    )
    again = from_json(to_json(config))
    assert again == config
    assert isinstance(again.data.buckets, tuple)
    assert set(json.loads(to_json(config))["train"]) == {
        field.name for field in dataclasses.fields(TrainConfig)
    }


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda v: v["train"].update(stepz=1),
         r"config.train has no field 'stepz'; did you mean 'steps'"),
        (lambda v: v.update(zzz=1), r"config has no field 'zzz'$"),
        (lambda v: v["data"]["clean"].update(lower=1),
         r"config.data.clean has no field 'lower'; did you mean 'lowercase'"),
    ],
)  # fmt: skip
def test_json_with_an_unknown_field(change, match):
    values = json.loads(to_json(Config()))
    change(values)
    with pytest.raises(ValueError, match=match):
        from_json(json.dumps(values))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"config is no JSON object: Expecting"),
        ("{", r"config is no JSON object: Expecting"),
        ("[1]", r"config is \[1\]; wanted a JSON object"),
        ("[" * 10**5 + "]" * 10**5, r"config is no JSON object: it is nested too deeply"),
        ('{"train": 5}', r"config.train is 5; wanted a JSON object"),
        ('{"train": {"steps": "60"}}', r"config.train.steps is '60' \(a str\); wanted an int"),
        ('{"train": {"steps": null}}', r"config.train.steps is None; wanted an int"),
        ('{"train": {"steps": 1.5}}', r"config.train.steps is 1.5 \(a float\); wanted an int"),
        ('{"train": {"log_every": true}}', r"config.train.log_every is True \(a bool\); wanted an"),
        ('{"train": {"spike": NaN}}', r"config.train.spike is nan; wanted a finite number"),
        ('{"model": {"heads": {"a": 1}}}', r"config.model.heads is {'a': 1} \(a dict\); wanted an"),
        ('{"model": {"heads": [4]}}', r"config.model.heads is \[4\] \(a list\); wanted an int"),
        ('{"model": {"threshold": NaN}}', r"config.model.threshold is nan; wanted a finite number"),
        ('{"model": {"dtype": ["float32"]}}', r"config.model.dtype is \['float32'\] \(a list\)"),
        ('{"data": {"cache_dir": 5}}', r"config.data.cache_dir is 5 \(an int\); wanted a str"),
        ('{"data": {"train": "a.txt"}}', r"config.data.train is 'a.txt' \(a str\); wanted a tuple"),
        ('{"data": {"buckets": [8, "16"]}}', r"config.data.buckets\[1\] is '16' \(a str\); wanted"),
        ('{"data": {"clean": {"lowercase": 1}}}', r"config.data.clean.lowercase is 1 \(an int\)"),
    ],
)
def test_json_that_is_wrong(text, match):
    with pytest.raises(ValueError, match=match):
        from_json(text)


def test_no_field_of_json_takes_what_it_is_not():
    """A list in a list, of every field, is refused with the field's name."""
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(getattr(Config(), section.name)):
            with pytest.raises(ValueError, match=rf"config.{section.name}.{field.name}\W"):
                from_json(json.dumps({section.name: {field.name: [[1]]}}))


def test_json_may_write_a_whole_number_as_a_float():
    """0.1.0 took 1e3 for `eval_every`, and such a checkpoint must load."""
    config = from_json('{"train": {"eval_every": 1000.0, "clip": Infinity}}')
    assert repr(config.train.eval_every) == "1000"
    assert from_json(to_json(config)) == config


def test_a_wrong_config_json_is_named(tmp_path):
    path = tmp_path / "config.json"
    for content, match in ((b'{"train": 5}', "config.train is 5"), (b"\xff", "codec can't decode")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"config.json: .*{match}"):
            load_preset(path)


# ---- values


@pytest.mark.parametrize(
    ("make", "match"),
    [
        *[
            (lambda name=name: TrainConfig(**{name: 0}), rf"train.{name} is 0; wanted at least 1")
            for name in ("steps", "log_every", "eval_every", "eval_sentences", "keep_checkpoints")
        ],
        (lambda: Config(train=TrainConfig(optimizer="sgd")),
         r"train.optimizer is 'sgd'; wanted one of 'adam', 'adamw', 'radam'$"),
        (lambda: Config(model=NVAEConfig(dtype="float16")), r"model.dtype is 'float16'; wanted"),
        (lambda: TrainConfig(learning_rate=0.0), r"train.learning_rate is 0.0; wanted more than 0"),
        (lambda: TrainConfig(learning_rate=float("nan")), r"train.learning_rate is nan"),
        (lambda: TrainConfig(clip=-1.0), r"train.clip is -1.0"),
        (lambda: TrainConfig(warmup_steps=-1), r"train.warmup_steps is -1; wanted at least 0"),
        (lambda: ObjectiveConfig(lambda_gaussian=-1.0), r"objective.lambda_gaussian is -1.0"),
        (lambda: NVAEConfig(stride_share=0.0), r"model.stride_share is 0.0; wanted 0 < stride"),
        (lambda: NVAEConfig(latent_queries=0), r"model.latent_queries is 0; wanted at least 1"),
        (lambda: Config(model=NVAEConfig(kind="VT")), r"model.kind is 'VT'; wanted one of"),
        (lambda: ObjectiveConfig(word_dropout=1.5), r"objective.word_dropout is 1.5; wanted 0 to"),
        (lambda: ObjectiveConfig(capacity_gaussian=-1.0), r"objective.capacity_gaussian is -1.0"),
        (lambda: TrainConfig(steps="60"), r"train.steps is '60' \(a str\); wanted an int"),
        (lambda: TrainConfig(log_every=1.5), r"train.log_every is 1.5 \(a float\); wanted an int"),
        (lambda: TrainConfig(seed=True), r"train.seed is True \(a bool\); wanted an int"),
        (lambda: TrainConfig(seed=2**32), r"train.seed is 4294967296; wanted less than 4294967296"),
        (lambda: TrainConfig(run_dir=None), r"train.run_dir is None; wanted a str"),
        (lambda: TrainConfig(watchdog=math.inf), r"train.watchdog is inf; wanted a finite number"),
        (lambda: TrainConfig(clip=math.nan), r"train.clip is nan; wanted a number"),
        (lambda: TrainConfig(learning_rate=math.inf), r"train.learning_rate is inf; wanted a fin"),
        (lambda: ObjectiveConfig(vector_price=math.nan), r"objective.vector_price is nan; wanted"),
        (lambda: ObjectiveConfig(capacity_gaussian="1"), r"capacity_gaussian is '1' \(a str\); "),
        (lambda: MeshConfig(fsdp=2.0), r"mesh.fsdp is 2.0 \(a float\); wanted an int"),
        (lambda: Config(train=None), r"train is None; wanted a TrainConfig"),
        (lambda: Config(objective={}), r"objective is {} \(a dict\); wanted an ObjectiveConfig"),
        (lambda: EvaluationConfig(sentences=1.5), r"^sentences is 1.5 \(a float\); wanted an int"),
        (lambda: EvaluationConfig(forms=None), r"^forms is None; wanted True or False"),
        (lambda: EvaluationConfig(split="train"), r"^split is 'train'; wanted one of 'test', 'va"),
        (lambda: LanguageModelConfig(heads={}), r"lm.heads is {} \(a dict\); wanted an int"),
        (lambda: LanguageModelConfig(learning_rate=0), r"lm.learning_rate is 0; wanted more than"),
        (lambda: ObjectiveConfig(free_gaussian=1.0, capacity_gaussian=2.0),
         r"objective.free_gaussian and objective.capacity_gaussian are both given; wanted one"),
        (lambda: ObjectiveConfig(anneal="cyclic", anneal_steps=10, anneal_cycle=5),
         r"objective.anneal_cycle is 5; wanted at least 10"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()


# ---- fields


def attribute_reads() -> set[str]:
    """Every attribute that the package reads, and every name it asks `getattr` for."""
    names: set[str] = set()
    for file in ROOT.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        # A check of a field in its own __post_init__ is no use of it.
        checks = [n for n in ast.walk(tree) if getattr(n, "name", "") == "__post_init__"]
        skip = {id(inner) for check in checks for inner in ast.walk(check)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and id(node) not in skip:
                names.add(node.attr)
    return names


def test_every_field_is_read_by_something():
    reads = attribute_reads()
    idle = [
        f"{part.__name__}.{field.name}"
        for part in sections()
        for field in dataclasses.fields(part)
        if field.name not in reads
    ]
    # Read as a group, `getattr(config, split)`, by the data's sources.
    assert set(idle) <= {"DataConfig.validation", "DataConfig.test"}
    assert "anneal_steps" in reads
    assert "a_field_that_is_not_there" not in reads


def test_every_field_has_a_help_text():
    for part in sections():
        body = ast.parse(inspect.getsource(part)).body[0].body
        for node, after in itertools.pairwise(body):
            if isinstance(node, ast.AnnAssign):
                text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert text, f"{part.__name__}.{ast.unparse(node.target)}"
