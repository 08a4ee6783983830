"""`nvib play`: lines in, texts out, from a pipe and from a prompt."""

import builtins
import io
import sys

import pytest
import tiny

from nvib_jax import cli
from nvib_jax.cli.play import HELP, Player
from nvib_jax.generate import DecodingConfig
from nvib_jax.text_model import TextModel

A, B = "the dog sees a cat", "a cat that often waits runs"


@pytest.fixture(scope="module")
def model():
    return TextModel.load(tiny.trained()[0].train.run_dir)


@pytest.fixture(autouse=True)
def one_model(model, monkeypatch):
    monkeypatch.setattr(TextModel, "load", lambda run, which: model)


def piped(monkeypatch, data: bytes, *options: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return cli.main(["play", "RUN", *options])


# ---- lines from a pipe


def test_a_pipe_gets_texts_alone(model, monkeypatch, capsys):
    lines = f"{A}\n\n{A} -> {B}\n/between {A} -> {B}\n/sample 3\n".encode()
    assert piped(monkeypatch, lines) == 0
    out, err = capsys.readouterr()
    written, *rest = out.splitlines()
    path = [f"{i / 4:.2f} {t}" for i, t in enumerate(model.interpolate(A, B))]
    assert written == model.reconstruct([A])[0]
    assert rest == [
        *path,
        *path,
        *model.sample(3, decoding=DecodingConfig(method="sample"), seed=3),
    ]
    assert err == ""


def test_a_line_that_cannot_be_done_does_not_end_the_session(model, monkeypatch, capsys):
    lines = f"/smaple\n{'the dog ' * 20}\n{A} ->\n/sample x\n/keep -1\n/temperature nan\n{A}\n"
    assert piped(monkeypatch, lines.encode()) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == model.reconstruct([A])
    said = (
        "there is no command /smaple; did you mean /sample? /help shows all",
        "has 40 tokens; wanted 1 to 24",
        "is no pair; wanted two sentences, as in: A -> B",
        "/sample has 'x'; wanted a whole number of at least 1",
        "/keep has '-1'; wanted a whole number of at least 0",
        "/temperature has 'nan'; wanted a number of at least 0",
    )
    for line, wanted in zip(err.splitlines(), said, strict=True):
        assert wanted in line


def test_notes_are_lines(monkeypatch, capsys):
    assert piped(monkeypatch, b"The dog sees a cat!\n") == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert err.startswith("'The dog sees a cat!' is read as 'the dog sees a cat'")


def test_bytes_that_are_no_text(monkeypatch, capsys):
    assert piped(monkeypatch, b"caf\xe9\n") == 1
    assert "line 1 of standard input is not UTF-8 at byte 3" in capsys.readouterr().err


# ---- a prompt


def test_a_person_gets_a_prompt_and_ends_it_with_ctrl_d(model, monkeypatch, capsys):
    typed = iter(["/help", A])

    def read(prompt):
        asked.append(prompt)
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    asked: list[str] = []
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr(builtins, "input", read)
    assert cli.main(["play", "RUN"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert asked == ["nvib> "] * 3
    assert out[0] == repr(model)
    assert out[2:-2] == HELP.splitlines()
    assert out[-2:] == [*model.reconstruct([A]), ""]


# ---- what a session remembers


def test_keep_leaves_a_number_or_a_share_of_the_vectors(model):
    player = Player(model)
    for amount, keep, vectors in (("2", 2, 2), ("0.5", 0.5, 3), ("9", 9, 5)):
        assert player.answer(f"/keep {amount}") == []
        want = model.reconstruct([A], keep=keep)
        assert player.answer(A) == [f"{want[0]}   ({vectors} vectors for 5 tokens)"]
    player.answer("/keep all")
    assert player.answer(A) == model.reconstruct([A])


def test_a_temperature_draws_and_every_line_has_draws_of_its_own(model):
    player = Player(model, seed=4)
    assert player.answer("/temperature 2") == []
    drawn = [player.answer(A)[0] for _ in range(3)]
    how = DecodingConfig(method="sample", temperature=2.0)
    posterior = model.encode([A])
    assert drawn == [model.decode(posterior, decoding=how, seed=s)[0] for s in (4, 5, 6)]
    assert len(set(drawn)) == 3
    player.answer("/temperature 0")
    assert player.answer(A) == model.reconstruct([A])
