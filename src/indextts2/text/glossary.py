"""A user's glossary: terms and how they are to be read, per language (02 section 6.5)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from indextts2.config import load_yaml
from indextts2.errors import ConfigError
from indextts2.text.language import Language

Reading = str | Mapping[str, str]
_LANGUAGES = ("en", "zh")


def _check_template(pattern: re.Pattern[str], term: str, reading: str) -> None:
    try:
        pattern.sub(reading, term)
    except (re.error, IndexError) as error:
        raise ConfigError(
            f"glossary term {term!r}: the reading {reading!r} is not a valid replacement ({error}); "
            "write a literal backslash as two"
        ) from error


def _check_entry(term: object, reading: object) -> None:
    if not isinstance(term, str) or not term:
        raise ConfigError(f"glossary term {term!r} must be text; put quotes around it")
    if not isinstance(reading, (str, Mapping)):
        raise ConfigError(f"glossary term {term!r}: the reading must be text or a map of en and zh, not {reading!r}")
    for language, value in reading.items() if isinstance(reading, Mapping) else ():
        if language not in _LANGUAGES:
            raise ConfigError(f"glossary term {term!r} names the language {language!r}; known are en and zh")
        if not isinstance(value, str):
            raise ConfigError(f"glossary term {term!r}: the {language} reading must be text, not {value!r}")


class Glossary:
    """Terms with their readings; longer terms are applied first, terms of one length in their given order.

    A term matches anywhere, also inside a word, whatever its case. A reading is text for both languages, or a map
    with `en` and `zh`; where the language of the text is missing, the term takes the glossary's own spelling.
    Readings are regular-expression templates: a backslash is special. Raises ConfigError for anything else.
    """

    def __init__(self, terms: Mapping[str, Reading] | None = None) -> None:
        self._terms: list[tuple[re.Pattern[str], str, Reading]] = []
        for term, reading in (terms or {}).items():
            _check_entry(term, reading)
            pattern = re.compile(re.escape(term), re.IGNORECASE)
            for template in [reading] if isinstance(reading, str) else reading.values():
                _check_template(pattern, term, template)
            self._terms.append((pattern, term, reading))
        self._terms.sort(key=lambda entry: len(entry[1]), reverse=True)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Glossary:
        """Read `term: reading` or `term: {en: reading, zh: reading}` from a YAML file; an empty file has no terms."""
        path = Path(path)
        terms = load_yaml(path)
        if terms is None:
            return cls()
        if not isinstance(terms, dict):
            raise ConfigError(f"{path} must map terms to readings; it holds a {type(terms).__name__}")
        try:
            return cls(terms)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def from_model_dir(cls, model_dir: str | Path) -> Glossary:
        """The glossary that comes with a model (`glossary.yaml`), or an empty one if there is none."""
        path = Path(model_dir) / "glossary.yaml"
        return cls.from_yaml(path) if path.exists() else cls()

    def __len__(self) -> int:
        return len(self._terms)

    def apply(self, text: str, language: Language) -> str:
        """Replace every term in `text` by its reading in `language`."""
        for pattern, term, reading in self._terms:
            # Without a reading in this language the term takes its own spelling, which is no template.
            own_spelling = term.replace("\\", r"\\")
            template = reading if isinstance(reading, str) else reading.get(language, own_spelling)
            text = pattern.sub(template, text)
        return text
