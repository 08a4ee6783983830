"""The tokenizer of a pretrained model, from whichever files it has: texts to ids and back.

`tokenizer.json` is read by `tokenizers`, and so are the older tables that it replaced (`vocab.txt`;
`vocab.json` with `merges.txt`). T5's `spiece.model` and Marian's pair of models are read by
`sentencepiece`.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvib_jax.pretrained.architecture import Architecture

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, repr=False)
class PretrainedTokenizer:
    """Texts to ids and back.

    Attributes:
      encode_source: the ids of a text to read, with the tokens that the family adds.
      encode_target: of a text to write.
      decode: ids to text; special tokens are left out.
      mask: id of the token that stands for a gap, or None.
      files: what it was read from, by name, for writing them again.
    """

    encode_source: Encode
    encode_target: Encode
    decode: Callable[[Sequence[int]], str]
    mask: int | None
    files: dict[str, bytes]


def load_tokenizer(folder: str | Path, about: Architecture) -> PretrainedTokenizer:
    """The tokenizer in a folder.

    Args:
      folder: of the model.
      about: the architecture; the family says which tokens are added.

    Raises:
      FileNotFoundError: none of the files that the family may have.
      ImportError: `tokenizers` is not installed.
    """
    folder = Path(folder)
    for names, reader in _READERS:
        if all((folder / name).is_file() for name in names):
            kept = (*names, "tokenizer_config.json", "special_tokens_map.json")
            files = {n: (folder / n).read_bytes() for n in kept if (folder / n).is_file()}
            return reader(folder, about, files)
    wanted = "; ".join(" with ".join(names) for names, _ in _READERS)
    raise FileNotFoundError(f"{folder} has no tokenizer; wanted one of: {wanted}")


def _from_json(folder: Path, about: Architecture, files: dict[str, bytes]) -> PretrainedTokenizer:
    from tokenizers import Tokenizer

    return _of_tokenizers(Tokenizer.from_file(str(folder / "tokenizer.json")), files)


def _from_word_pieces(
    folder: Path, about: Architecture, files: dict[str, bytes]
) -> PretrainedTokenizer:
    from tokenizers.implementations import BertWordPieceTokenizer

    lower = _settings(folder).get("do_lower_case", True)
    found = BertWordPieceTokenizer(
        str(folder / "vocab.txt"), lowercase=lower, strip_accents=None if lower else False
    )
    return _of_tokenizers(found._tokenizer, files)


def _from_byte_pairs(
    folder: Path, about: Architecture, files: dict[str, bytes]
) -> PretrainedTokenizer:
    from tokenizers import AddedToken
    from tokenizers.implementations import ByteLevelBPETokenizer
    from tokenizers.processors import RobertaProcessing

    spaced = _settings(folder).get("add_prefix_space", False)
    found = ByteLevelBPETokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), add_prefix_space=spaced
    )
    gpt2 = about.family == "gpt2"
    special = ["<|endoftext|>"] if gpt2 else ["<s>", "</s>", "<pad>", "<unk>", "<mask>"]
    there = [token for token in special if found.token_to_id(token) is not None]
    found.add_special_tokens([AddedToken(t, lstrip=t == "<mask>", normalized=False) for t in there])
    if not gpt2:
        end, start = ((token, found.token_to_id(token) or 0) for token in ("</s>", "<s>"))
        found._tokenizer.post_processor = RobertaProcessing(end, start, add_prefix_space=spaced)
    return _of_tokenizers(found._tokenizer, files)


def _of_tokenizers(tokenizer: Any, files: dict[str, bytes]) -> PretrainedTokenizer:
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text).ids)

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode(list(ids), skip_special_tokens=True)

    masks = (tokenizer.token_to_id(token) for token in ("[MASK]", "<mask>"))
    mask = next((found for found in masks if found is not None), None)
    return PretrainedTokenizer(encode, encode, decode, mask, files)


def _from_sentence_pieces(
    folder: Path, about: Architecture, files: dict[str, bytes]
) -> PretrainedTokenizer:
    """T5: the pieces and end-of-sentence."""
    pieces = _sentence_pieces(folder / "spiece.model")

    def encode(text: str) -> list[int]:
        return [*pieces.encode(text), *([] if about.eos is None else [about.eos])]

    def decode(ids: Sequence[int]) -> str:
        known = pieces.get_piece_size()
        return pieces.decode([i for i in map(int, ids) if i < known and not pieces.is_control(i)])

    return PretrainedTokenizer(encode, encode, decode, None, files)


def _from_pair(folder: Path, about: Architecture, files: dict[str, bytes]) -> PretrainedTokenizer:
    """Marian: pieces of one model for each language, and ids that both share."""
    ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    pieces = {i: piece for piece, i in ids.items()}
    source, target = (_sentence_pieces(folder / f"{name}.spm") for name in ("source", "target"))
    end = [] if about.eos is None else [about.eos]
    left_out = {about.pad, about.eos, ids["<unk>"]}

    def encoder(model: Any) -> Encode:
        def encode(text: str) -> list[int]:
            # The language to translate to is one token and no text.
            found = re.match(r"\s*(>>.+?<<)\s*", text)
            language = [found[1]] if found else []
            rest = text[found.end() :] if found else text
            parts = [*language, *model.encode(rest, out_type=str)]
            return [*(ids.get(part, ids["<unk>"]) for part in parts), *end]

        return encode

    def decode(tokens: Sequence[int]) -> str:
        text = target.decode([pieces[i] for i in map(int, tokens) if i not in left_out])
        return text.replace("\u2581", " ").strip()  # of pieces that are the source's alone

    return PretrainedTokenizer(encoder(source), encoder(target), decode, None, files)


def _sentence_pieces(file: Path) -> Any:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(file))


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


# Files that a tokenizer is read from, and how; the first that are all there.
_READERS: tuple[tuple[tuple[str, ...], Callable[..., PretrainedTokenizer]], ...] = (
    (("tokenizer.json",), _from_json),
    (("source.spm", "target.spm", "vocab.json"), _from_pair),
    (("spiece.model",), _from_sentence_pieces),
    (("vocab.json", "merges.txt"), _from_byte_pairs),
    (("vocab.txt",), _from_word_pieces),
)
