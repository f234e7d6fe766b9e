"""Strangers' files: what honest ones say, and that the others do nothing but give an error."""

import argparse
import errno
import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import types
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harness.errors import UserError
from harness.importing import reading
from harness.importing.reading import read_checkpoint

MODEL = {"module.norm.weight": torch.arange(3.0), "module.norm.bias": torch.ones(3, dtype=torch.float16)}


class RunsCode:
    """A pickle that leaves a file behind when it is believed."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def saved(path: Path, content: object, **options: bool) -> Path:
    torch.save(content, path, **options)
    return path


def rewritten(path: Path, change: Callable[[bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A torch file with its pickle changed, or packed otherwise."""
    with zipfile.ZipFile(path) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return path


# Honest files


@pytest.mark.parametrize("container", ["base_model", "model", "state_dict", None])
@pytest.mark.parametrize("format", ["zip", "old", "safetensors"])
def test_tensors_wherever_they_lie(container: str | None, format: str, tmp_path: Path, in_process: None) -> None:
    path = tmp_path / "a.pth"
    if format == "safetensors":
        container = None
        save_file(MODEL, path)
    else:
        saved(path, {container: MODEL} if container else MODEL, _use_new_zipfile_serialization=format == "zip")
    found = read_checkpoint(path)
    assert (found.container, found.size, len(found.digest)) == (container, path.stat().st_size, 64)
    assert {name: tensor.dtype for name, tensor in found.tensors.items()} == dict.fromkeys(MODEL, torch.float32)
    assert all(torch.equal(found.tensors[name], MODEL[name].float()) for name in MODEL)


def test_what_the_papers_code_puts_beside_the_model(
    tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    easydict = types.ModuleType("easydict")
    monkeypatch.setitem(sys.modules, "easydict", easydict)
    kind = type("EasyDict", (dict,), {"__module__": "easydict", "__setattr__": dict.__setitem__})
    easydict.EasyDict = kind  # type: ignore[attr-defined]
    beside = {
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 5e-4}]},
        "epoch": 262,
        "metrics": {"acc": np.float64(85.5), "of": np.int64(2882)},
        "best_metrics": {"acc": torch.tensor(86.0)},
        "config": kind(model=kind(trans_dim=384), npoints=2048),
        "args": argparse.Namespace(seed=0),
        "lost": float("nan"),
        "curve": np.arange(3.0),
        "big_endian": np.array([7.5], dtype=">f4")[0],
    }
    path = saved(tmp_path / "a.pth", {"base_model": {**MODEL, "comment": "not a tensor"}, **beside})
    monkeypatch.delitem(sys.modules, "easydict")  # need not be installed
    for change in (lambda pickle: pickle, lambda pickle: pickle.replace(b"numpy._core.", b"numpy.core.")):
        found = read_checkpoint(rewritten(path, change))
        assert set(found.tensors) == set(MODEL) and found.odd == ("comment",)
        assert found.said == {
            "epoch": 262,
            "metrics.acc": 85.5,
            "metrics.of": 2882,
            "best_metrics.acc": 86.0,
            "config.npoints": 2048,
            "big_endian": 7.5,
        }


# Other files


def claims_ten_gigabytes(path: Path) -> Path:
    path.write_bytes(struct.pack("<Q", 10 * 2**30) + b'{"w":{}}')
    return path


def lacks_its_tensors(path: Path) -> Path:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2_500_000_000], "data_offsets": [0, 10**10]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    return path


def claims_storage(path: Path) -> Path:
    """Says in its pickle that seven numbers are 2.5 thousand million."""
    ten = b"\x8a\x05" + (2_500_000_000).to_bytes(5, "little")
    return rewritten(saved(path, {"base_model": {"w": torch.ones(7)}}), lambda pickle: pickle.replace(b"K\x07", ten))


def cut(path: Path) -> Path:
    content = saved(path, {"base_model": MODEL}).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def tar(path: Path) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("storages"), BytesIO())
    return path


