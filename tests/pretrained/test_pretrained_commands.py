"""`nvib inspect`, `score`, `generate`, `regularise` and `finetune`, and what they refuse."""

import json

import pytest
from pretrained_made import made, pairs

from nvib_jax import cli
from nvib_jax.cli.pretrained import read_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "bart"
    made("bart").to_hugging_face(path)
    return path


@pytest.mark.parametrize(
    ("name", "content", "pairs", "said"),
    [
        ("a.tsv", "one\n\n", True, "text 1 is 'one'; wanted a text, a tab and its target"),
        ("a.tsv", "one\ttwo\n", False, "text 1 is 'one'; wanted a text and no target"),
        ("a.tsv", "a\tb\tc\n", True, "line 1 has 2 tabs; wanted one at most"),
        ("a.tsv", "\n", False, "has no texts"),
        ("a.jsonl", '{"target": "b"}\n', True, 'line 1: wanted a JSON object with "source"'),
        ("a.jsonl", "5\n", True, 'line 1: wanted a JSON object with "source"'),
    ],
)
def test_files_of_texts(tmp_path, name, content, pairs, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        read_pairs(tmp_path / name, pairs)


def test_the_commands(folder, tmp_path, capsys):
    """A model is inspected, measured, regularised, scored again and writes."""
    texts, targets = pairs(24)
    for name, part in (("prior", slice(0, 8)), ("dev", slice(8, 16)), ("test", slice(16, 24))):
        rows = zip(texts[part], targets[part], strict=True)
        (tmp_path / f"{name}.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in rows))

    def nvib(*arguments):
        status = cli.main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    status, out, _ = nvib("inspect", folder)
    assert status == 0
    assert json.loads(out)["attentions"][-1] == "cross"
    files = [f"--{name}={tmp_path / name}.tsv" for name in ("prior", "dev", "test")]
    tuned = tmp_path / "tuned"
    status, out, err = nvib("regularise", folder, *files, "--out", tuned, "--trials", 3)
    assert status == 0, err
    assert {"as it is", "temperature", "attention temperature", "expected_logit"} <= {
        line[: line.index("  ")] for line in out.splitlines()[1:5]
    }
    assert {path.name for path in tuned.iterdir()} == {
        *("reading.json", "reading.safetensors", "trials.jsonl", "figures.json")
    }
    status, out, _ = nvib("score", tuned, "--file", tmp_path / "test.tsv")
    assert status == 0
    assert "perplexity" in out
    status, out, _ = nvib("generate", tuned, texts[0], "--max-new-tokens", 4)
    assert status == 0
    assert len(out.splitlines()) == 1
    status, out, err = nvib("score", "no/such/model", "--file", tmp_path / "test.tsv")
    assert (status, out) == (1, "")
    assert err.startswith("nvib score: no/such/model is no folder, and cannot be the name")


@pytest.mark.parametrize("family", ["gpt2", "bart", "bert"])
def test_finetuning_by_command(family, tmp_path, capsys):
    """A language model with bottlenecks, a translator without, a classifier with more weights."""
    texts, targets = pairs(24)
    if family == "bert":
        targets = ["long" if len(text.split()) > 8 else "short" for text in texts]
    rows = [a if family == "gpt2" else f"{a}\t{b}" for a, b in zip(texts, targets, strict=True)]
    files = {"train": tmp_path / "train.tsv", "dev": tmp_path / "dev.tsv"}
    files["train"].write_text("\n".join(rows[:16]))
    files["dev"].write_text("\n".join(rows[16:]))
    model, tuned = tmp_path / "model", tmp_path / "tuned"
    made(family).to_hugging_face(model)

    def nvib(*arguments):
        status = cli.main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    more = {
        "gpt2": [],
        "bart": ["--no-bottlenecks"],
        "bert": ["--classify", "--training.train", "nvib+norms"],
    }[family]
    short = ["--training.steps", 2, "--training.batch-size", 8]
    given = ["--file", files["train"], "--dev", files["dev"], "--out", tuned, *short, *more]
    status, out, err = nvib("finetune", model, *given)
    assert status == 0, err
    assert [line.split()[0] for line in out.splitlines()] == ["before", "after", "kept"]
    there = {path.name for path in tuned.iterdir()}
    kept = {"figures.json", "reading.json", "reading.safetensors"}
    if family == "bart":
        kept = {"figures.json"}
    if family != "gpt2":  # whose weights are not changed
        kept |= {"config.json", "model.safetensors", "tokenizer.json"}
    assert there == kept
    figures = json.loads((tuned / "figures.json").read_text())
    assert figures["before"]["nats"] != figures["after"]["nats"]

    status, out, err = nvib("score", tuned, "--file", files["dev"])
    assert status == 0, err
    assert f"nats a token     {figures['after']['nats']:.4f}" in out
    few = [] if family == "bert" else ["--max-new-tokens", 2]
    status, out, _ = nvib("generate", tuned, texts[0], *few)
    assert status == 0
    assert family != "bert" or out in ("long\n", "short\n")
    status, out, _ = nvib("inspect", tuned)
    found = json.loads(out)
    assert found["kind"] == {"gpt2": "causal", "bart": "seq2seq", "bert": "classifier"}[family]
    assert ("readings" in found) == (family != "bart")


def test_what_finetuning_refuses(folder, tmp_path, capsys):
    """One sentence each, and before anything is trained."""
    texts, targets = pairs(8)
    for name, rows in (("pairs", zip(texts, targets, strict=True)), ("texts", zip(texts))):
        (tmp_path / name).write_text("\n".join("\t".join(row) for row in rows))
    for family in ("gpt2", "bert"):
        made(family).to_hugging_face(tmp_path / family)
    both, out = tmp_path / "pairs", tmp_path / "out"
    for model, file, more, said in (
        (folder, both, ["--out", folder], f"{folder} holds a model; name another folder"),
        (folder, both, ["--no-bottlenecks", "--training.alpha", 2], "--training.alpha is of bottl"),
        (folder, both, ["--training.sigma", 0], "the KL to the prior is infinite"),
        (folder, both, ["--training.steps", 0], "training.steps is 0; wanted at least 1"),
        (folder, tmp_path / "texts", [], "wanted a text, a tab and its target"),
        (tmp_path / "gpt2", both, [], "wanted a text and no target"),
        (tmp_path / "gpt2", both, ["--classify"], "a gpt2 model has no head for labels"),
        (
            tmp_path / "bert",
            tmp_path / "texts",
            [],
            "not implemented but as a classifier: --classi",
        ),
    ):
        given = ["finetune", model, "--file", file, "--dev", file, "--out", out, *more]
        status = cli.main([str(a) for a in given])
        shown = capsys.readouterr()
        lines = [line for line in shown.err.splitlines() if "are the same file" not in line]
        assert (status, shown.out, len(lines)) == (1, "", 1)
        assert said in lines[0]
