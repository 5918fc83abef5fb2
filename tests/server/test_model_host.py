"""The holder of the model, without a server around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from indextts2.server.model_host import ModelHost
from indextts2.types import Waveform
from tests.server.fakes import Script


def test_a_packaged_recording_is_decoded_once_for_each_loading_of_the_model() -> None:
    script = Script()
    host = ModelHost(script.make_engine)
    first = host.voice(Path("alice.opus"))
    assert host.voice(Path("alice.opus")) is first
    assert script.engines[0].tts.encoded == [Path("alice.opus")]
    host.last_use = 0.0
    assert host.unload_if_idle(0.001)
    host.voice(Path("alice.opus"))
    assert script.engines[1].tts.encoded == [Path("alice.opus")]
    host.close(1)


def test_audio_that_is_given_goes_to_the_model_each_time() -> None:
    script = Script()
    host = ModelHost(script.make_engine)
    waveform = Waveform(np.ones(30000, np.float32), 22050)
    host.voice(waveform)
    host.voice(waveform)
    assert len(script.engines[0].tts.encoded) == 2
    host.close(1)


def test_texts_are_read_in_processes_at_each_loading_of_the_model() -> None:
    script = Script()
    host = ModelHost(script.make_engine)
    for loads in (1, 2):
        host.engine()
        assert [engine.tts.reads_in_processes for engine in script.engines] == [True] * loads
        host.last_use = 0.0
        assert host.unload_if_idle(0.001)
    host.close(1)