def written(content: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(content)
        return path

    return write


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "header of 10 GB": (claims_ten_gigabytes, "is damaged or cut off: its header claims 10,737,418,240 bytes, the"),
    "tensors not there": (lacks_its_tensors, "is damaged or cut off: "),
    "storage of 10 GB": (claims_storage, "is damaged or cut off, or no checkpoint (record size"),
    "cut": (cut, "is damaged or cut off, or no checkpoint (PytorchStreamReader failed"),
    "tar": (tar, "is in torch's old tar format, which cannot be read safely; load it with the torch that wrote it"),
    "text": (written(b"# a readme"), "is no checkpoint: it begins neither as torch's files do"),
    "another zip": (written(b"PK\x05\x06" + bytes(18)), "is damaged or cut off, or no checkpoint"),
    "garbage behind a pickle's mark": (written(b"\x80\x02garbage"), "is damaged or cut off, or no checkpoint"),
    "empty": (written(b""), "is empty; get it again"),
    "a tensor": (lambda p: saved(p, torch.ones(3)), "holds no dictionary of tensors but Tensor"),
    "a list": (lambda p: saved(p, [MODEL]), "holds no dictionary of tensors but list"),
    "no tensors": (lambda p: saved(p, {"epoch": 3, "net": MODEL}), "holds no tensors by name; at its top are 'epoch"),
    "empty model": (lambda p: saved(p, {"base_model": {}}), "holds no tensors by name"),
    "numbers for names": (lambda p: saved(p, {7: torch.ones(1)}), "a tensor is called 7, which is no name"),
    "names for terminals": (lambda p: saved(p, {"a\x1b[2J": torch.ones(1)}), "a tensor is called a\\u001b[2J, which"),
    "sparse": (lambda p: saved(p, {"w": torch.eye(2).to_sparse()}), "'w' is no plain tensor (torch.float32, torch.spa"),
    "objects": (
        lambda p: saved(p, {"base_model": MODEL, "x": np.array([None, 1], dtype=object)}),
        "holds numbers of type O8, which is none",
    ),
    "complex": (lambda p: saved(p, {"w": torch.ones(1) * 1j}), "'w' is no plain tensor (torch.complex64"),
    "too many": (
        lambda p: saved(p, {str(i): None for i in range(20_001)}), "holds 20,001 tensors; no model that is known here",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_one_clear_error(what: str, tmp_path: Path, in_process: None) -> None:
    make, words = REFUSED[what]
    path = make(tmp_path / "a.pth")
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    assert f"{path}: {words}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])
def test_code_in_a_pickle_does_not_run(new: bool, tmp_path: Path, in_process: None) -> None:
    marker = tmp_path / "ran"
    path = saved(tmp_path / "a.pth", {"base_model": MODEL, "x": RunsCode(marker)}, _use_new_zipfile_serialization=new)
    with pytest.raises(UserError, match=r"a.pth: needs (posix|nt).system, which would run code"):
        read_checkpoint(path)
    assert not marker.exists()


def test_places_that_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, words in (
        (tmp_path, "is a folder; name the checkpoint file in it"),
        (tmp_path / "nope.pth", "cannot be read (No such file or directory)"),
        (Path("/dev/null"), "is no regular file"),
    ):
        with pytest.raises(UserError) as caught:
            read_checkpoint(path)
        assert str(caught.value) == f"{path}: {words}"
    path = saved(tmp_path / "a.pth", MODEL)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        patch.setattr(Path, "open", locked)
        read_checkpoint(path)
    monkeypatch.setattr(reading, "LARGEST", 100)
    with pytest.raises(UserError, match="files of more than 100 are not read"):
        read_checkpoint(path)


def locked(path: Path, mode: str) -> None:
    """As a file without permission answers those who are not root."""
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


# The other process


def test_a_process_of_its_own_with_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    marker = tmp_path / "ran"
    huge = saved(tmp_path / "huge.pth", {"base_model": {"w": torch.ones(1).expand(50_000, 50_000)}})
    with pytest.raises(UserError, match=r"asks for much more memory than its 1,\d\d\d bytes can need"):
        read_checkpoint(huge)
    with pytest.raises(UserError, match=r"needs posix\.system"):
        read_checkpoint(saved(tmp_path / "evil.pth", {"base_model": MODEL, "x": RunsCode(marker)}))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torch.py").write_text(f"open({str(marker)!r}, 'w')")  # nothing of where the user stands is imported
    assert set(read_checkpoint(saved(Path("good.pth"), {"base_model": MODEL})).tensors) == set(MODEL)
    assert not marker.exists()
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_process_that_ends_without_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.pth", MODEL)
    for code, words in (
        (-signal.SIGSEGV, "ended its process (exit code -11)"),
        (-signal.SIGXCPU, "took more than 120 s of processor time"),
        (0, "ended its process (exit code 1)"),
    ):
        monkeypatch.setattr(subprocess, "run", lambda *a, code=code, **k: subprocess.CompletedProcess([], code))
        with pytest.raises(UserError) as caught:
            read_checkpoint(path)
        assert words in str(caught.value)
