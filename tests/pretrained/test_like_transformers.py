"""Equal to `transformers`: logits, hidden masks, what is written, what is saved."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pretrained_families import CHAIN, FAMILIES, WRITERS, ids, reference, saved, torch, transformers

from nvib_jax import pretrained
from nvib_jax.models.params import merge
from nvib_jax.pretrained import attention, transformer
from nvib_jax.pretrained.batches import Batch
from nvib_jax.pretrained.files import find
from nvib_jax.pretrained.passes import written
from nvib_jax.pretrained.weights import read

BOUND = 2e-5  # of the largest logit


def masks(length: int) -> np.ndarray:
    """Nothing, the right, the left and the middle are padding."""
    mask = np.ones((4, length), bool)
    mask[1, -3:], mask[2, :2], mask[3, 3:5] = False, False, False
    return mask


def given(family: str, about, seed: int = 0):
    """(arguments for `transformers`, for us, which logits count)."""
    mask = masks(9)
    tokens = np.where(mask, ids(4, 9, about.vocab_size, seed), about.pad)
    theirs = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask).long()}
    ours = [jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)]
    if about.kind == "causal":
        # What `transformers` itself does where it writes; its bare forward pass does not.
        theirs["position_ids"] = torch.tensor(np.maximum(mask.cumsum(1) - 1, 0))
    if about.kind != "seq2seq":
        return theirs, ours, mask
    target_mask = masks(7)
    target_mask[2:] = True  # a target's padding is to the right
    target = ids(4, 7, about.vocab_size, seed + 1)
    theirs["decoder_input_ids"] = torch.tensor(target)
    theirs["decoder_attention_mask"] = torch.tensor(target_mask).long()
    return theirs, [*ours, jnp.asarray(target, jnp.int32), jnp.asarray(target_mask)], target_mask


def logits(family: str) -> tuple[float, float]:
    """(largest difference, largest logit)."""
    about, graph, params = read(find(saved(family)))
    theirs, ours, counted = given(family, about)
    with torch.no_grad():
        wanted = reference(family)(**theirs).logits.numpy()

    @jax.jit
    def run(params, *arrays):
        module = merge(graph, params)
        return module.logits(module.states(*arrays))

    found = np.asarray(run(params, *ours))
    return float(np.abs(found - wanted)[counted].max()), float(np.abs(wanted).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_logits(family):
    difference, largest = logits(family)
    assert difference <= BOUND * largest
    assert largest > 1


BREAKS = {
    "position": ("roberta", lambda m: m.setattr(transformer.Transformer, "_positions", _places)),
    "buckets": ("t5", lambda m: m.setattr(attention.RelativeBias, "_bucket", _exact_buckets)),
    "scale": ("t5", lambda m: m.setattr(transformer.Transformer, "head", lambda self, x: x)),
    "activation": (
        "flan_t5",
        lambda m: m.setitem(transformer.ACTIVATIONS, "gelu_tanh", transformer.nnx.relu),
    ),
    "padding": ("bert", lambda m: m.setattr(attention, "MASK_VALUE", -1.0)),
}


def _places(self, mask, place, cache):
    return jnp.broadcast_to(place + jnp.arange(mask.shape[1])[None], mask.shape)


def _exact_buckets(self, offset):
    return jnp.minimum(jnp.abs(offset), self.buckets - 1)


@pytest.mark.parametrize("broken", BREAKS)
def test_the_comparison_sees_what_is_broken(broken, monkeypatch):
    family, break_it = BREAKS[broken]
    break_it(monkeypatch)
    difference, largest = logits(family)
    assert difference > 100 * BOUND * largest


@pytest.mark.parametrize("family", FAMILIES)
def test_written_files_are_the_same(family, tmp_path):
    """What `to_hugging_face` writes is opened by `transformers`, tensor by tensor the same."""
    pretrained.load(saved(family)).to_hugging_face(tmp_path)
    model_class = getattr(transformers, FAMILIES[family][1])
    again = model_class.from_pretrained(tmp_path).eval().state_dict()
    for name, tensor in reference(family).state_dict().items():
        assert torch.equal(again[name], tensor), name
    with pytest.raises(FileExistsError, match="holds a model; name another folder"):
        pretrained.load(saved(family)).to_hugging_face(tmp_path)


def test_shards_and_half_precision(tmp_path):
    model = reference("gpt2").to(torch.float16)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    _, _, params = read(find(tmp_path))
    _, _, whole = read(find(saved("gpt2")))
    for name, array in params.items():
        assert array.dtype == jnp.float32
        np.testing.assert_array_equal(array, whole[name].astype(jnp.float16).astype(jnp.float32))
    _, _, half = read(find(tmp_path), dtype="bfloat16")
    assert {array.dtype.name for array in half.values()} == {"bfloat16"}


def test_fields_of_older_files(tmp_path):
    """T5's file of another version says `tie_word_embeddings` where this one scales outputs."""
    config = json.loads((saved("t5") / "config.json").read_text())
    assert config.pop("scale_decoder_outputs")
    for tied, scale in ((True, 32**-0.5), (False, 1.0)):
        config["tie_word_embeddings"] = tied
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "model.safetensors").unlink(missing_ok=True)
        (tmp_path / "model.safetensors").symlink_to(saved("t5") / "model.safetensors")
        assert read(find(tmp_path))[0].output_scale == scale


