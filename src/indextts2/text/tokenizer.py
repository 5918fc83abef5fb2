"""Text to pieces to ids with a SentencePiece model (02 sections 1, 7 and 8)."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from indextts2.errors import CheckpointError, TextError
from indextts2.text.normalizer import TextNormalizer, require_unicode
from indextts2.text.segmenter import DEFAULT_MARKS, SegmentMarks

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

_WORD_START = "▁"
_CJK = "\u1100-\u11ff\u2e80-\ua4cf\ua840-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff65-\uffdc\U00020000-\U0002ffff"
_CJK_CHARACTER = re.compile(f"([{_CJK}])")
_SPACE_BESIDE_CJK = re.compile(f"(?<=[{_CJK}]) (?![A-Za-z0-9])|(?<![A-Za-z0-9]) (?=[{_CJK}])")


class TextTokenizer(Protocol):
    """What the rest of the system asks of a tokenizer: the official one below, or a phoneme-based one."""

    languages: ClassVar[tuple[str, ...]]
    """Codes of the languages that it reads."""

    @property
    def normalizer(self) -> TextNormalizer:
        """What brings numbers and marks into words before."""

    @property
    def vocab_size(self) -> int:
        """Number of ids; every id lies below it."""

    @property
    def marks(self) -> SegmentMarks:
        """The pieces at which a text may be cut into segments."""

    def tokenize(self, text: str) -> list[str]:
        """Pieces of `text`; none for blank text. Raises TextError for text that cannot be read."""

    def to_ids(self, pieces: Iterable[str]) -> list[int]:
        """Ids of `pieces`, one for each."""

    def to_text(self, pieces: Iterable[str]) -> str:
        """The pieces as readable text, for showing what a segment says."""

    def unknown(self, pieces: Iterable[str]) -> list[str]:
        """Those of `pieces` that the vocabulary lacks, each once, in order."""


def space_cjk(text: str) -> str:
    """Put every CJK character on its own between spaces and turn the rest to upper case."""
    parts = (part.strip() for part in _CJK_CHARACTER.split(text.strip()))
    return " ".join(part.upper() for part in parts if part)


class Tokenizer:
    """SentencePiece tokenizer of the official checkpoints; the model loads at first use. Safe to share between threads.

    Neither start nor stop ids are added. Pieces outside the vocabulary get the id of `<unk>`.
    """

    languages: ClassVar[tuple[str, ...]] = ("en", "zh")

    def __init__(self, model_path: str | Path, normalizer: TextNormalizer) -> None:
        self._model_path = Path(model_path)
        self.normalizer = normalizer
        self._loaded: SentencePieceProcessor | None = None
        self._lock = threading.Lock()

    @property
    def vocab_size(self) -> int:
        """Number of ids in the model. Raises CheckpointError as all methods do if the model cannot be read."""
        return self._model.vocab_size()

    @property
    def marks(self) -> SegmentMarks:
        """The pieces at which a text may be cut into segments."""
        return DEFAULT_MARKS

    def tokenize(self, text: str) -> list[str]:
        """Normalise `text` and cut it into pieces; blank text has none.

        A text of one character (spaces apart) goes to the model as it is, without normalisation or upper case: a habit
        of the reference. Raises TextError (see TextNormalizer.normalize) and CheckpointError.
        """
        if len(text.strip()) == 1:
            require_unicode(text)
            return self._model.encode(text, out_type=str)
        return self._model.encode(space_cjk(self.normalizer.normalize(text)), out_type=str) if text else []

    def to_ids(self, pieces: Iterable[str]) -> list[int]:
        """Ids of `pieces`, one for each; 2 (`<unk>` in the official model) for unknown ones."""
        model = self._model
        return [model.piece_to_id(piece) for piece in pieces]

    def to_text(self, pieces: Iterable[str]) -> str:
        """The pieces as readable (upper-case) text, without the spaces between CJK characters."""
        text = "".join(pieces).replace(_WORD_START, " ")
        return _SPACE_BESIDE_CJK.sub("", text).strip()

    def unknown(self, pieces: Iterable[str]) -> list[str]:
        """Those of `pieces` that the vocabulary lacks, each once, in order: they will not be spoken."""
        model = self._model
        return [piece for piece in dict.fromkeys(pieces) if model.is_unknown(model.piece_to_id(piece))]

    @property
    def _model(self) -> SentencePieceProcessor:
        with self._lock:
            if self._loaded is None:
                self._loaded = _load_model(self._model_path)
            return self._loaded


def _load_model(path: Path) -> SentencePieceProcessor:
    from sentencepiece import SentencePieceProcessor

    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read the SentencePiece model {path}: {error.strerror}") from error
    model = SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(data)
    except RuntimeError as error:
        raise CheckpointError(f"{path} ({len(data)} bytes) is not a SentencePiece model: {error}") from error
    return model


def require_speech(text: str, pieces: Sequence[str], tokenizer: TextTokenizer) -> None:
    """Raise TextError if no known piece of `pieces` holds a letter or digit (blank text, emoji only, "...")."""
    unknown = set(tokenizer.unknown(pieces))
    if any(piece not in unknown and any(map(str.isalnum, piece)) for piece in pieces):
        return
    if len(text.strip()) == 1 and text.strip().isalnum():
        remedy = "a text of one character is not normalised: write the word out, or the letter in upper case"
    else:
        remedy = "give Chinese or English words, pinyin or numbers"
    raise TextError(f"the text {text[:40]!r} holds nothing that can be spoken; {remedy}")
