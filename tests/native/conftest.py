"""What the tests of the kernels share."""

from __future__ import annotations

import pytest

from indextts2.native import library


@pytest.fixture(params=["AVX-512", "AVX2", "baseline"])
def instruction_set(request: pytest.FixtureRequest):
    """Every variant that this processor can run."""
    native = library.loaded()
    native.limit_instruction_set(["baseline", "AVX2", "AVX-512"].index(request.param))
    if native.instruction_set_name().decode() != request.param:
        pytest.skip(f"this processor lacks {request.param}")
    yield
    native.limit_instruction_set(2)
