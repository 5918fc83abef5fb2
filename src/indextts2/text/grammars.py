"""WeTextProcessing's grammars, kept in the user's cache in the form in which they are used.

A grammar is two finite-state transducers. The library compiles the Chinese one for our options (seconds) and rewrites
both at every start (most of a second). What comes of that is kept and read back as it is, without importing the rules.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from indextts2.text.language import Language

if TYPE_CHECKING:
    from tn.processor import Processor

logger = logging.getLogger(__name__)

GRAMMAR_FILES = ("tagger.fst", "verbalizer.fst")
# The library's names for the orders in which the fields of a token are spoken.
_FIELD_ORDERS: dict[Language, str] = {"zh": "tn", "en": "en_tn"}


class Grammar(NamedTuple):
    """Transducers of tokens and of their words, and the order of the fields of a token."""

    tagger: Any
    verbalizer: Any
    field_order: str


def grammar_folder(language: Language, cache_dir: Path) -> Path:
    """Where a grammar is kept; it is valid for one version of the libraries that made it."""
    versions = f"wetextprocessing-{version('WeTextProcessing')}-pynini-{version('pynini')}"
    return cache_dir / "grammars" / f"{language}-{versions}"


def load_grammar(language: Language, cache_dir: Path) -> Grammar:
    """Read the kept grammar of `language`, or have the library make it and keep it."""
    folder = grammar_folder(language, cache_dir)
    if all((folder / name).is_file() for name in GRAMMAR_FILES):
        try:
            return read_grammar(folder, language)
        except OSError as error:
            logger.warning("the grammar in %s is damaged (%s); making it again", folder, error)
    return make_grammar(folder, language)


def read_grammar(folder: Path, language: Language) -> Grammar:
    """The grammar that lies in `folder`. Raises OSError for damaged files."""
    import pynini

    tagger, verbalizer = (pynini.Fst.read(str(folder / name)) for name in GRAMMAR_FILES)
    return Grammar(tagger, verbalizer, _FIELD_ORDERS[language])


def make_grammar(folder: Path, language: Language) -> Grammar:
    """Have the library make a grammar, and keep it in `folder`."""
    with tempfile.TemporaryDirectory(prefix="indextts2-grammar-") as workplace:
        processor = _PROCESSORS[language](Path(workplace))
    grammar = Grammar(processor.tagger, processor.verbalizer, _FIELD_ORDERS[language])
    try:
        _keep(grammar, folder)
    except OSError as error:
        logger.warning("cannot keep a grammar in %s: %s; it is made again at every start", folder, error)
    return grammar


def _keep(grammar: Grammar, folder: Path) -> None:
    """Write beside `folder`, then move each whole file into it: a reader or a second writer never sees a part."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".keeping-", dir=folder.parent) as workplace:
        for name, transducer in zip(GRAMMAR_FILES, (grammar.tagger, grammar.verbalizer), strict=True):
            path = Path(workplace) / name
            transducer.write(str(path))
            path.replace(folder / name)


def _make_chinese(workplace: Path) -> Processor:
    from tn.chinese.normalizer import Normalizer

    def make() -> Processor:
        return Normalizer(
            cache_dir=str(workplace), overwrite_cache=False, remove_interjections=False, remove_erhua=False
        )

    logger.info("compiling the Chinese grammar (once, some seconds)")
    make()
    # Read back, the library rewrites it once more: that is the form in which the reference used it.
    return make()


def _make_english(_workplace: Path) -> Processor:
    from tn.english.normalizer import Normalizer

    return Normalizer(overwrite_cache=False)  # reads the transducers that the library ships


_PROCESSORS: dict[Language, Callable[[Path], Processor]] = {"zh": _make_chinese, "en": _make_english}
