"""Bounds of the caches below torch."""

from __future__ import annotations

import os

import pytest

from indextts2.server.caches import ENTRIES, bound_caches


def test_bounds_are_set_but_the_user_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = ENTRIES
    monkeypatch.setenv(first, "7")
    monkeypatch.setenv(second, "")  # so that it is put back as it was
    monkeypatch.delenv(second)
    bound_caches()
    assert os.environ[first] == "7"
    assert os.environ[second] == str(ENTRIES[second])
