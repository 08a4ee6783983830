"""`nvib play RUN`: encodes each typed sentence and writes it again; `/help` lists the commands.

`Player` answers a line with lines and does not depend on a terminal; `play` gives it the lines of a
prompt or of a pipe. A line that fails prints an error of one line, and the next line is read.
"""

import contextlib
import dataclasses
import difflib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax.numpy as jnp

from nvib_jax.cli.options import notes_as_lines, warn
from nvib_jax.generate import DecodingConfig
from nvib_jax.text import as_typed
from nvib_jax.text_model import TextModel

HELP = """\
WORDS              encode the sentence and write it again
A -> B             write the sentences on the way from A to B; /between A -> B is the same
/sample [N]        write N sentences drawn from the prior, 5 unless N is given
/keep N            write sentences again from N of their vectors; 0.3 is a share of them
/keep all          use every vector again
/temperature T     draw the tokens at this temperature; 0 takes the likeliest again
/help              show this
Ctrl-D             end"""
STEPS = 5


@dataclass
class Player:
    """A session: its settings, and its answers to lines."""

    model: TextModel
    form: str | None = None
    seed: int = 0
    keep: float | int | None = None
    decoding: DecodingConfig = dataclasses.field(default_factory=DecodingConfig)

    def answer(self, line: str) -> list[str]:
        """The lines that answer a line.

        Raises:
          ValueError: an unknown command, or a text that the model does not take.
        """
        line = line.strip()
        if not line.startswith("/"):
            return (self._between if "->" in line else self._rewrite)(line) if line else []
        name, _, rest = line[1:].partition(" ")
        commands: dict[str, Callable[[str], list[str]]] = {
            "between": self._between,
            "sample": self._sample,
            "keep": self._keep,
            "temperature": self._temperature,
            "help": lambda _: HELP.splitlines(),
        }
        if name not in commands:
            near = difflib.get_close_matches(name, commands, n=1)
            hint = f"did you mean /{near[0]}? " if near else ""
            raise ValueError(f"there is no command /{name}; {hint}/help shows all")
        return commands[name](rest.strip())

    def _rewrite(self, text: str) -> list[str]:
        posterior = self.model.encode([text], keep=self.keep)
        vectors, tokens = (int(jnp.sum(x)) - 1 for x in (posterior.present, posterior.mask))
        said = "" if self.keep is None else f"   ({vectors} vectors for {tokens} tokens)"
        (written,) = self.model.decode(posterior, self.form, decoding=self.decoding, seed=self.seed)
        self._next()
        return [written + said]

    def _between(self, line: str) -> list[str]:
        ends = [end.strip() for end in line.split("->")]
        if len(ends) != 2 or not all(ends):
            raise ValueError(f"{line!r} is no pair; wanted two sentences, as in: A -> B")
        how = {"form": self.form, "decoding": self.decoding}
        path = self.model.interpolate(*ends, steps=STEPS, seed=self.seed, **how)  # type: ignore[arg-type]
        self._next()
        return [f"{i / (STEPS - 1):.2f} {text}" for i, text in enumerate(path)]

    def _sample(self, count: str) -> list[str]:
        wanted = _number("/sample", count or "5", int, 1)
        drawing = dataclasses.replace(self.decoding, method="sample")
        texts = self.model.sample(wanted, decoding=drawing, seed=self.seed)
        self._next()
        return texts

    def _keep(self, amount: str) -> list[str]:
        kept = None
        if amount != "all":
            kept = _number("/keep", amount, float if "." in amount else int, 0)
            as_typed.amount(kept)  # it refuses what is neither a share nor a number
        self.keep = kept
        return []

    def _temperature(self, value: str) -> list[str]:
        t = _number("/temperature", value, float, 0)
        drawing = DecodingConfig(method="sample", temperature=t) if t else DecodingConfig()
        self.decoding = drawing
        return []

    def _next(self) -> None:
        """Change the seed, so that every line has new draws, the same in each session."""
        self.seed += 1


def _number(command: str, value: str, kind: Callable[[str], float], least: int) -> int:
    """The argument of a command as a number of at least `least`."""
    what = "a whole number" if kind is int else "a number"
    try:
        number = kind(value)
    except ValueError:
        number = -1
    if not least <= number < float("inf"):
        raise ValueError(f"{command} has {value!r}; wanted {what} of at least {least}")
    return number  # type: ignore[return-value]


def play(model: TextModel, *, form: str | None = None, seed: int = 0) -> None:
    """Answer the lines of standard input until it ends; on a terminal there is a prompt."""
    player, person = Player(model, form, seed), sys.stdin.isatty()
    if person:
        print(f"{model}\nType a sentence, A -> B, /sample or /help; Ctrl-D ends.")
    for line in _prompted() if person else _piped():
        try:
            with notes_as_lines():
                for text in player.answer(line):
                    print(text, flush=True)
        except ValueError as error:
            warn(" ".join(str(error).split()))
        except KeyboardInterrupt:  # at a prompt it stops the current line and not the session
            if not person:
                raise
            print()


def _prompted() -> Iterator[str]:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  input() then has the arrow keys
    while True:
        try:
            line = input("nvib> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            line = ""
            print()
        yield line


def _piped() -> Iterator[str]:
    for number, raw in enumerate(sys.stdin.buffer, 1):
        try:
            yield raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"line {number} of standard input is not UTF-8 at byte {error.start}"
            ) from error
