"""Which grammar reads a text, and the pinyin pattern on which that decision leans (02 sections 3 and 6.1)."""

from __future__ import annotations

import re
from typing import Literal

Language = Literal["zh", "en"]

_INITIAL = "[bpmfdtnlgkhjqxzcsryw]|zh|ch|sh"
_FINAL = "[aeiouüv]|ai|ei|u[aio]|ao|ou|i[aeu]|[uüv]e|[uvü]ang?|uai|[aeiuv]n|[aei]ng|ong|ia[no]|iang|iong"

# A syllable with its tone: "xuan4", "ZHONG4", "er2", "ng5". Nothing is asked of what follows the digit, and "ün" is
# not covered: both are habits of the reference. All syllables of its vocabulary match.
PINYIN = re.compile(rf"(?<![a-z])(?:(?:{_INITIAL})?(?:{_FINAL})|ng|er)[1-5]", re.IGNORECASE)

_HAN = re.compile(r"[\u4e00-\u9fff]")
_LATIN = re.compile(r"[A-Za-z]")
_EMAIL_ONLY = re.compile(r"^[A-Za-z0-9]+@[A-Za-z0-9]+\.[A-Za-z]+$")


def use_chinese(text: str) -> bool:
    """True if the Chinese grammar reads `text`: Han characters, no Latin letter, a bare e-mail, or toned pinyin."""
    return bool(_HAN.search(text) or not _LATIN.search(text) or _EMAIL_ONLY.match(text) or PINYIN.search(text))
