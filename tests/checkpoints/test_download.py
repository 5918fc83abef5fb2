"""Downloads against a local server that speaks the part of the hub's protocol that is used."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from indextts2.checkpoints.download import LICENCE_NOTICE, DownloadProgress, download
from indextts2.checkpoints.layout import MAIN_REPOSITORY, official_files
from indextts2.checkpoints.pins import PINS, Pin, read_lock
from indextts2.checkpoints.sources import MODELSCOPE_NAMES
from indextts2.errors import Cancelled, DownloadError, MissingExtraError, UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 3_000_000


@dataclass
class Hub:
    """Files by (repository, name), what was asked for, and how to misbehave."""

    address: str = ""
    commit: str = COMMIT
    files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    cut_after: dict[str, int] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.respond(send_body=False)

    def do_GET(self) -> None:
        self.respond(send_body=True)

    def respond(self, send_body: bool) -> None:
        range_header = self.headers.get("Range")
        self.hub.requests.append((self.command, self.path, range_header))
        if self.path.startswith("/api/models/"):
            return self.list_files()
        repository, _, rest = self.path.strip("/").partition("/resolve/")
        _, _, name = rest.partition("/")
        content = self.hub.files.get((repository, name))
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        start = int(range_header.removeprefix("bytes=").split("-")[0]) if range_header else 0
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", self.hub.commit)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if send_body:
            self.send_content(name, content, start)
        return None

    def send_content(self, name: str, content: bytes, start: int) -> None:
        if name in self.hub.corrupt:
            content = bytes(len(content))
        if name in self.hub.cut_after:  # once: half of the file, then the line is dead
            content = content[: self.hub.cut_after.pop(name)]
        self.wfile.write(content[start:])

    def list_files(self) -> None:
        repository = self.path.removeprefix("/api/models/").partition("/revision/")[0].partition("/tree/")[0]
        names = [name for owner, name in self.hub.files if owner == repository]
        siblings = [{"rfilename": name} for name in names]
        tree = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in names]
        info = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings}
        body = json.dumps(tree if "/tree/" in self.path else info).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    state = Hub()
    for entry in official_files():
        content = f"{entry.repository}/{entry.repository_path} ".encode() * 20
        state.files[entry.repository, entry.repository_path] = content
    state.files[MAIN_REPOSITORY, "gpt.pth"] = bytes(range(256)) * (LARGE // 256)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": state}))
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    # The client loses up to one chunk of 10 MB when a line is cut; the files here are smaller.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(hub: Hub, target: Path, **options: Any) -> Path:
    # The real pins describe the real files, which this server does not have.
    return download(target=target, accept_license=True, endpoint=hub.address, **{"pins": {}, **options})


def test_all_files_reach_their_places(hub: Hub, tmp_path: Path) -> None:
    seen: list[DownloadProgress] = []
    target = fetch(hub, tmp_path / "m", on_progress=seen.append)
    for entry in official_files():
        assert (target / entry.path).read_bytes() == hub.files[entry.repository, entry.repository_path]
    lock = read_lock(target)
    assert set(lock) == {entry.path for entry in official_files()}
    gpt = lock["gpt.pth"]
    assert gpt.revision == COMMIT and gpt.size == len(hub.files[MAIN_REPOSITORY, "gpt.pth"])
    assert gpt.sha256 == hashlib.sha256(hub.files[MAIN_REPOSITORY, "gpt.pth"]).hexdigest()
    assert not (target / ".download").exists()
    ends = [progress for progress in seen if progress.done == progress.total]
    assert {progress.path for progress in ends} == set(lock) and ends[-1].index == ends[-1].files == len(lock)


def test_a_second_call_fetches_nothing(hub: Hub, tmp_path: Path) -> None:
    target = fetch(hub, tmp_path)
    hub.requests.clear()
    assert fetch(hub, tmp_path) == target
    assert hub.requests == []


def test_a_cut_line_is_resumed_within_one_call(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after["gpt.pth"] = 1_000_000
    target = fetch(hub, tmp_path)
    assert (target / "gpt.pth").read_bytes() == hub.files[MAIN_REPOSITORY, "gpt.pth"]
    assert [r for _, path, r in hub.requests if path.endswith("gpt.pth") and r] == ["bytes=1000000-"]


def test_a_stopped_download_is_resumed_by_a_later_call(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after["gpt.pth"] = 1_000_000

    def stop(progress: DownloadProgress) -> None:
        if progress.path == "gpt.pth" and progress.done >= 1_000_000:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        fetch(hub, tmp_path, on_progress=stop)
    assert not (tmp_path / "gpt.pth").exists()
    hub.requests.clear()
    fetch(hub, tmp_path)
    assert (tmp_path / "gpt.pth").read_bytes() == hub.files[MAIN_REPOSITORY, "gpt.pth"]
    assert [r for _, path, r in hub.requests if path.endswith("gpt.pth") and r] == ["bytes=1000000-"]


def test_a_partial_file_of_another_revision_is_not_continued(hub: Hub, tmp_path: Path) -> None:
    def stop(progress: DownloadProgress) -> None:
        if progress.path == "gpt.pth" and progress.done:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        fetch(hub, tmp_path, on_progress=stop)
    hub.files[MAIN_REPOSITORY, "gpt.pth"] = b"another revision" * 1000
    fetch(hub, tmp_path)
    assert (tmp_path / "gpt.pth").read_bytes() == b"another revision" * 1000


def test_content_that_is_not_what_the_server_declared(hub: Hub, tmp_path: Path) -> None:
    hub.corrupt.add("s2mel.pth")
    with pytest.raises(DownloadError, match=r"s2mel\.pth.* has SHA-256 .*; expected .*; the file was removed"):
        fetch(hub, tmp_path)
    assert not (tmp_path / "s2mel.pth").exists() and not list(tmp_path.rglob("s2mel.pth*"))
    hub.corrupt.clear()
    fetch(hub, tmp_path)


def test_pins_are_held(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="b2a5ce8090d32da3642cc4f81fdc996376bc6dd3f4cd5e3d165f71120d9f2bc8"):
        fetch(hub, tmp_path, pins=PINS)
    assert not (tmp_path / "bpe.model").exists() and not list(tmp_path.rglob("bpe.model*"))


def test_a_pinned_revision_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    content = hub.files[MAIN_REPOSITORY, "bpe.model"]
    pin = Pin(hashlib.sha256(content).hexdigest(), len(content), "f" * 40)
    fetch(hub, tmp_path, pins={(MAIN_REPOSITORY, "bpe.model"): pin}, revisions={"funasr/campplus": "v1"})
    paths = {path for method, path, _ in hub.requests if method == "HEAD"}
    assert f"/{MAIN_REPOSITORY}/resolve/{'f' * 40}/bpe.model" in paths
    assert "/funasr/campplus/resolve/v1/campplus_cn_common.bin" in paths
    assert f"/{MAIN_REPOSITORY}/resolve/main/gpt.pth" in paths


def test_a_lost_file_must_come_back_as_it_was_locked(hub: Hub, tmp_path: Path) -> None:
    fetch(hub, tmp_path)
    (tmp_path / "feat1.pt").unlink()
    hub.files[MAIN_REPOSITORY, "feat1.pt"] = b"new content"
    with pytest.raises(DownloadError, match="expected"):
        fetch(hub, tmp_path)
    assert (f"/{MAIN_REPOSITORY}/resolve/{COMMIT}/feat1.pt") in {path for _, path, _ in hub.requests}
    fetch(hub, tmp_path, revisions={MAIN_REPOSITORY: "newer"})
    assert (tmp_path / "feat1.pt").read_bytes() == b"new content"


def test_a_changed_file_is_not_overwritten_silently(hub: Hub, tmp_path: Path) -> None:
    fetch(hub, tmp_path)
    (tmp_path / "gpt.pth").write_bytes(b"mine")
    with pytest.raises(DownloadError, match=r"gpt\.pth has SHA-256 .* remove it to download it again"):
        fetch(hub, tmp_path)
    assert (tmp_path / "gpt.pth").read_bytes() == b"mine"


def test_a_file_that_was_there_before_is_recorded(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "gpt.pth").write_bytes(b"copied by hand")
    fetch(hub, tmp_path)
    assert (tmp_path / "gpt.pth").read_bytes() == b"copied by hand"
    assert read_lock(tmp_path)["gpt.pth"].revision is None


@pytest.mark.parametrize("good", [True, False])
def test_the_cache_of_the_hub_is_used_and_not_trusted(hub: Hub, tmp_path: Path, good: bool) -> None:
    content = hub.files[MAIN_REPOSITORY, "gpt.pth"]
    cached = tmp_path / "hub-cache" / "models--IndexTeam--IndexTTS-2" / "snapshots" / COMMIT / "gpt.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(content if good else bytes(len(content)))
    if good:
        assert (fetch(hub, tmp_path / "m") / "gpt.pth").read_bytes() == content
    else:
        with pytest.raises(DownloadError, match=r"gpt\.pth.* has SHA-256"):
            fetch(hub, tmp_path / "m")
    assert not [path for method, path, _ in hub.requests if method == "GET" and path.endswith("gpt.pth")]


def test_missing_file_on_the_server(hub: Hub, tmp_path: Path) -> None:
    del hub.files["amphion/MaskGCT", "semantic_codec/model.safetensors"]
    with pytest.raises(DownloadError, match=r"amphion/MaskGCT/semantic_codec/model\.safetensors"):
        fetch(hub, tmp_path)


def test_unreachable_server(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"cannot fetch IndexTeam/IndexTTS-2/config\.yaml"):
        download(target=tmp_path, accept_license=True, endpoint="http://127.0.0.1:9", pins={})


def test_a_server_that_is_no_hub(hub: Hub, tmp_path: Path) -> None:
    hub.commit = ""
    with pytest.raises(DownloadError):
        fetch(hub, tmp_path)


def test_model_that_reads_emotion_from_words(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="holds no folder qwen"):
        fetch(hub, tmp_path, emotion_text=True)
    names = ["qwen0.6bemo4-merge/config.json", "qwen0.6bemo4-merge/model.safetensors"]
    hub.files |= {(MAIN_REPOSITORY, name): name.encode() for name in names}
    fetch(hub, tmp_path, emotion_text=True)
    assert all((tmp_path / name).read_bytes() == name.encode() for name in names)


def test_licence_must_be_accepted(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="licence of the weights was not accepted"):
        download(target=tmp_path / "m")
    assert not (tmp_path / "m").exists() and "bilibili" in LICENCE_NOTICE
    with pytest.raises(UsageError, match="no model 'x'"):
        download("x", tmp_path, accept_license=True)


def test_malformed_lock(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "download.lock.json").write_text('{"version": 1, "files": {"a": 1}}')
    with pytest.raises(DownloadError, match="malformed"):
        fetch(hub, tmp_path)


def test_modelscope_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(MissingExtraError, match=r"indextts2\[modelscope\]"):
        download(target=tmp_path, accept_license=True, source="modelscope")


def test_modelscope(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, str | None]] = []
    names = {other: name for name, other in MODELSCOPE_NAMES.items()}

    def model_file_download(model_id: str, file_path: str, revision: str | None = None, *, local_dir: str) -> str:
        asked.append((model_id, file_path, revision))
        content = hub.files.get((names.get(model_id, model_id), file_path))
        if content is None:
            raise RuntimeError(f"{file_path} does not exist")
        path = Path(local_dir) / file_path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path)

    package, api, files = (types.ModuleType(f"modelscope.hub{suffix}") for suffix in ("", ".api", ".file_download"))
    files.model_file_download = model_file_download
    package.api, package.file_download = api, files
    for name, module in {"": types.ModuleType("modelscope"), ".hub": package}.items():
        monkeypatch.setitem(sys.modules, f"modelscope{name}", module)
    options: dict[str, Any] = {"target": tmp_path, "accept_license": True, "source": "modelscope", "pins": {}}
    del hub.files[MAIN_REPOSITORY, "feat2.pt"]
    with pytest.raises(DownloadError, match=r"feat2\.pt on ModelScope: feat2\.pt does not exist"):
        download(**options)
    hub.files[MAIN_REPOSITORY, "feat2.pt"] = b"there now"
    download(**options)
    for entry in official_files():
        assert (tmp_path / entry.path).read_bytes() == hub.files[entry.repository, entry.repository_path]
    assert ("iic/speech_campplus_sv_zh-cn_16k-common", "campplus_cn_common.bin", None) in asked
    assert not (tmp_path / ".download").exists()
