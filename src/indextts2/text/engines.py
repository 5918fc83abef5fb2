"""The external grammars that read numbers, dates, money and units: WeTextProcessing on Linux, wetext elsewhere.

Both tag a text with one finite-state transducer, put the fields of each token in the order of speech, and verbalise
with a second one (02 section 9). They are imported and loaded per language, at the first text that needs it.
"""

from __future__ import annotations

import logging
import platform
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from indextts2.errors import TextError
from indextts2.text.cache import default_cache_dir
from indextts2.text.grammars import Grammar, load_grammar
from indextts2.text.language import Language

_CHATTY_LOGGERS = ("wetext", "wetext-zh_normalizer", "wetext-en_normalizer")
_LANGUAGE_NAMES: dict[Language, str] = {"zh": "Chinese", "en": "English"}


class Engine(Protocol):
    """A grammar of one language."""

    def normalize(self, text: str) -> str:
        """Return `text` in words. Raises TextError if the grammar has no reading for it."""


def _no_reading(language: Language, text: str) -> TextError:
    return TextError(
        f"the {_LANGUAGE_NAMES[language]} grammar has no reading for {text[:40]!r} ({len(text)} characters)"
    )


class WeTextProcessingEngine:
    """WeTextProcessing's transducers. Used directly, since its own calls write to stderr when there is no reading."""

    def __init__(self, language: Language, grammar: Grammar) -> None:
        from tn.token_parser import TokenParser

        self._language = language
        self._grammar = grammar
        self._token_parser = TokenParser
        self._lock = threading.Lock()

    def normalize(self, text: str) -> str:
        """Tag, reorder, verbalise; raises TextError if there is no path through a transducer."""
        with self._lock:
            tagged = self._best_path(text, self._grammar.tagger, text)
            ordered = self._token_parser(self._grammar.field_order).reorder(tagged) if tagged else ""
            return self._best_path(ordered, self._grammar.verbalizer, text)

    def _best_path(self, text: str, transducer: Any, source: str) -> str:
        import pynini

        if not text:
            return ""
        lattice = pynini.escape(text) @ transducer
        if lattice.start() < 0:
            raise _no_reading(self._language, source)
        return pynini.shortestpath(lattice, nshortest=1, unique=True).string()


class WeTextEngine:
    """wetext's transducers, with what keeps them near WeTextProcessing.

    The tagger runs always, not only on text with digits, and Chinese is turned to simplified characters before and to
    half-width ones after. Spacing in English may still differ.
    """

    def __init__(self, language: Language) -> None:
        import wetext

        self._language = language
        self._wetext = wetext
        self._lock = threading.Lock()

    def normalize(self, text: str) -> str:
        """Tag, reorder, verbalise; raises TextError if a transducer gives nothing."""
        language, wetext, chinese = self._language, self._wetext, self._language == "zh"
        with self._lock:
            prepared = wetext.preprocess(text, traditional_to_simple=chinese)
            if not prepared:
                return ""
            tagged = wetext.tag(prepared, language, "tn")
            if not tagged:
                raise _no_reading(language, text)
            spoken = wetext.verbalize(wetext.reorder(tagged, language, "tn"), language, "tn")
            if not spoken:
                raise _no_reading(language, text)
            if "\\" not in text:  # wetext 0.1.8 leaves its own escapes in front of quotation marks
                spoken = spoken.replace("\\", "")
            return wetext.postprocess(spoken, full_to_half=chinese)


def _silence() -> None:
    """WeTextProcessing logs its progress at level INFO to a handler of its own; keep it quiet."""
    for name in _CHATTY_LOGGERS:
        logging.getLogger(name).disabled = True


def _load_wetextprocessing(language: Language, cache_dir: Path) -> Engine:
    _silence()
    return WeTextProcessingEngine(language, load_grammar(language, cache_dir))


def load_engine(language: Language, cache_dir: Path) -> Engine:
    """Load this platform's grammar of `language`. Raises TextError if its library is not installed."""
    on_linux = platform.system() == "Linux"
    try:
        return _load_wetextprocessing(language, cache_dir) if on_linux else WeTextEngine(language)
    except ImportError as error:
        library = "WeTextProcessing" if on_linux else "wetext"
        raise TextError(
            f"{library}, which reads numbers in {_LANGUAGE_NAMES[language]} text, cannot be imported ({error}); "
            f"install it with: pip install {library}"
        ) from error


class EngineLoader:
    """Loads each language's grammar once, when first asked for; one language never waits for the other."""

    def __init__(self, cache_dir: Path | None = None, load: Callable[[Language, Path], Engine] = load_engine) -> None:
        self._cache_dir = cache_dir
        self._load = load
        self._engines: dict[Language, Engine] = {}
        self._locks: dict[Language, threading.Lock] = {"zh": threading.Lock(), "en": threading.Lock()}

    def in_processes(self) -> EngineLoader:
        """A loader whose grammars run in processes of their own; itself if it is one."""
        from indextts2.text.processes import ProcessEngine

        return self if self._load is ProcessEngine else EngineLoader(self._cache_dir, ProcessEngine)

    def get(self, language: Language) -> Engine:
        """The grammar of `language`; loads it if this is the first call for it."""
        with self._locks[language]:
            if language not in self._engines:
                self._engines[language] = self._load(language, self._cache_dir or default_cache_dir())
            return self._engines[language]
