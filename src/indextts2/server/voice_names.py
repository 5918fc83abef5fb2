"""Names of uploaded voices: what they may look like, and when two of them are the same."""

from __future__ import annotations

import hashlib
import unicodedata

from indextts2.errors import UsageError

MAX_NAME_CHARACTERS = 64
PUNCTUATION = " -_.'()"


def check_name(name: str) -> str:
    """The name in its composed form (NFC).

    Raises:
        UsageError: it is empty, too long, begins with a dot, or has characters other than letters, digits and a few
            marks; so no name can mean a path.
    """
    composed = unicodedata.normalize("NFC", name).strip()
    if not composed or len(composed) > MAX_NAME_CHARACTERS:
        raise UsageError(f"the name of a voice has 1 to {MAX_NAME_CHARACTERS} characters, not {len(composed)}")
    wrong = [c for c in composed if not (c in PUNCTUATION or unicodedata.category(c)[0] in "LNM")]
    if wrong:
        raise UsageError(
            f"the name of a voice has letters, digits and {PUNCTUATION.strip()!r}, not U+{ord(wrong[0]):04X}"
        )
    if composed.startswith("."):
        raise UsageError("the name of a voice does not begin with a dot")
    return composed


def name_key(name: str) -> str:
    """Equal for names that differ only in case or in how their characters are composed."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def file_stem(name: str) -> str:
    """The file name that a voice is kept under; it says nothing of the name and is the same on every file system."""
    return hashlib.sha256(name_key(name).encode("utf-8", "surrogatepass")).hexdigest()[:32]
