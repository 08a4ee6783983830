"""A model in files and on the Hugging Face Hub: opened, saved, and brought there with a card."""

import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from nvib_jax import hub
from nvib_jax.checkpoint.exported import export
from nvib_jax.checkpoint.load import load
from nvib_jax.files import write_whole
from nvib_jax.progress import to_standard_error
from nvib_jax.text.card import model_card
from nvib_jax.text.engine import Engine


@dataclass(frozen=True, repr=False)
class SavedModel(Engine):
    """An engine that comes from files and goes into files; `TextModel` has the rest."""

    @classmethod
    def load(
        cls,
        run_dir: str | os.PathLike[str],
        *,
        which: str = "best",
        revision: str | None = None,
        local_only: bool = False,
        say: Callable[[str], None] = to_standard_error,
    ) -> Self:
        """Open the checkpoint of a run, a model that `save` wrote, or a model of the Hub.

        `nvib_jax.load` is this function. Of the Hugging Face Hub only `model.safetensors` and
        `model.json` are taken, which cannot run code.

        Args:
          run_dir: the folder, or USER/NAME on the Hub, if there is no folder of this name or USER.
          which: "best" or "last" checkpoint; a damaged one is reported and the next one is read.
          revision: branch, tag or commit of the Hub; None is its main one.
          local_only: whether the Hub is left alone and only what was downloaded before is used.
          say: called with a line of text about a damaged checkpoint, or the revision of the Hub.

        Raises:
          FileNotFoundError, ValueError: no checkpoint there, or one of another model or version.
          ImportError: a name of the Hub, and huggingface_hub is not installed.
        """
        description, params, _ = load(
            run_dir, which=which, revision=revision, local_only=local_only, say=say
        )
        return cls(description, params)

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the model as `model.safetensors` and `model.json`; `load` opens them anywhere.

        No folder of this machine is told.

        Returns:
          The files.

        Raises:
          FileExistsError: the folder holds a run or a model.
          OSError: a file cannot be written; names it, and leaves neither.
        """
        return export(self.description, self.params, Path(folder))

    def push_to_hub(
        self,
        name: str,
        *,
        evaluation: Mapping[str, Any] | None = None,
        private: bool | None = None,
        revision: str | None = None,
        message: str = "A model of nvib_jax",
    ) -> str:
        """Bring the model to the Hugging Face Hub, with a model card of its config and figures.

        It needs `pip install "nvib-jax[hub]"` and `hf auth login`.

        Args:
          name: USER/NAME; made if it is not there.
          evaluation: what `nvib_jax.evaluate` returned, for the card's figures.
          private: whether a model that is made is private; None is as the account is set.
          revision: branch, made if it is not there; None is the main one.
          message: of the commit.

        Returns:
          The commit, which `load` takes as `revision`.

        Raises:
          ImportError: huggingface_hub is not installed.
          OSError: the Hub did not take it, with its reason.
          ValueError: no name of a model, or an evaluation without scores.
        """
        card = model_card(
            self.description,
            name,
            parameters=sum(math.prod(p.shape) for p in self.params.values()),
            can=self.can,
            evaluation=evaluation,
        )
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            write_whole(Path(folder) / "README.md", card)
            return hub.upload(
                name, Path(folder), message=message, private=private, revision=revision
            )
