import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from indextts2.checkpoints.tensor_files import as_tensors, read_pickle, read_safetensors
from indextts2.errors import CheckpointError


class Hostile:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_code_in_a_pickle_is_not_executed(tmp_path: Path, form: str) -> None:
    mark, file = tmp_path / "mark", tmp_path / "gpt.pth"
    content = {"model": Hostile(f"touch {mark}")}
    if form == "bare":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(CheckpointError, match=r"gpt\.pth cannot be read"):
        read_pickle(file)
    assert not mark.exists()


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_pickles_of_both_formats_are_read(tmp_path: Path, form: str) -> None:
    file = tmp_path / "a.pth"
    torch.save({"a": torch.arange(5.0)}, file, _use_new_zipfile_serialization=form == "zip")
    assert torch.equal(read_pickle(file)["a"], torch.arange(5.0))


def test_a_recompressed_archive_is_read_too(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save({"a": torch.arange(5000.0)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert torch.equal(read_pickle(packed)["a"], torch.arange(5000.0))


@pytest.mark.parametrize("keep", [0, 1, 100, 3000, -1])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files(tmp_path: Path, suffix: str, keep: int) -> None:
    file = tmp_path / f"a{suffix}"
    tensors = {"a": torch.randn(1000), "b": torch.randn(30, 40)}
    if suffix == ".pth":
        torch.save(tensors, file)
    else:
        save_file(tensors, file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=str(file)):
        (read_pickle if suffix == ".pth" else read_safetensors)(file)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40, 0])
def test_absurd_safetensors_header(tmp_path: Path, length: int) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", length) + b"{}" * 20)
    with pytest.raises(CheckpointError, match="not a valid safetensors file"):
        read_safetensors(file)


def test_safetensors_with_offsets_beyond_the_file(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}'
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(CheckpointError):
        read_safetensors(file)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(CheckpointError, match="missing"):
            read_pickle(path)


@pytest.mark.parametrize("value", [[1], torch.zeros(2), {"a": 1}, {3: torch.zeros(1)}, {"a": torch.eye(3).to_sparse()}])
def test_what_is_no_state_dict(value: object) -> None:
    with pytest.raises(CheckpointError, match=r"f\.pth"):
        as_tensors(value, "f.pth")


def test_gradient_requirement_is_dropped() -> None:
    assert not as_tensors({"a": torch.zeros(1, requires_grad=True)}, "f")["a"].requires_grad
