"""PaliGemma's tokenizer, from a file that the user has: words in, token ids out.

The vocabulary is Google's and comes with no checkpoint of openpi, so it is looked for beside the weights
(`FILES`) or where the user says. Both published file formats are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from flashrt_ros.errors import CheckpointError

FILES = ('tokenizer.model', 'paligemma_tokenizer.model', 'tokenizer.json')
"""Names that are looked for in a directory, in this order."""

BOS = '<bos>'


class Tokenizer(Protocol):
    """bos: id of the token that starts every prompt. size: entries of the vocabulary."""

    bos: int
    size: int

    def encode(self, text: str) -> list[int]:
        """Token ids of the text alone: no bos, no eos, nothing cut, nothing padded."""
        ...


def load_tokenizer(chosen: Path | None, checkpoint: Path, vocab: int) -> Tokenizer:
    """Load the user's choice (a file, or a directory with one of `FILES`), else what lies in the checkpoint.

    Raises CheckpointError if there is none, it cannot be read, or it has more than `vocab` entries.
    """
    path = _find(Path(chosen) if chosen else checkpoint)
    tokenizer: Tokenizer = _JsonTokenizer(path) if path.suffix == '.json' else _SentencePieceTokenizer(path)
    if tokenizer.size > vocab:
        raise CheckpointError(
            f'the tokenizer has {tokenizer.size} entries, but the checkpoint embeds {vocab} tokens',
            str(path),
            'give the tokenizer that the checkpoint was trained with',
        )
    return tokenizer


def _find(place: Path) -> Path:
    if place.is_file():
        return place
    for name in FILES:
        if (place / name).is_file():
            return place / name
    raise CheckpointError(
        f'there is no tokenizer: looked for {", ".join(FILES)}',
        str(place),
        "put PaliGemma's tokenizer.model or tokenizer.json there, or name its path in the option 'tokenizer'",
    )


def _unreadable(path: Path, reason: object) -> CheckpointError:
    return CheckpointError(
        f'the tokenizer cannot be read ({reason})',
        str(path),
        "replace it by PaliGemma's tokenizer.model (sentencepiece) or tokenizer.json",
    )


class _JsonTokenizer:
    """A Hugging Face tokenizer.json."""

    def __init__(self, path: Path) -> None:
        import tokenizers  # imported here because a user needs only the library of the format that he has

        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for whatever its parser meets
            raise _unreadable(path, error) from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.size = self._tokenizer.get_vocab_size()
        bos = self._tokenizer.token_to_id(BOS)
        if bos is None:
            raise _unreadable(path, f'it has no {BOS}')
        self.bos = int(bos)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


class _SentencePieceTokenizer:
    """A sentencepiece tokenizer.model."""

    def __init__(self, path: Path) -> None:
        import sentencepiece  # see _JsonTokenizer

        try:
            self._processor: Any = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise _unreadable(path, error) from error
        self.size = self._processor.vocab_size()
        self.bos = int(self._processor.bos_id())
        if self.bos < 0:
            raise _unreadable(path, f'it has no {BOS}')

    def encode(self, text: str) -> list[int]:
        return list(self._processor.encode(text))
