"""Opens a stranger's checkpoint. Runs in a process of its own, under limits; harness.importing.reading starts it.

    python -P -m harness.importing.child FILE FOLDER

FOLDER/tensors.safetensors gets the tensors and, last, FOLDER/answer.json what else there is to say, or why the file
is refused. Nothing of this process is unpickled by anybody: what comes back is data.

Pickles are read by torch's restricted unpickler, which runs no code of the file: it knows tensors, containers, and what
ALLOWED names. numpy's names are answered by stand-ins of ours, so that no state of the file reaches numpy's internals;
`easydict.EasyDict` becomes an OrderedDict, since torch takes no other dictionary.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import math
import re
import resource
import struct
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

ANSWER, TENSORS = "answer.json", "tensors.safetensors"
CONTAINERS = ("base_model", "model", "state_dict")
"""Where checkpoints keep the tensors of the model; the papers' code uses `base_model`."""

SPARE = 2**30
"""Bytes of address space beyond four times the file: the optimiser's state, 32-bit copies, what is written."""
PROCESSOR_SECONDS = 120
LONGEST_NAME, MOST_TENSORS, MOST_SAID = 300, 20_000, 40


class Refused(Exception):
    """Why a file gives nothing."""


class _Kind:
    """Stands for numpy.dtype: a type of numbers."""

    def __init__(self, spec: str, *flags: Any) -> None:
        self.dtype = np.dtype(str(spec))
        if self.dtype.kind not in "biuf":
            raise Refused(f"holds numbers of type {spec!s:.20}, which is none")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """numpy's state: version, byte order, and what only records have."""
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for numpy.ndarray: nothing of it is of use here."""

    def __setstate__(self, state: object) -> None:
        """Shape, type and content are let go."""


def _reconstruct(*arguments: object) -> _Array:
    return _Array()


def _scalar(kind: _Kind, content: bytes) -> float | int | bool:
    number: float | int | bool = np.frombuffer(content, kind.dtype, count=1)[0].item()
    return number


ALLOWED: list[Any] = [
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),  # `core` is what numpy 1 called it
    *((_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("_core", "core")),
    (_Array, "numpy.ndarray"),
    (_Kind, "numpy.dtype"),
    argparse.Namespace,
    (collections.OrderedDict, "easydict.EasyDict"),
]


def main(path: Path, folder: Path) -> None:
    """Read a checkpoint, leave the answer in a folder."""
    torch.set_num_threads(1)  # every thread of many would reserve address space, which is limited
    confine(path.stat().st_size)
    try:
        answer = read(path, folder / TENSORS)
    except Refused as refusal:
        answer = {"refused": str(refusal)}
    except MemoryError:
        answer = {"refused": _too_large(path)}
    except Exception as error:  # whatever torch does with a file that is none
        told = next(iter(str(error).splitlines()), "")
        answer = {"refused": f"is damaged or cut off, or no checkpoint ({told.split('. ')[0]:.200})"}
        if "allocate memory" in told or "not enough memory" in told:
            answer = {"refused": _too_large(path)}
    (folder / ANSWER).write_text(json.dumps(answer))


def confine(size: int) -> None:
    """Limit this process, from here on, to what an honest file of so many bytes can need."""
    used = 0
    with contextlib.suppress(OSError):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = {
        resource.RLIMIT_CPU: PROCESSOR_SECONDS,
        resource.RLIMIT_FSIZE: 4 * size + SPARE,
        resource.RLIMIT_CORE: 0,
        **({resource.RLIMIT_AS: used + 4 * size + SPARE} if used else {}),
    }
    for kind, limit in limits.items():
        with contextlib.suppress(ValueError, OSError):  # a lower limit is set already, or the system has none
            resource.setrlimit(kind, (limit, limit))


def read(path: Path, output: Path) -> dict[str, Any]:
    """Write a checkpoint's tensors as safetensors, floats in 32 bits; returns what else it says. Raises Refused."""
    with path.open("rb") as file:
        head = file.read(512)
    if head[257:262] == b"ustar":
        raise Refused(
            "is in torch's old tar format, which cannot be read safely; load it with the torch that wrote it and "
            "save it again with torch.save(checkpoint['base_model'], FILE)"
        )
    if head[:2] == b"PK" or head[:1] == b"\x80":
        whole = _pickle(path)
    elif head[8:9] == b"{":
        whole = _safetensors(path, head)
    else:
        raise Refused("is no checkpoint: it begins neither as torch's files do (.pth, .pt) nor as .safetensors")
    container, state = _state(whole)
    if len(state) > MOST_TENSORS:
        raise Refused(f"holds {len(state):,} tensors; no model that is known here has more than {MOST_TENSORS:,}")
    tensors, odd = {}, []
    for name, value in state.items():
        if not isinstance(name, str) or len(name) > LONGEST_NAME:
            raise Refused(f"a tensor is called {name!r:.80}, which is no name")
        if isinstance(value, Tensor):
            tensors[name] = _plain(name, value)
        else:
            odd.append(name)
    if not tensors:
        raise Refused(f"holds no tensors by name; at its top are {_listed(whole)}")
    beside = {} if container is None else {key: value for key, value in whole.items() if key != container}
    save_file(tensors, output)
    return {"container": container, "odd": odd, "said": dict(list(_said(beside))[:MOST_SAID])}


