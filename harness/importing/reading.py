"""A stranger's checkpoint as tensors: opened by harness.importing.child in a process of its own, checked here."""

from __future__ import annotations

import hashlib
import signal
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from harness.data.folder import printable
from harness.errors import UserError
from harness.importing.child import ANSWER, PROCESSOR_SECONDS, TENSORS

LARGEST = 4 * 2**30
"""Bytes of a checkpoint; the largest that the papers' authors publish has a tenth of that."""
LARGEST_ANSWER = 8 * 2**20
PATIENCE = 5 * PROCESSOR_SECONDS
"""Seconds of wall time after which the process is killed: a slow disk is no crime."""


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds."""

    path: Path
    digest: str
    """SHA-256 of the file."""
    size: int
    """Bytes of the file."""
    container: str | None
    """The key that the tensors lay under; None where the file holds nothing else."""
    tensors: dict[str, Tensor]
    """Floats are float32, all others int64; values are as they come, NaN too."""
    odd: tuple[str, ...]
    """Entries among the tensors that are none."""
    said: dict[str, float | int | str | bool]
    """Single values beside the tensors: `epoch`, `metrics.acc`."""


class _Answer(BaseModel):
    """What the confined process says; as little to be trusted as the file."""

    model_config = ConfigDict(strict=True)

    refused: str | None = None
    container: str | None = None
    odd: list[str] = []
    said: dict[str, float | int | str | bool] = {}


def read_checkpoint(path: Path) -> Contents:
    """A .pth, .pt or .safetensors file's tensors. Raises UserError, with the reason, for what cannot be used."""
    size = _size(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with tempfile.TemporaryDirectory(prefix="harness-import-") as folder:
        answer = _answer(path, Path(folder))
        if answer.refused is not None:
            raise UserError(f"{path}: {printable(answer.refused)}")
        try:
            tensors = load_file(Path(folder) / TENSORS)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: reading it left nothing usable ({error}); is the disk full?") from None
    said = {printable(key): printable(value) if isinstance(value, str) else value for key, value in answer.said.items()}
    for name in (*tensors, *answer.odd):
        if not name.isprintable():
            raise UserError(f"{path}: a tensor is called {printable(name)}, which is no name")
    return Contents(path, digest, size, answer.container, tensors, tuple(answer.odd), said)


def _size(path: Path) -> int:
    """Bytes of a file that can be read. Raises UserError."""
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise UserError(f"{path}: is a folder; name the checkpoint file in it")
        if not stat.S_ISREG(found.st_mode):
            raise UserError(f"{path}: is no regular file")
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not found.st_size:
        raise UserError(f"{path}: is empty; get it again")
    if found.st_size > LARGEST:
        raise UserError(f"{path}: has {found.st_size:,} bytes; files of more than {LARGEST:,} are not read")
    return found.st_size


def _answer(path: Path, folder: Path) -> _Answer:
    """What the confined process says of a file. Raises UserError when it ends without a word."""
    command = [sys.executable, "-P", "-m", "harness.importing.child", str(path.absolute()), str(folder)]
    quiet = subprocess.DEVNULL
    try:
        ended = subprocess.run(command, stdin=quiet, stdout=quiet, stderr=quiet, timeout=PATIENCE, check=False)
        code = ended.returncode
    except subprocess.TimeoutExpired:
        raise UserError(f"{path}: reading it took more than {PATIENCE} s") from None
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        raise UserError(f"{path}: reading it took more than {PROCESSOR_SECONDS} s of processor time, or all memory")
    try:
        with (folder / ANSWER).open("rb") as file:
            answer = _Answer.model_validate_json(file.read(LARGEST_ANSWER))
    except (OSError, ValidationError):
        code = code or 1
    if code:
        raise UserError(f"{path}: reading it ended its process (exit code {code}); the file is damaged or hostile")
    return answer
