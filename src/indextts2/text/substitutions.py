"""Contractions before the grammar, and the character map after it (02 sections 5.1 and 6.4)."""

from __future__ import annotations

import re

from indextts2.text.language import Language

_CONTRACTION = re.compile(r"(what|where|who|which|how|here|there|it|he|she|that|this)'s", re.IGNORECASE)

# The order matters: at one position the first alternative wins, so `，，，` is never reached (`，` stands before it);
# it ends as `…` all the same when the Chinese grammar has made it `,,,`.
_CHARACTERS = {
    "：": ",",
    "；": ",",
    ";": ",",
    "，": ",",
    "。": ".",
    "！": "!",
    "？": "?",
    "\n": " ",
    "·": "-",
    "、": ",",
    "...": "…",
    ",,,": "…",
    "，，，": "…",
    "……": "…",
    **dict.fromkeys('“”"‘’（）()《》【】[]', "'"),
    "—": "-",
    "～": "-",
    "~": "-",
    "「": "'",
    "」": "'",
    ":": ",",
}
_MAPS: dict[Language, dict[str, str]] = {"en": _CHARACTERS, "zh": {"$": ".", **_CHARACTERS}}
_PATTERNS = {language: re.compile("|".join(map(re.escape, table))) for language, table in _MAPS.items()}


def expand_contractions(text: str) -> str:
    """`it's` -> `it is`; only these words and the ASCII apostrophe, also inside a word (`bandit's` -> `bandit is`)."""
    return _CONTRACTION.sub(r"\1 is", text)


def replace_characters(text: str, language: Language) -> str:
    """Map punctuation to the few marks that the vocabulary knows, in one pass from left to right."""
    table = _MAPS[language]
    return _PATTERNS[language].sub(lambda match: table[match[0]], text)
