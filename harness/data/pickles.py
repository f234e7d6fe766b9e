"""Pickles of arrays, read without running what they ask for.

The published ModelNet40 files are pickles, and a pickle may call any function of Python. This reader knows the six
names that numpy's arrays ask for, under numpy 1's and numpy 2's spelling, and answers each with a stand-in of its own:
nothing is imported, and no state reaches numpy's internals. Anything else is refused by name before it is called.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.data.sources import AGAIN, refuse_unreadable
from harness.errors import UserError

LIMIT = 4 * 2**30
"""Bytes; the largest official file, ModelNet40's training split, has 1.9 GB."""


def read_pickle(path: Path, *, limit: int = LIMIT) -> Any:
    """Lists, tuples, dicts, texts and numbers from a pickle of any protocol, Python 2's included; arrays as `Stored`.

    Raises UserError for a file that asks for anything else, is damaged, or is larger than `limit`.
    """
    refuse_unreadable(path, limit=limit)
    try:
        with path.open("rb") as file:
            return _ArraysOnly(file, encoding="latin1").load()
    except _Refused as refusal:
        raise UserError(
            f"{path}: asks for {refusal}, which no array of numbers needs: nothing was run and nothing was read; "
            f"do not trust this file, {AGAIN} from its official source"
        ) from None
    except MemoryError:
        raise UserError(f"{path}: asks for more memory than there is; {AGAIN}") from None
    except Exception as error:  # bytes of a stranger can fail in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be read as a pickle ({reason}); was the download complete? {AGAIN}") from None


class Stored:
    """An array of a pickle."""

    def __init__(self, values: npt.NDArray[Any] | None = None) -> None:
        self.values: npt.NDArray[Any] = np.empty(0) if values is None else values

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """numpy's state: [version], shape, type, whether columns go first, bytes."""
        shape, kind, columns_first, content = state[-4:]
        self.values = kind.read(content).reshape(shape, order="F" if columns_first else "C")


class _Kind:
    """The type of an array's numbers."""

    def __init__(self, spec: str, *flags: Any) -> None:
        self.dtype = np.dtype(spec)
        if self.dtype.kind not in "biuf":
            raise _Refused(f"an array of type {spec}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """numpy's state: version, byte order, and what only records have."""
        self.dtype = self.dtype.newbyteorder(state[1])

    def read(self, content: Any) -> npt.NDArray[Any]:
        """The numbers in bytes of the file."""
        return np.frombuffer(content.encode("latin1") if isinstance(content, str) else content, self.dtype)


class _Refused(Exception):
    """What a pickle asked for."""


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name that numpy's arrays ask for."""
        known = (module.replace("numpy._core", "numpy.core"), name)
        if known not in _STAND_INS:
            raise _Refused(f"{module}.{name}"[:120])
        stand_in = _STAND_INS[known]
        return lambda *arguments: stand_in(*arguments)  # its own, since a pickle may set attributes of what it names


def _reconstruct(kind: Any, shape: Any, code: Any) -> Stored:
    return Stored()  # its state follows


def _frombuffer(content: Any, kind: _Kind, shape: tuple[int, ...], order: Any) -> Stored:
    return Stored(kind.read(content).reshape(shape, order="F" if order == "F" else "C"))


def _scalar(kind: _Kind, content: Any) -> Any:
    return kind.read(content)[0].item()


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin1")  # how Python 3 writes bytes for protocol 2


def _refuse_call(*arguments: Any) -> None:
    raise _Refused("an array without content")  # numpy only names its class, as an argument of `_reconstruct`


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy", "ndarray"): _refuse_call,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _encode,
}
