"""The registry of voices: on disk, complete or not at all, whatever happens to the server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from indextts2.errors import CheckpointError, UsageError
from indextts2.inference.voice import Voice
from indextts2.server.settings import ServerSettings
from indextts2.server.voice_names import check_name, file_stem, name_key
from indextts2.server.voices import CACHE_SIZE, VoiceLibrary, VoiceRegistry
from tests.server.conftest import error_of, say, upload, wav_bytes
from tests.server.fakes import Script, make_voice, no_partial_files

FACTS = {"consent": "given", "file_size": "9", "mime_type": "audio/wav"}


@pytest.fixture
def registry(tmp_path: Path) -> VoiceRegistry:
    registry = VoiceRegistry(tmp_path, max_voices=100)
    registry.prepare()
    return registry


def test_upload_list_speak_delete(client: Any, tmp_path: Path) -> None:
    response = upload(client, "Bob", ref_text="hello", speaker_description="a calm voice")
    assert response.status_code == 200
    voice = response.json()["voice"]
    assert voice["consent"].startswith("spoken by")
    assert voice["file_size"] == len(wav_bytes())
    assert voice["mime_type"] == "audio/wav"
    assert voice["usable"]
    listed = client.get("/v1/audio/voices").json()
    assert listed["voices"] == ["alice", "Bob"]
    assert listed["uploaded_voices"][1] == voice
    assert voice["ref_text"] == "hello"
    assert "ref_text" not in listed["uploaded_voices"][0]
    assert say(client, voice="bob").status_code == 200
    assert client.delete("/v1/audio/voices/BOB").json()["success"]
    assert error_of(say(client, voice="bob"))["code"] == "voice_not_found"
    assert no_partial_files(tmp_path / "voices")


def test_voices_outlive_the_server(make_client: Callable[..., Any], script: Script) -> None:
    upload(make_client(voice=False), "Bob", speaker_description="calm ‘’ 静か")
    second = make_client(voice=False)
    assert second.get("/v1/audio/voices").json()["uploaded_voices"][0]["speaker_description"] == "calm ‘’ 静か"
    assert say(second, voice="Bob").status_code == 200


def test_a_voice_of_another_model_is_named_as_such(make_client: Callable[..., Any], script: Script) -> None:
    upload(make_client(voice=False), "Bob")
    script.fingerprint = "e" * 32
    client = make_client(voice=False)
    assert client.get("/v1/audio/voices").json()["uploaded_voices"][0]["usable"] is False
    assert error_of(say(client, voice="Bob"), 409)["code"] == "voice_of_other_model"


def test_names() -> None:
    assert check_name("  Zoe\u0308 ") == "Zoë"
    assert check_name("李雷 (2)") == "李雷 (2)"
    assert name_key("STRASSE") == name_key("straße") == name_key("ｓtrasse")
    assert file_stem("Alice") == file_stem("ALICE") != file_stem("Bob")
    assert len(file_stem("x" * 64)) == 32
    with pytest.raises(UsageError):
        check_name("a/b")


def test_64_and_damaged_files_are_left_out(registry: VoiceRegistry, caplog: pytest.LogCaptureFixture) -> None:
    registry.add("good", make_voice(), FACTS)
    bad = {
        "bomb": b"\xff" * 7 + b"\x7f" + b"{}",  # a header of 2^63 bytes
        "pickle": b"\x80\x04cposix\nsystem\n(S'touch pwned'\ntR.",
        "cut": registry._path("good").read_bytes()[:-20],
        "empty": b"",
    }
    for name, data in bad.items():
        registry._path(name).write_bytes(data)
    (registry.directory / "notes.txt").write_text("no voice")
    assert [voice.name for voice in registry.all()] == ["good"]
    assert caplog.text.count("is skipped") == 4
    for name in bad:
        with pytest.raises(CheckpointError):
            registry.get(name)
    assert not Path("pwned").exists()


def test_31_links_lead_nowhere(registry: VoiceRegistry, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = make_voice().save(tmp_path_factory.mktemp("outside") / "secret.safetensors")
    registry._path("linked").symlink_to(outside)
    assert registry.all() == []
    assert registry.get("linked") is None
    assert registry.remove("linked")
    assert outside.exists(), "only the link was deleted"


def test_memory_holds_a_bounded_number(registry: VoiceRegistry) -> None:
    for index in range(CACHE_SIZE + 5):
        registry.add(f"voice {index}", make_voice(), FACTS)
        assert registry.get(f"voice {index}") is not None
    assert len(registry._loaded) == CACHE_SIZE
    again = registry.get("voice 36")
    assert again is registry.get("VOICE 36")


def test_a_voice_that_was_replaced_is_read_again(registry: VoiceRegistry) -> None:
    registry.add("a", make_voice(), FACTS)
    assert registry.get("a").model == "f" * 32
    registry.remove("a")
    assert registry.get("a") is None
    registry.add("a", make_voice("e" * 32), FACTS)
    assert registry.get("a").model == "e" * 32


def test_default_voice_and_unknown_names(registry: VoiceRegistry, packaged_voices: dict[str, Path]) -> None:
    library = VoiceLibrary(registry, {"alloy": "first"})
    with pytest.raises(UsageError, match="there is no voice yet"):
        library.speaker(None)
    registry.add("first", make_voice(), FACTS)
    assert library.speaker(None) is library.speaker("default") is library.speaker("alloy") is registry.get("first")
    assert library.speaker(None) is not None
    packaged_voices["ada"] = Path("ada.opus")
    assert library.names() == ["ada", "first", "alloy"]
    assert library.speaker(None) == library.speaker("ada") == Path("ada.opus")
    with pytest.raises(UsageError, match="there is no voice 'nobody'"):
        library.speaker("nobody")


def test_packaged_voices_can_be_spoken_with_but_not_replaced(
    client: Any, script: Script, packaged_voices: dict[str, Path]
) -> None:
    packaged_voices["ada"] = Path("ada.opus")
    assert say(client, voice="ada").status_code == 200
    assert script.engines[0].tts.encoded == [Path("ada.opus")]
    assert error_of(upload(client, "ADA"), 409)["code"] == "voice_exists"
    error_of(client.delete("/v1/audio/voices/ada"), 404)


def test_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be used"):
        VoiceRegistry(tmp_path / "file", 1).prepare()


WRITER = """
import sys
from pathlib import Path
from indextts2.server.voices import VoiceRegistry
from tests.server.fakes import make_voice
registry = VoiceRegistry(Path(sys.argv[1]), 100000)
registry.prepare()
print("ready", flush=True)
for index in range(100000):
    registry.add(f"voice {index}", make_voice(), {"consent": "c", "file_size": "1", "mime_type": "audio/wav"})
"""


def test_killed_at_any_moment(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    while len(list(tmp_path.glob("*.safetensors"))) < 20:
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (tmp_path / f".{'0' * 32}.safetensors.abc").write_bytes(b"half a file")
    registry = VoiceRegistry(tmp_path, 100)
    registry.prepare()
    names = {voice.name for voice in registry.all()}
    assert len(names) == len(list(tmp_path.iterdir())) >= 20, "every file is whole, and nothing else is left"
    assert all(isinstance(registry.get(name), Voice) for name in names)


def test_settings_name_a_private_directory(tmp_path: Path) -> None:
    registry = VoiceRegistry(ServerSettings(voices_directory=tmp_path / "a" / "b").voices_directory, 1)
    registry.prepare()
    assert registry.directory.stat().st_mode & 0o077 == 0
