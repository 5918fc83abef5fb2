"""Voices that come with the package."""

from __future__ import annotations

from pathlib import Path

import pytest

from indextts2.audio.loader import load_reference
from indextts2.errors import UsageError
from indextts2.inference import named_voices
from indextts2.inference.named_voices import resolve_speaker


def test_named_voices_are_usable_references() -> None:
    voices = named_voices.named_voices()
    assert list(voices) == ["ada", "ben", "cleo"]
    for path in voices.values():
        assert 3 <= load_reference(path).duration <= 15


def test_a_speaker_is_a_file_a_name_or_the_first_voice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    voices = named_voices.named_voices()
    assert resolve_speaker("ben") == voices["ben"]
    assert resolve_speaker(None) == voices["ada"]
    assert resolve_speaker("absent.wav") == "absent.wav"
    monkeypatch.chdir(tmp_path)
    Path("ben").write_bytes(b"")
    assert resolve_speaker("ben") == "ben"
    monkeypatch.setattr(named_voices, "named_voices", dict)
    with pytest.raises(UsageError, match="--speaker"):
        resolve_speaker(None)