RULES = {
    "greedy": {},
    "greedy by rules": {"min_new_tokens": 5, "no_repeat_ngram_size": 2},
    "beam": {"num_beams": 4, "length_penalty": 2.0, "no_repeat_ngram_size": 3},
    "beam, early": {"num_beams": 3, "early_stopping": True},
    "beam, never": {
        "num_beams": 3,
        "early_stopping": "never",
        "length_penalty": 0.6,
        "min_new_tokens": 3,
        "bad_words_ids": ((11,), (17, 18)),
    },
}


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("family", WRITERS)
def test_what_is_written(family, rules):
    """Token for token what `generate` writes, with padding and ends at different places."""
    about, graph, params = read(find(saved(family)))
    rows, length = 6, 9
    mask = np.ones((rows, length), bool)
    mask[1, : length // 3] = False
    mask = mask if about.kind == "causal" else mask[:, ::-1].copy()
    tokens = np.where(mask, ids(rows, length, CHAIN, 3), about.pad)
    how = dict(RULES[rules])
    model = reference(family)
    forced = model.generation_config.forced_eos_token_id
    decoding = pretrained.Decoding(
        method="beam" if "num_beams" in how else "greedy",
        max_new_tokens=14,
        forced_eos_token_id=forced,
        **how,
    )
    how.setdefault("num_beams", 1)
    if "bad_words_ids" in how:
        how["bad_words_ids"] = [list(word) for word in how["bad_words_ids"]]
    with torch.no_grad():
        wanted = model.generate(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(mask).long(),
            max_new_tokens=14,
            do_sample=False,
            **how,
        ).numpy()
    wanted = wanted[:, (length if about.kind == "causal" else 1) :]

    @jax.jit
    def run(params, tokens, mask):
        batch, key = Batch(tokens, mask), jax.random.key(0)
        return written(merge(graph, params), {}, batch, key, rules=decoding, about=about)

    found = np.asarray(run(params, jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)))
    lengths = {sum(i != about.pad for i in row) for row in found.tolist()}
    assert len(lengths) > 1
    left_out = (about.pad, about.eos)
    for ours, theirs in zip(found, wanted, strict=True):
        assert [i for i in ours if i not in left_out] == [i for i in theirs if i not in left_out]


def their_tokenizer(family):
    """`transformers`' own class for the same files."""
    files = {name: str(saved(family) / name) for name in TABLES[family].values()}
    arguments = dict(zip(TABLES[family], files.values(), strict=True))
    return getattr(transformers, TOKENIZERS[family])(**arguments)


TOKENIZERS = {
    "bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "gpt2": "GPT2Tokenizer",
    "bart": "BartTokenizer",
    "marian": "MarianTokenizer",
    "t5": "PreTrainedTokenizerFast",
}
_PAIRS = {"vocab": "vocab.json", "merges": "merges.txt"}
TABLES = {
    "bert": {"vocab": "vocab.txt"},
    "roberta": _PAIRS,
    "gpt2": _PAIRS,
    "bart": _PAIRS,
    "marian": {"source_spm": "source.spm", "target_spm": "target.spm", "vocab": "vocab.json"},
    "t5": {"tokenizer_file": "tokenizer.json"},
}
TEXTS = ["the dog sees a cat", "Two  old women, it seems!", "ab<mask>c 12 \u00e9t\u00e9", " x"]


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
@pytest.mark.parametrize("family", TOKENIZERS)
def test_ids(family):
    """The same ids of the same files, and the same text from them."""
    ours, theirs = pretrained.load(saved(family)).tokenizer, their_tokenizer(family)
    for text in TEXTS:
        wanted = theirs(text)["input_ids"]
        assert ours.encode_source(text) == wanted, text
        assert ours.decode(wanted) == theirs.decode(wanted, skip_special_tokens=True), text
    if family == "marian":
        wanted = theirs(text_target=TEXTS[0])["input_ids"]
        assert ours.encode_target(TEXTS[0]) == wanted
        assert (
            ours.encode_source(f">>fra<< {TEXTS[0]}") == theirs(f">>fra<< {TEXTS[0]}")["input_ids"]
        )
