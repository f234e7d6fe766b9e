"""One file of a stranger to point clouds: .ply .off .obj .xyz .npy .h5.

`harness data import` reads a folder of such files, `harness predict` a single one. A file may be cut off, damaged or
hostile: its size is bounded, nothing in it is run, no other file that it names is opened, and whatever goes wrong
becomes one `FileRefused` with a short reason.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.prepare.meshes import Floats, MeshError, normalise, read_obj, sample_surface, seeded

MAX_BYTES = 256 * 2**20
"""Larger files are refused, and so are smaller ones that would unpack to more."""
H5_KEYS = ("points", "data", "xyz")


class FileRefused(ValueError):
    """The file gives no clouds; the message says why in a few words, without the file's name."""


@dataclass(frozen=True)
class Surface:
    """A mesh: triangles (T, 3, 3)."""

    triangles: Floats


Shape = Floats | Surface
"""Points (N, 3), or a surface to draw points from."""


def read_clouds(
    path: Path,
    *,
    points: int,
    least: int | None = None,
    normalised: bool = False,
    rng: np.random.Generator | None = None,
) -> NDArray[np.float32]:
    """The clouds of a file: (n, points, 3) float32, in random order of points; n is 1 but for .npy and .h5.

    Meshes (.off, .obj, .ply with faces) are sampled evenly over the surface. Of more than `points` stored points a
    random subset is taken; fewer are refused, or, given `least`, all taken where there are so many. `normalised` moves
    each cloud to mean zero and scales it so that the farthest point has norm 1, before it is rounded to float32.
    Without `rng` the draw depends on nothing but the shape itself, so equal shapes give equal clouds whatever their
    files are called. Raises FileRefused.
    """
    suffix = path.suffix.lower()
    if suffix not in READERS:
        kind = f"'{suffix}' files" if suffix else "folders and files without a suffix"
        raise FileRefused(f"{kind} are not read; known: {', '.join(READERS)}")
    content = _content(path)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            # Some versions of numpy only warn of text among the numbers, and give what comes before it.
            warnings.filterwarnings("error", message="string or file could not be read")
            shapes = READERS[suffix](content)
            least = points if least is None else least
            clouds = [_draw(shape, points=points, least=least, normalised=normalised, rng=rng) for shape in shapes]
    except FileRefused:
        raise
    except MeshError as error:
        raise FileRefused(str(error)) from None
    except MemoryError:
        raise FileRefused("reading it takes more memory than there is") from None
    except Exception as error:  # parsers of damaged files raise whatever they stumble over
        why = f" ({_brief(error)})" if isinstance(error, ValueError) else ""
        raise FileRefused(f"damaged or no {suffix} file{why}") from None
    return np.stack(clouds)


