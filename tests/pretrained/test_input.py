"""Wrong input of every kind: one sentence that says what came and what was wanted."""

import json
import math
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from pretrained_made import CONFIGS, given, made, pairs
from safetensors.numpy import load_file, save_file

from nvib_jax import pretrained
from nvib_jax.pretrained.config_json import architecture
from nvib_jax.reading import Tau


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "bart"
    made("bart").to_hugging_face(path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def edit(path, **changes):
    file = path / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


# ---- files


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder, and cannot be the name of a model"):
        pretrained.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json; wanted a folder in Hugging"):
        pretrained.load(tmp_path)


def test_the_hub_that_is_not_there(monkeypatch, tmp_path):
    """What was not downloaded is not found, and that only that was looked at is said."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="only what was downloaded before was looked at"):
        pretrained.load("nobody/no-such-model", local_only=True)


def test_the_hubs_converter_and_nobody_else(monkeypatch, tmp_path):
    """Published without safetensors: the newest pull request of one account is taken."""
    from types import SimpleNamespace

    asked = []

    def download(model, *, revision, allow_patterns, local_files_only):
        assert "*.bin" not in allow_patterns
        asked.append(revision)
        path = tmp_path / str(revision).replace("/", "_")
        path.mkdir(exist_ok=True)
        (path / "config.json").write_text("{}")
        if revision == "refs/pr/9":
            (path / "model.safetensors").write_bytes(b"")
        return str(path)

    def discussions(model, *, author):
        assert author == "SFconvertbot"
        kinds = ((3, True, "open"), (9, True, "open"), (11, False, "open"), (12, True, "closed"))
        return [
            SimpleNamespace(num=num, is_pull_request=request, status=status)
            for num, request, status in kinds
        ]

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.get_repo_discussions", discussions)
    found = pretrained.files.find("facebook/bart-large-xsum")
    assert asked == [None, "refs/pr/9"]
    assert found.revision == "refs/pr/9"
    assert pretrained.files.find("facebook/bart-large-xsum", revision="v1").revision == "v1"


def test_weights_that_could_run_code_are_not_opened(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"can run code and are not opened: load the model"):
        pretrained.load(copy)


def test_a_shard_that_is_missing(copy):
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    )
    with pytest.raises(FileNotFoundError, match=r"has not model-1\.safetensors, model-2"):
        pretrained.load(copy)


def test_tensors_that_do_not_fit(copy):
    file = copy / "model.safetensors"
    tensors = load_file(file)
    names = sorted(tensors)
    save_file(
        {n: t for n, t in tensors.items() if n != names[3]} | {"extra": tensors[names[3]]}, file
    )
    with pytest.raises(ValueError, match=rf"1 tensors are missing: {names[3]}; 1 tensors are surp"):
        pretrained.load(copy)
    tensors["final_logits_bias"] = np.zeros((1, 5), np.float32)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"1 tensors have another shape: final_logits_bias gives"):
        pretrained.load(copy)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "berd"}, r"model_type is 'berd'; wanted one of .*; did you mean bert\?"),
        ({"d_model": ...}, r"config\.json of a bart model has no 'd_model'"),
        ({"normalize_before": True}, "normalize_before = True, which is not implemented"),
        ({"activation_function": "mish"}, "the activation 'mish'; wanted one of gelu"),
        ({"encoder_attention_heads": 3}, "encoder_attention_heads = 3; wanted a divisor of d_mod"),
        ({"decoder_attention_heads": 4}, "decoder_attention_heads = 4; wanted as many as encoder"),
    ],
)
def test_configs_that_are_not_implemented(copy, changes, said):
    edit(copy, **changes)
    with pytest.raises(ValueError, match=said):
        pretrained.load(copy)


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "scale_attn_weights", False),
        ("bert", "position_embedding_type", "relative_key"),
        ("bert", "is_decoder", True),
        ("t5", "feed_forward_proj", "double-gelu"),
    ],
)
def test_fields_that_change_the_mathematics_are_named(family, field, value):
    with pytest.raises(ValueError, match=f"config.json has {field} = {value!r}"):
        architecture({**CONFIGS[family], "vocab_size": 50, field: value})


def test_a_folder_without_a_tokenizer(copy):
    (copy / "tokenizer.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"has no tokenizer; wanted one of: tokenizer\.json"
    ):
        pretrained.load(copy)


def test_a_dtype_that_is_none(folder):
    with pytest.raises(ValueError, match="dtype is 'int8'; wanted one of float32, bfloat16, fl"):
        pretrained.load(folder, dtype="int8")


# ---- texts


def test_texts_and_targets():
    texts, targets = pairs(2)
    long = " ".join(["the dog"] * 30)
    for call, said in (
        (lambda: made("bart").score(texts), "a bart model needs targets, one for each text"),
        (lambda: made("gpt2").score(texts, targets), "a gpt2 model takes no targets"),
        (lambda: made("bart").score(texts, targets[:1]), "2 texts have 1 targets; wanted as many"),
        (lambda: made("bart").score([long], targets[:1]), r"texts\[0\], .* has 61 tokens; wanted"),
        (lambda: made("bert").generate(texts), "a bert model fills gaps; it writes no texts"),
        (lambda: made("gpt2").score([]), "wanted a list of at least one text"),
        (lambda: made("gpt2").score("a text"), "wanted a list of at least one text"),
    ):
        with pytest.raises(ValueError, match=said):
            call()


# ---- readings


def test_readings():
    model, other = made("bart"), made("gpt2")
    prior = model.empirical_prior(*given("bart", 20))
    for arguments, said in (
        ({"alpha": math.nan}, "tau of all: alpha is nan; wanted a number or infinity"),
        ({"alpha": -math.inf}, "tau of all: alpha is -inf; wanted a number or infinity"),
        ({"sigma": -0.1}, r"tau of all: sigma is -0\.1; wanted 0 to 1000"),
        ({"mean": 2.0}, r"tau of all: mean is 2\.0; wanted 0 to 1"),
        ({"form": "wide"}, "form is 'wide'; wanted one of"),
        ({"tau": {"encodr": Tau(1.0)}}, r"tau names 'encodr'; wanted .*did you mean 'encoder'\?"),
        ({"tau": {"decoder.7.self": Tau(1.0)}}, r"tau names 'decoder\.7\.self'; wanted one of"),
    ):
        with pytest.raises(ValueError, match=said):
            model.reinterpret(prior, **arguments)
    with pytest.raises(ValueError, match="the prior was measured with other weights"):
        other.reinterpret(prior, alpha=1.0)


def test_a_prior_of_too_little_or_of_no_numbers():
    import dataclasses

    model = made("gpt2")
    with pytest.raises(ValueError, match="fewer than 2 tokens; a prior needs their variance"):
        model.empirical_prior([""])
    name = "decoder.norm.scale"
    broken = dataclasses.replace(
        model, params=model.params | {"embedding": model.params["embedding"] * jnp.nan}
    )
    assert name in broken.params
    with pytest.raises(ValueError, match=r"the prior of decoder\.0\.self is not finite"):
        broken.empirical_prior(*given("gpt2", 4))


# ---- size


@pytest.mark.long
def test_a_large_file_is_read_within_its_size(tmp_path):
    """One tensor at a time: the peak of memory grows by at most 1.3 times the file."""
    import subprocess
    import sys

    base = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 6}
    config = {**CONFIGS["bert"], **base, "vocab_size": 15_000}  # BERT's own share of embeddings
    make = (
        "import sys, json\n"
        "from flax import nnx\n"
        "from nvib_jax.models.params import split\n"
        "from nvib_jax.pretrained.config_json import architecture\n"
        "from nvib_jax.pretrained.weights import write\n"
        "from nvib_jax.pretrained.transformer import Transformer\n"
        "config = json.loads(sys.argv[2])\n"
        "about = architecture(config)\n"
        "write(sys.argv[1], about, split(Transformer(about, rngs=nnx.Rngs(0)))[1], config)\n"
    )
    load = (
        "import sys, resource, jax\n"
        "from nvib_jax.pretrained.files import find\n"
        "from nvib_jax.pretrained.weights import read\n"
        "jax.numpy.zeros(3).block_until_ready()\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "found = read(find(sys.argv[1]))\n"
        "print(peak() - before)\n"
    )
    arguments = [str(tmp_path / "model"), json.dumps(config)]
    subprocess.run([sys.executable, "-c", make, *arguments], check=True)
    done = subprocess.run(
        [sys.executable, "-c", load, *arguments], check=True, capture_output=True, text=True
    )
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert size > 200e6
    assert int(done.stdout) < 1.3 * size