def _safetensors(path: Path, head: bytes) -> dict[str, Tensor]:
    size = struct.unpack("<Q", head[:8])[0]
    if size > path.stat().st_size:
        raise Refused(f"is damaged or cut off: its header claims {size:,} bytes, the file has {path.stat().st_size:,}")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise Refused(f"is damaged or cut off: {error}") from None
    return tensors


def _pickle(path: Path) -> Any:
    with warnings.catch_warnings(), torch.serialization.safe_globals(ALLOWED):
        warnings.simplefilter("ignore")
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=False)
        except Refused:
            raise
        except Exception as error:
            if needed := _needed(path, error):
                raise Refused(
                    f"needs {', '.join(needed)}, which would run code of the file or of a library; only tensors, "
                    "numbers and plain containers are read. If you trust the file, load it where it was made and save "
                    "it again with torch.save(checkpoint['base_model'], FILE)"
                ) from None
            raise


def _needed(path: Path, error: Exception) -> list[str]:
    """Names in a pickle that are not allowed; those of torch's older format are known from the error only."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:
        found = re.findall(r"GLOBAL ([\w.]+)", str(error))
    return sorted({f"{name:.80}" for name in found if name.isprintable()})[:8]


def _state(whole: Any) -> tuple[str | None, Mapping[Any, Any]]:
    """The model's part of a checkpoint, and the key that it lay under."""
    if not isinstance(whole, Mapping):
        raise Refused(f"holds no dictionary of tensors but {type(whole).__name__}")
    for key in CONTAINERS:
        if isinstance(whole.get(key), Mapping):
            return key, whole[key]
    return None, whole


def _plain(name: str, value: Tensor) -> Tensor:
    """A tensor of its own memory: floats in 32 bits, whole numbers in 64."""
    if value.layout is not torch.strided or value.is_quantized or value.is_complex():
        raise Refused(f"'{name}' is no plain tensor ({value.dtype}, {value.layout})")
    return value.detach().to(torch.float32 if value.is_floating_point() else torch.int64, copy=True).contiguous()


def _said(beside: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, float | int | str | bool]]:
    """Single values that lie beside the tensors, such as the epoch and its accuracy."""
    for key, value in beside.items():
        name = f"{above}{key!s:.60}"
        if isinstance(value, Tensor) and value.numel() == 1 and value.layout is torch.strided:
            value = value.item()
        if isinstance(value, Mapping) and not above:
            yield from _said(value, f"{name}.")
        elif isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
            yield name, f"{value:.200}" if isinstance(value, str) else value


def _listed(whole: Any) -> str:
    return ", ".join(f"{key!r:.60}" for key in list(whole)[:8]) or "no keys"


def _too_large(path: Path) -> str:
    return f"asks for much more memory than its {path.stat().st_size:,} bytes can need"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