def _content(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise FileRefused("no such file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise FileRefused(f"cannot be opened ({error.strerror})") from None
    if not content:
        raise FileRefused("is empty")
    if len(content) > MAX_BYTES:
        raise FileRefused(f"is larger than {MAX_BYTES // 2**20} MiB")
    return content


def _brief(error: Exception) -> str:
    """The first line of a parser's message, short and printable."""
    line = (str(error).strip().splitlines() or [""])[0]
    return "".join(c if c.isprintable() else "?" for c in line[:100])


# Shapes to clouds


def _draw(
    shape: Shape, *, points: int, least: int, normalised: bool, rng: np.random.Generator | None
) -> NDArray[np.float32]:
    """(points, 3) float32 of one shape, or all its points where these are fewer, and no fewer than `least`."""
    stored = shape.triangles.reshape(-1, 3) if isinstance(shape, Surface) else shape
    if not len(stored):
        raise FileRefused("holds no points")
    if not np.isfinite(stored).all():
        raise FileRefused("holds NaN or infinite coordinates")
    if np.ptp(stored, axis=0).max() <= 0:
        raise FileRefused("all its points coincide")
    generator = rng or seeded("cloud", hashlib.sha256(np.ascontiguousarray(stored).tobytes()).hexdigest())
    if isinstance(shape, Surface):
        chosen = sample_surface(triangles=shape.triangles, count=points, rng=generator)
    elif len(stored) < least:
        raise FileRefused(f"holds {len(stored)} points, fewer than the {least} needed")
    else:
        chosen = stored[generator.permutation(len(stored))[:points]]
    cloud = (normalise(points=chosen) if normalised else chosen).astype(np.float32)
    if not np.isfinite(cloud).all() or np.ptp(cloud, axis=0).max() <= 0:
        raise FileRefused("its coordinates do not fit 32-bit numbers; move or scale them")
    return cloud


# Readers: the bytes of a file -> its shapes


def _read_npy(content: bytes) -> list[Shape]:
    array = np.load(io.BytesIO(content), allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise FileRefused("is an archive of arrays; save a single array")
    return _as_clouds(array)


def _read_h5(content: bytes) -> list[Shape]:
    import h5py

    with h5py.File(io.BytesIO(content), "r") as file:
        # Only datasets that lie in this very file: links, virtual datasets and external storage reach into others.
        own = [key for key in file if isinstance(file.get(key, getlink=True), h5py.HardLink)]
        held = {key: file[key] for key in own if isinstance(file[key], h5py.Dataset)}
        named = [key for key in H5_KEYS if key in held]
        if not named and len(held) != 1:
            raise FileRefused(f"holds {len(held)} datasets, none of them called {', '.join(H5_KEYS)}")
        dataset = held[(named or list(held))[0]]
        if dataset.is_virtual or dataset.external:
            raise FileRefused("keeps its points in other files")
        if dataset.size is None or dataset.size * dataset.dtype.itemsize > MAX_BYTES:
            raise FileRefused(f"its points unpack to more than {MAX_BYTES // 2**20} MiB")
        _check_array(dataset.shape, dataset.dtype)
        return _as_clouds(dataset[...])


def _check_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "fiu":
        raise FileRefused(f"holds {dtype} and no numbers")
    if len(shape) not in (2, 3) or shape[-1] < 3 or 0 in shape:
        raise FileRefused(f"has shape {shape}; (points, 3) or (clouds, points, 3) is read")


def _as_clouds(array: NDArray[Any]) -> list[Shape]:
    """(N, 3 or more) or (n, N, 3 or more) to clouds; the first three columns are x, y, z."""
    _check_array(array.shape, array.dtype)
    coordinates = array[..., :3].astype(np.float64)
    return list(coordinates) if coordinates.ndim == 3 else [coordinates]


def _read_xyz(content: bytes) -> list[Shape]:
    """Lines of x y z and whatever follows, separated by spaces or commas; `#` starts a comment."""
    text = content.decode("utf-8").replace(",", " ")
    return [np.loadtxt(io.StringIO(text), dtype=np.float64, usecols=(0, 1, 2), ndmin=2)]


def _read_obj(content: bytes) -> list[Shape]:
    # Not by trimesh: it takes relative indices (`f -3 -2 -1`) to count from the end of the file, silently.
    return [Surface(read_obj(text=content.decode("utf-8", "replace")))]


def _read_ply(content: bytes) -> list[Shape]:
    header = content.partition(b"end_header")[0]
    declared = {kind: int(count) for kind, count in re.findall(rb"^element\s+(\w+)\s+(\d+)", header, re.MULTILINE)}
    return [_by_trimesh(content, "ply", vertices=declared.get(b"vertex", 0), faces=declared.get(b"face", 0))]


def _read_off(content: bytes) -> list[Shape]:
    counts = re.search(rb"OFF(?:\s|#[^\n]*\n)*(\d+)\s+(\d+)", content)
    if counts is None:
        raise FileRefused("is no OFF file: it does not start with OFF and two numbers")
    return [_by_trimesh(content, "off", vertices=int(counts[1]), faces=int(counts[2]))]


def _by_trimesh(content: bytes, kind: str, *, vertices: int, faces: int) -> Shape:
    """What trimesh reads, held against the counts that the file declares: trimesh lets some missing ends pass."""
    import trimesh

    scene = trimesh.load_scene(io.BytesIO(content), file_type=kind, process=False, skip_materials=True)
    parts = list(scene.geometry.values())
    if len(parts) != 1 or not isinstance(parts[0], trimesh.Trimesh | trimesh.PointCloud):
        raise FileRefused("holds neither points nor triangles")
    corners = np.asarray(parts[0].vertices, dtype=np.float64)
    triangles = np.asarray(parts[0].faces) if isinstance(parts[0], trimesh.Trimesh) else np.empty((0, 3), int)
    if len(triangles) < faces:
        raise FileRefused(f"cut off or damaged: {faces} faces declared, {len(triangles)} found")
    if not len(triangles):
        if len(corners) != vertices:
            raise FileRefused(f"cut off or damaged: {vertices} points declared, {len(corners)} found")
        return corners
    if triangles.min() < 0 or triangles.max() >= len(corners):
        raise FileRefused("a face names a vertex that does not exist")
    return Surface(corners[triangles])


READERS: dict[str, Callable[[bytes], list[Shape]]] = {
    ".h5": _read_h5,
    ".npy": _read_npy,
    ".obj": _read_obj,
    ".off": _read_off,
    ".ply": _read_ply,
    ".xyz": _read_xyz,
}
"""By suffix, in lower case."""
