"""The `nvib` command: prints usage and errors, and runs a command.

`commands.py` has the commands. It is imported late, because it is slower to import.
"""

import difflib
import os
import sys
from collections.abc import Sequence

import nvib_jax
from nvib_jax.compilation_cache import use_compilation_cache

USAGE = """usage: nvib COMMAND ...

  nvib train CONFIG.py [--resume] [--train.steps 100 ...]  text -> a trained NVAE and a summary
  nvib train CONFIG.py --dry-run [--topology v5e:2x4]      what it will need, on a slice not here
  nvib prepare CONFIG.py [--data.vocab-size 8000 ...]      text -> tokens, cached (train does it)
  nvib reconstruct RUN [TEXT ...]                          encode sentences and write them again
  nvib sample RUN [--count 10] [--prior learned]           write sentences drawn from the prior
  nvib interpolate RUN A B [--steps 5]                     sentences on the way from A to B
  nvib merge RUN TEXT TEXT ... [--weights 2 1]             one sentence of several
  nvib edit RUN TEXT --towards FILE --away FILE            more of what one set of examples has
  nvib paraphrase RUN TEXT [--temperature 0.7]             sentences drawn around one
  nvib drop RUN TEXT [--alone] [--figure words.png]        what goes as its vectors go
  nvib embed RUN --file texts.txt --out vectors.npz        a vector for each sentence
  nvib play RUN                                            a prompt for all three, as one types
  nvib fit-prior RUN                                       a prior that is like the texts
  nvib export RUN --out FOLDER                             safetensors and JSON
  nvib evaluate RUN [RUN ...]                              every figure, on text not seen
  nvib sweep SWEEP.py [--jobs 2]                           train and evaluate many runs, tabulate
  nvib report RUN [RUN ...] [--out report.html]            one page: curves, tables, sentences
  nvib metrics RUN [RUN ...] > metrics.csv                 what runs measured while they trained
  nvib regularise MODEL --prior A --dev B --test C --out D a pretrained Transformer, re-read
  nvib finetune MODEL --file A --dev B --out D             trained further, with bottlenecks
  nvib generate MODEL [TEXT ...]                           what it writes, by its own rules
  nvib score MODEL --file texts.tsv                        nats, perplexity, the prior's shares
  nvib inspect MODEL                                       what it is; loads no weights
  nvib bench attention|train|generate|sampler|scaling      time, memory and error, beside plain
  nvib doctor                                              versions, devices, what runs here
  nvib completion bash                                     commands and options at the Tab key

CONFIG.py is a file, or a preset of the library by its name, such as quickstart or wikitext2_cpu.
RUN is a folder that train or export wrote, or USER/NAME of the Hugging Face Hub; MODEL one in its
format, or a name. `nvib COMMAND --help` shows every option with its default, `--debug` where an
error comes from, `nvib --version` the version.
Prepared data and compiled code lie in $NVIB_CACHE, else ~/.cache/nvib_jax; with
NVIB_COMPILATION_CACHE=off compiled code is not kept.
Begin with: nvib train quickstart
"""
_NAMES = (
    *("train", "prepare", "reconstruct", "sample", "interpolate", "merge", "edit", "paraphrase"),
    *("drop", "embed", "play", "fit-prior", "export", "evaluate", "sweep", "report", "metrics"),
    *("regularise", "finetune", "generate", "score", "inspect", "bench", "doctor", "completion"),
)
# Errors that are printed as one line. RuntimeError is among them, because libraries for files and
# devices raise it.
_SAID = (ValueError, OSError, ArithmeticError, ImportError, MemoryError, RuntimeError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status. Errors are one line on standard error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command not in (*_NAMES, "-h", "--help", "--version"):
        near = difflib.get_close_matches(command, _NAMES, n=1)
        hint = f"did you mean {near[0]!r}? There" if near else "there"
        print(f"nvib: no command {command!r}; {hint} are {', '.join(_NAMES)}", file=sys.stderr)
        return 2
    try:
        _run(command, rest)
        sys.stdout.flush()
    except BrokenPipeError:  # as in `nvib sample RUN | head`, when head has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"nvib {command}: interrupted", file=sys.stderr)
        return 130
    except _SAID as error:
        if debug:
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        # A library's error about a disk or a device does not say where it comes from.
        more = "; --debug shows where" if type(error) in (RuntimeError, RecursionError) else ""
        print(f"nvib {command}: {said[:1000]}{more}", file=sys.stderr)
        return 1
    return 0


def _run(command: str, arguments: list[str]) -> None:
    if command == "--version":
        print(nvib_jax.__version__)
        return
    if command not in _NAMES:
        print(USAGE, end="")
        return
    if command == "doctor" and not arguments:  # must run without the packages it reports missing
        from nvib_jax.cli.doctor import main as doctor

        doctor()
        return
    try:
        from nvib_jax.cli.commands import COMMANDS
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}; pip install 'nvib-jax[train]' has it") from error
    use_compilation_cache()
    COMMANDS[command](arguments)
