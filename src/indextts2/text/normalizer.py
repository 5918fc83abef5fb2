"""Text to speakable text: numbers, dates and units in words, punctuation reduced to what the vocabulary holds.

The order of the steps is the reference's (02 sections 2 to 5); each subject has its own module beside this one.
"""

from __future__ import annotations

import logging
from pathlib import Path

from indextts2.errors import TextError
from indextts2.text.chunks import split_chunks
from indextts2.text.engines import Engine, EngineLoader
from indextts2.text.glossary import Glossary
from indextts2.text.language import Language, use_chinese
from indextts2.text.protections import (
    correct_pinyin,
    hide_annotations,
    hide_names,
    hide_pinyin,
    hide_term_hyphens,
    restore_annotations,
    restore_term_hyphens,
)
from indextts2.text.substitutions import expand_contractions, replace_characters

logger = logging.getLogger(__name__)


def require_unicode(text: str) -> None:
    """Raise TextError if `text` holds half of a surrogate pair, which no encoding can carry."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError(
            f"the text is not valid Unicode: character {error.start + 1} is the lone surrogate "
            f"U+{ord(text[error.start]):04X}; decode the text with its right encoding"
        ) from error


class TextNormalizer:
    """Normaliser of Chinese, English and mixed text; safe to share between threads.

    `glossary`: terms with their readings, applied before all else. `cache_dir`: where the compiled Chinese grammar is
    kept (default: the user's cache directory). Grammars load at the first text that needs them.
    """

    def __init__(
        self, glossary: Glossary | None = None, cache_dir: Path | None = None, engines: EngineLoader | None = None
    ) -> None:
        self._glossary = glossary or Glossary()
        self._engines = engines or EngineLoader(cache_dir)

    def use_chinese(self, text: str) -> bool:
        """True if the Chinese grammar reads `text`; the decision is for the whole text."""
        return use_chinese(text)

    def read_in_processes(self) -> None:
        """Run the grammars in processes of their own from now on, see `processes`; the readings stay the same."""
        self._engines = self._engines.in_processes()

    def load(self, language: Language) -> None:
        """Load the grammar of a language now, rather than at its first text (the first time Chinese takes seconds)."""
        self._engines.get(language)

    def normalize(self, text: str) -> str:
        """Normalise `text`. Raises TextError if it is not valid Unicode, or if the Chinese grammar cannot read it."""
        require_unicode(text)
        text, annotations = hide_annotations(text)
        text = self._normalize_chinese(text) if use_chinese(text) else self._normalize_english(text)
        return restore_annotations(text, annotations)

    def _normalize_chinese(self, text: str) -> str:
        text = self._glossary.apply(expand_contractions(text), "zh")
        text, has_terms = hide_term_hyphens(text.rstrip())
        pinyin = hide_pinyin(text)
        names = hide_names(pinyin.text)
        text = self._apply_grammar(names.text, "zh")
        text = pinyin.restore(names.restore(text), correct_pinyin)
        return replace_characters(restore_term_hyphens(text) if has_terms else text, "zh")

    def _normalize_english(self, text: str) -> str:
        text = self._glossary.apply(expand_contractions(text), "en")
        text, has_terms = hide_term_hyphens(text)
        text = self._apply_grammar(text, "en")
        return replace_characters(restore_term_hyphens(text) if has_terms else text, "en")

    def _apply_grammar(self, text: str, language: Language) -> str:
        chunks = split_chunks(text)
        if not text:
            return text
        engine = self._engines.get(language)
        if len(chunks) == 1:
            return _read(engine, text, language)
        if language == "en":  # this grammar drops spaces at the ends, and keeps one elsewhere
            parts = (_read(engine, chunk.rstrip(), language) + " " * chunk[-1].isspace() for chunk in chunks)
            return "".join(parts).rstrip()
        return "".join(_read(engine, chunk, language) for chunk in chunks)


def _read(engine: Engine, text: str, language: Language) -> str:
    """Run the grammar. What the English one cannot read stays as it is (as in the reference), with a warning."""
    try:
        return engine.normalize(text) if text else ""
    except TextError as error:
        if language == "zh":
            raise
        logger.warning("%s; its numbers and abbreviations stay as written", error)
        return text
