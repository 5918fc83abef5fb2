"""Where published files come from: the Hugging Face hub (or a mirror of it) and ModelScope."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from indextts2.errors import DownloadError, IndexTTS2Error, MissingExtraError

Report = Callable[[int, int | None], None]

# Repositories that have another name on ModelScope (spec 01 section 2).
MODELSCOPE_NAMES = {
    "funasr/campplus": "iic/speech_campplus_sv_zh-cn_16k-common",
    "facebook/w2v-bert-2.0": "AI-ModelScope/w2v-bert-2.0",
}
SHA256 = re.compile(r"[0-9a-f]{64}")
TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True)
class Remote:
    """What the server says about a file; None where it says nothing. `revision` is a commit where there is one."""

    revision: str | None
    sha256: str | None
    size: int | None


class Source(Protocol):
    """A place that files can be fetched from."""

    def fetch(
        self, repository: str, file: str, revision: str | None, target: Path, report: Report
    ) -> tuple[Remote, Path]:
        """Fetch a file to `target` or a path derived from it, going on with what an earlier call left there.

        Raises:
            DownloadError: the file is not there or the server cannot be reached.
        """

    def list_files(self, repository: str, revision: str | None) -> list[str]:
        """Names of the files of a repository.

        Raises:
            DownloadError: the repository is not there or the server cannot be reached.
        """


class HuggingFace:
    """The Hugging Face hub. Addresses, authentication and transfers are those of `huggingface_hub`.

    Its own download into a folder starts over in each process; here the same transfer goes on from a partial file.
    """

    def __init__(self, endpoint: str | None = None) -> None:
        self.endpoint = endpoint.rstrip("/") if endpoint else None

    def fetch(
        self, repository: str, file: str, revision: str | None, target: Path, report: Report
    ) -> tuple[Remote, Path]:
        """See `Source.fetch`. A file in the cache of the hub's client is copied.

        The partial file is named after the content, so that two revisions never mix.
        """
        from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        with _as_download_error(f"{repository}/{file}", _hub_errors()):
            url = hf_hub_url(repository, file, revision=revision, endpoint=self.endpoint)
            metadata = get_hf_file_metadata(url, timeout=TIMEOUT_SECONDS)
            if not metadata.commit_hash or not metadata.etag:
                raise DownloadError(
                    f"{url} is not served by a Hugging Face hub: it names no commit; check the endpoint"
                )
            part = target.with_name(f"{target.name}.{metadata.etag[:16]}.part")
            have = part.stat().st_size if part.is_file() else 0
            if metadata.size is not None and have > metadata.size:
                part.unlink()
                have = 0
            cached = try_to_load_from_cache(repository, file, revision=metadata.commit_hash)
            if isinstance(cached, str):
                shutil.copyfile(cached, part)
                have = part.stat().st_size
            report(have, metadata.size)
            pinned = hf_hub_url(repository, file, revision=metadata.commit_hash, endpoint=self.endpoint)
            with _ReportingWriter(part, metadata.size, report) as writer:
                http_get(pinned, writer, resume_size=have, headers=build_hf_headers(), expected_size=metadata.size)
        etag = metadata.etag if SHA256.fullmatch(metadata.etag) else None
        return Remote(metadata.commit_hash, etag, metadata.size), part

    def list_files(self, repository: str, revision: str | None) -> list[str]:
        """See `Source.list_files`."""
        from huggingface_hub import HfApi

        with _as_download_error(repository, _hub_errors()):
            return HfApi(endpoint=self.endpoint).list_repo_files(repository, revision=revision)


class ModelScope:
    """ModelScope through its own client, which resumes by itself; progress is reported per file."""

    def __init__(self, endpoint: str | None = None) -> None:
        try:
            from modelscope.hub import api, file_download
        except ImportError as error:
            raise MissingExtraError("downloading from ModelScope", "modelscope") from error
        self._api, self._file_download = api, file_download
        self._options = {"endpoint": endpoint} if endpoint else {}

    def fetch(
        self, repository: str, file: str, revision: str | None, target: Path, report: Report
    ) -> tuple[Remote, Path]:
        """See `Source.fetch`."""
        name = MODELSCOPE_NAMES.get(repository, repository)
        folder = target.parent / f"{target.name}.modelscope"
        with _as_download_error(f"{name}/{file} on ModelScope", (Exception,)):
            path = Path(
                self._file_download.model_file_download(
                    name, file, revision=revision, local_dir=str(folder), **self._options
                )
            )
            size = path.stat().st_size
        report(size, size)
        return Remote(revision, None, size), path

    def list_files(self, repository: str, revision: str | None) -> list[str]:
        """See `Source.list_files`."""
        name = MODELSCOPE_NAMES.get(repository, repository)
        with _as_download_error(f"{name} on ModelScope", (Exception,)):
            files = self._api.HubApi(**self._options).get_model_files(name, revision=revision, recursive=True)
        return [entry["Path"] for entry in files if entry.get("Type") != "tree"]


class _ReportingWriter(io.BufferedRandom):
    """Appends to a file and reports its length after every write."""

    def __init__(self, path: Path, total: int | None, report: Report) -> None:
        path.touch()
        super().__init__(io.FileIO(path, "r+"))
        self.seek(0, io.SEEK_END)
        self._total, self._report = total, report

    def write(self, data: Any, /) -> int:
        written = super().write(data)
        self._report(self.tell(), self._total)
        return written


@contextmanager
def _as_download_error(what: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn the errors of a client into DownloadError; our own pass."""
    try:
        yield
    except IndexTTS2Error:
        raise
    except errors as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DownloadError(f"cannot fetch {what}: {reason}") from error


def _hub_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub and the HTTP client beneath it raise (`HTTPError` is that client's, which has changed)."""
    from huggingface_hub import errors

    return (OSError, errors.HTTPError, errors.EntryNotFoundError, errors.HFValidationError)
