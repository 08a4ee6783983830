"""Classifiers of four families: logits as `transformers` has them, and files in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pretrained_families import CLASSES, CLASSIFIERS, classifier, ids, saved, torch, transformers

from nvib_jax import pretrained
from nvib_jax.models.params import merge
from nvib_jax.pretrained.attention import View
from nvib_jax.pretrained.transformer import Transformer

BOUND = 2e-5  # of the largest logit


def logits(family, folder):
    """(largest difference, largest logit) of rows of several lengths."""
    theirs, ours = classifier(family, folder), pretrained.load(folder)
    about = ours.architecture
    assert about.labels == CLASSES
    mask = np.arange(9)[None] < np.array([9, 6, 4, 2])[:, None]
    tokens = ids(4, 9, 48, 5)
    if about.eos is not None:  # BART and T5 read at the last one
        tokens[np.arange(4), mask.sum(1) - 1] = about.eos
    tokens = np.where(mask, tokens, about.pad)
    with torch.no_grad():
        wanted = theirs(
            input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask).long()
        ).logits.numpy()

    @jax.jit
    def run(params, tokens, mask):
        module = merge(ours.graph, params)
        return module.logits(module.summary(tokens, mask, View()))[:, 0]

    found = np.asarray(run(ours.params, jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)))
    assert found.shape == wanted.shape == (4, 3)
    return float(np.abs(found - wanted).max()), float(np.abs(wanted).max())


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_logits(family, tmp_path):
    difference, largest = logits(family, tmp_path)
    assert difference <= BOUND * largest
    assert largest > 0.2


BREAKS = {
    "no tanh": ("bert", "head", lambda self, x: self.pooler(x)),
    "no pooler": ("roberta", "head", lambda self, x: jnp.tanh(x)),
    "the first state": (
        "bart",
        "summary",
        lambda self, tokens, mask, view: self.states(tokens, mask, tokens, mask, view)[:, :1],
    ),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_the_comparison_sees_what_is_broken(broken, tmp_path, monkeypatch):
    family, name, other = BREAKS[broken]
    monkeypatch.setattr(Transformer, name, other)
    difference, largest = logits(family, tmp_path)
    assert difference > 100 * BOUND * largest


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_files_in_both_directions(family, tmp_path):
    """Written again they are theirs; a head that is started goes to `transformers` as one."""
    theirs = classifier(family, tmp_path / "theirs")
    pretrained.load(tmp_path / "theirs").to_hugging_face(tmp_path / "again")
    opened = type(theirs).from_pretrained(tmp_path / "again").state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(opened[name], tensor), name
    started = pretrained.load(saved(family), labels=CLASSES)
    started.save(tmp_path / "started")
    model, told = type(theirs).from_pretrained(tmp_path / "started", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert list(model.config.id2label.values()) == list(CLASSES)
    texts = ["the dog sees a cat", "a cat"]
    chances = started.probabilities(texts)
    rows = [started.tokenizer.encode_source(text) for text in texts]
    for row, chance in zip(rows, chances, strict=True):
        with torch.no_grad():
            wanted = model.eval()(input_ids=torch.tensor([row])).logits.softmax(-1).numpy()[0]
        np.testing.assert_allclose(chance, wanted, atol=2e-5)


def test_the_pooler_of_a_pretrained_bert_is_taken(tmp_path):
    """BERT's files have it though a language model does not need it; only the last map is drawn."""
    theirs = transformers.BertForPreTraining(transformers.BertConfig.from_pretrained(saved("bert")))
    theirs.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_bytes((saved("bert") / "vocab.txt").read_bytes())
    ours = pretrained.load(tmp_path, labels=CLASSES)
    wanted = theirs.state_dict()["bert.pooler.dense.weight"].numpy().T
    np.testing.assert_array_equal(ours.params["pooler.kernel"], wanted)
    assert float(jnp.abs(ours.params["classifier.kernel"]).max()) > 0
