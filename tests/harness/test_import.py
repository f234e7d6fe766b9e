"""A user's own shapes: what is read, what is refused and why, and that an import is a dataset like any other."""

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from harness import registry
from harness.data import files
from harness.data.files import FileRefused, read_clouds
from harness.data.imported import Card, imported_datasets
from harness.data.importing import first_suite, import_folder
from harness.errors import UserError
from harness.suite import load_suite
from tests.harness.test_train import claim, make_trial

POINTS = 64
PLY = "ply\nformat {}\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\n"
FACES = "element face {}\nproperty list uchar int vertex_indices\n"
END = "end_header\n"
CORNERS = "0 0 0\n2 0 0\n2 2 0\n0 2 0\n"
SQUARE = "4 0 1 2 3\n"


def cloud(seed: int, count: int = 100) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3)).astype(np.float32)


def rows(points: np.ndarray) -> str:
    return "".join(" ".join(map(repr, map(float, row))) + "\n" for row in points)


def npy(array: object, **options: bool) -> bytes:
    content = io.BytesIO()
    np.save(content, array, **options)  # type: ignore[arg-type]
    return content.getvalue()


def h5(**datasets: np.ndarray) -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for key, value in datasets.items():
            file.create_dataset(key, data=value, compression="gzip")
    return content.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# One file

POINT_FILES: dict[str, Callable[[np.ndarray], bytes | str]] = {
    "a.ply": lambda p: PLY.format("ascii 1.0", len(p)) + END + rows(p),
    "binary.ply": lambda p: (PLY.format("binary_little_endian 1.0", len(p)) + END).encode() + p.tobytes(),
    "big.ply": lambda p: (PLY.format("binary_big_endian 1.0", len(p)) + END).encode() + p.astype(">f4").tobytes(),
    "a.xyz": rows,
    "commas.XYZ": lambda p: "# x, y, z\n" + rows(np.hstack([p, p])).replace(" ", ", "),
    "a.npy": npy,
    "columns.npy": lambda p: npy(np.hstack([p, p]).astype(np.float64)),
    "a.off": lambda p: f"OFF\n{len(p)} 0 0\n{rows(p)}",
    "a.h5": lambda p: h5(xyz=p, other=np.zeros(3)),
    "only.h5": lambda p: h5(anything=np.hstack([p, p])),
}


@pytest.mark.parametrize("name", POINT_FILES)
def test_points_come_back_as_they_were(name: str, tmp_path: Path) -> None:
    points = cloud(0, POINTS)
    found = read_clouds(write(tmp_path / name, POINT_FILES[name](points)), points=POINTS)
    assert (found.shape, found.dtype) == ((1, POINTS, 3), np.float32)
    assert sorted(map(tuple, found[0])) == sorted(map(tuple, points))


SURFACES = {
    "a.off": f"OFF\n4 1 0\n{CORNERS}{SQUARE}",
    "joined.off": f"OFF4 2 0\n# comment\n{CORNERS}3 0 1 2\n3 0 2 3\n",
    "a.ply": PLY.format("ascii 1.0", 4) + FACES.format(1) + END + CORNERS + SQUARE,
    "binary.ply": (PLY.format("binary_little_endian 1.0", 4) + FACES.format(1) + END).encode()
    + np.array(CORNERS.split(), "<f4").tobytes()
    + b"\4"
    + np.arange(4, dtype="<i4").tobytes(),
    "a.obj": "mtllib ../../secret.mtl\nv 0 0 0\nv\t2 0 0\nv 2 2 0\nv 0 2 0\nusemtl m\nf 1/1 2/2 3/3 4/4\n",
    "relative.obj": "v 0 0 0\nv 2 0 0\nv 2 2 0\nf -3 -2 -1\nv 0 0 0\nv 2 2 0\nv 0 2 0\nf -3 -2 -1\n",
}


@pytest.mark.parametrize("name", SURFACES)
def test_meshes_are_sampled_evenly(name: str, tmp_path: Path) -> None:
    found = read_clouds(write(tmp_path / name, SURFACES[name]), points=4000)[0]
    assert np.all(found[:, 2] == 0) and found.min() >= 0 and found.max() <= 2
    quarters = np.bincount((found[:, 0] > 1) * 2 + (found[:, 1] > 1), minlength=4)
    assert quarters.min() > 900


@pytest.mark.parametrize("name", ["many.npy", "many.h5"])
def test_files_may_hold_many_clouds(name: str, tmp_path: Path) -> None:
    many = np.stack([cloud(i) for i in range(3)])
    path = write(tmp_path / name, npy(many) if name.endswith("npy") else h5(data=many, label=np.zeros(3)))
    found = read_clouds(path, points=POINTS, normalised=True)
    assert found.shape == (3, POINTS, 3)
    assert np.abs(found.mean(axis=1)).max() < 1e-6
    assert np.allclose(np.linalg.norm(found, axis=2).max(axis=1), 1)


def test_the_draw_depends_on_the_shape_alone(tmp_path: Path) -> None:
    points = cloud(1)
    one = read_clouds(write(tmp_path / "one.npy", npy(points)), points=POINTS)
    other = read_clouds(write(tmp_path / "other.xyz", rows(points)), points=POINTS)
    assert np.array_equal(one, other)
    drawn = read_clouds(tmp_path / "one.npy", points=POINTS, rng=np.random.default_rng(0))
    assert not np.array_equal(one, drawn)


def test_far_from_the_origin_nothing_is_lost(tmp_path: Path) -> None:
    points = cloud(2, POINTS).astype(np.float64)
    near = read_clouds(write(tmp_path / "near.npy", npy(points)), points=POINTS, normalised=True)[0]
    far = read_clouds(write(tmp_path / "far.npy", npy(points + 5e6)), points=POINTS, normalised=True)[0]
    assert np.allclose(sorted(map(tuple, near)), sorted(map(tuple, far)), atol=1e-6)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


def external_link() -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["points"] = h5py.ExternalLink("/etc/hostname", "/points")
    return content.getvalue()


def h5_that_unpacks_to(shape: tuple[int, ...]) -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.create_dataset("points", shape, "f4", chunks=(1, 1024, 3), fillvalue=1)
    return content.getvalue()


def bad_row(value: float) -> np.ndarray:
    points = cloud(0)
    points[3, 1] = value
    return points


REFUSED: dict[str, tuple[str, bytes | str, str]] = {
    "empty": ("a.ply", "", "is empty"),
    "text": ("a.ply", "hello\nworld\n", r"no \.ply file"),
    "text in xyz": ("a.xyz", "hello world foo\n" * 100, r"no \.xyz file"),
    "binary in xyz": ("a.xyz", bytes(range(256)), r"no \.xyz file"),
    "text in npy": ("a.npy", "hello " * 100, r"no \.npy file"),
    "text in h5": ("a.h5", "hello " * 100, r"no \.h5 file"),
    "text in off": ("a.off", "hello\n", "is no OFF file"),
    "text in obj": ("a.obj", "hello\n", "no faces"),
    "header only": ("a.ply", "ply\nformat ascii 1.0\n", r"no \.ply file"),
    "truncated ply": (
        "a.ply",
        PLY.format("ascii 1.0", 100) + END + rows(cloud(0, 80)),
        "100 points declared, 80 found",
    ),
    "truncated binary ply": (
        "a.ply",
        (PLY.format("binary_little_endian 1.0", 100) + END).encode() + cloud(0, 100).tobytes()[:-5],
        r"no \.ply file",
    ),
    "ply cut before its faces": (
        "a.ply",
        (PLY.format("binary_little_endian 1.0", 100) + FACES.format(9) + END).encode() + cloud(0, 100).tobytes(),
        "9 faces declared, 0 found",
    ),
    "text among a ply's numbers": (
        "a.ply",
        PLY.format("ascii 1.0", 100) + END + rows(cloud(0, 99)) + "0 zero 0\n",
        r"no \.ply file",
    ),
    "huge count in a ply": ("a.ply", PLY.format("ascii 1.0", 10**12) + END + rows(cloud(0)), "declared, 100 found"),
    "huge count in a binary ply": (
        "a.ply",
        (PLY.format("binary_little_endian 1.0", 4 * 10**9) + END).encode() + cloud(0).tobytes(),
        r"no \.ply file",
    ),
    "huge count in an off": ("a.off", f"OFF\n{10**12} 1 0\n{CORNERS}{SQUARE}", r"no \.off file"),
    "truncated off": ("a.off", f"OFF\n4 3 0\n{CORNERS}3 0 1 2\n", "3 faces declared, 1 found"),
    "face of nothing": ("a.off", f"OFF\n4 1 0\n{CORNERS}3 0 1 9\n", "outside the range"),
    "face of nothing in a ply": (
        "a.ply",
        PLY.format("ascii 1.0", 4) + FACES.format(1) + END + CORNERS + "3 0 1 9\n",
        "names a vertex that does not exist",
    ),
    "face of nothing in an obj": ("a.obj", "v 0 0 0\nv 1 0 0\nf 1 2 3\n", "names a vertex that does not exist"),
    "flat surface": ("a.off", "OFF\n3 1 0\n0 0 0\n1 1 1\n2 2 2\n3 0 1 2\n", "no area"),
    "NaN": ("a.npy", npy(bad_row(np.nan)), "NaN or infinite"),
    "infinite": ("a.xyz", rows(bad_row(np.inf)), "NaN or infinite"),
    "one place": ("a.npy", npy(np.ones((100, 3))), "coincide"),
    "beyond 32 bits": ("a.npy", npy(cloud(0).astype(np.float64) * 1e300), "do not fit 32-bit"),
    "too few points": ("a.xyz", rows(cloud(0, 10)), "holds 10 points, fewer than the 64 needed"),
    "pickle": ("a.npy", npy(np.array([Bomb()], dtype=object), allow_pickle=True), r"no \.npy file"),
    "bare pickle": ("a.npy", pickle.dumps(Bomb()), r"no \.npy file"),
    "huge shape in a npy": (
        "a.npy",
        npy(cloud(0)).replace(b"(100, 3), }       ", b"(9999999999, 3), }"),
        "memory|npy file",
    ),
    "text array": ("a.npy", npy(np.array(["x"] * 9)), "no numbers"),
    "wrong shape": ("a.npy", npy(np.zeros((100, 2))), r"has shape \(100, 2\)"),
    "two datasets": ("a.h5", h5(a=cloud(0), b=cloud(1)), "holds 2 datasets"),
    "link to another file": ("a.h5", external_link(), "holds 0 datasets"),
    "h5 bomb": ("a.h5", h5_that_unpacks_to((100_000, 1024, 3)), "unpack to more than 256 MiB"),
    "other kind": ("a.stl", "solid", "'.stl' files are not read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_have_a_reason(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: object) -> None:
    monkeypatch.chdir(tmp_path)
    name, content, words = REFUSED[case]
    with pytest.raises(FileRefused, match=words) as refusal:
        read_clouds(write(tmp_path / name, content), points=POINTS)
    assert len(str(refusal.value)) < 160 and "\n" not in str(refusal.value)
    assert [path.name for path in tmp_path.iterdir()] == [name], "the file was run"
    assert capfd.readouterr() == ("", "")  # type: ignore[attr-defined]


def test_large_and_absent_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    with pytest.raises(FileRefused, match="larger than"):
        read_clouds(write(tmp_path / "a.npy", npy(cloud(0))), points=POINTS)
    with pytest.raises(FileRefused, match="no such file"):
        read_clouds(tmp_path / "b.npy", points=POINTS)


# A folder


def make_folder(root: Path, *, each: int = 5, prefix: str = "", count: int = 100) -> Path:
    """Two classes of `each` clouds that differ in their proportions."""
    seed = 1000 * len(prefix)
    for kind, stretch in (("flat", (1, 1, 0.1)), ("long", (0.1, 0.1, 1))):
        for index in range(each):
            seed += 1
            write(root / prefix / kind / f"{index}.npy", npy(cloud(seed, count) * np.array(stretch)))
    return root


def do_import(folder: Path, root: Path, **options: object) -> Card:
    return import_folder(folder, **{"name": "mine", "root": root, "points": POINTS} | options)  # type: ignore[arg-type]


def refusals(card: Card) -> dict[str, str]:
    return {entry.file: entry.reason for entry in card.refused}


def test_an_import_is_the_same_to_the_byte(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    card = do_import(make_folder(tmp_path / "a" / "mine"), tmp_path / "one", progress=lambda *at: told.append(at))
    shutil.copytree(tmp_path / "a" / "mine", tmp_path / "b" / "mine")
    do_import(tmp_path / "b" / "mine", tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "one" / "imported").iterdir())
    assert names == ["mine.json", "mine.safetensors"]
    for name in names:
        assert (tmp_path / "one" / "imported" / name).read_bytes() == (
            tmp_path / "two" / "imported" / name
        ).read_bytes()
    assert (card.classes, card.train_items, card.test_items) == (("flat", "long"), 8, 2)
    assert all((own.read, own.train, own.test) == (5, 4, 1) for own in card.counts.values())
    assert told == [(done, 10) for done in range(1, 11)]
    assert str(tmp_path) not in (tmp_path / "one" / "imported" / "mine.json").read_text()
    assert do_import(tmp_path / "a" / "mine", tmp_path / "one", seed=1, force=True).digest != card.digest


def test_folders_of_a_split_are_the_split(tmp_path: Path) -> None:
    folder = make_folder(make_folder(tmp_path / "x", prefix="train", each=3), prefix="test", each=2)
    shutil.copy(folder / "train/flat/0.npy", folder / "test/flat/copy.npy")
    card = do_import(folder, tmp_path)
    assert (card.train_items, card.test_items, card.shared) == (6, 5, 1)
    loaded = imported_datasets(tmp_path)["mine"].load("test", tmp_path)
    assert np.bincount(loaded.labels).tolist() == [3, 2]
    flat = np.ptp(loaded.points[loaded.labels == 0], axis=1)
    assert np.all(flat[:, 2] < flat[:, 0])


def test_copies_stay_on_one_side(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "x", each=3)
    for index in range(4):
        shutil.copy(folder / "flat/0.npy", folder / f"flat/copy{index}.npy")
    for seed in range(3):
        card = do_import(folder, tmp_path, seed=seed, force=True, test_fraction=0.5)
        data = imported_datasets(tmp_path)["mine"]
        sides = [{c.tobytes() for c in data.load(side, tmp_path).points} for side in ("train", "test")]  # type: ignore[arg-type]
        assert not sides[0] & sides[1] and card.shared == 0 and card.duplicates == 4
        assert card.counts["flat"].train + card.counts["flat"].test == 7


def test_a_shape_of_two_classes_is_of_none(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "x")
    write(folder / "long/same.xyz", rows(np.load(folder / "flat/0.npy")))
    card = do_import(folder, tmp_path)
    reason = "the same shape lies in flat and long"
    assert refusals(card) == {"flat/0.npy": reason, "long/same.xyz": reason}
    assert (card.counts["flat"].read, card.counts["flat"].refused) == (4, 1)


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "x")
    write(folder / "flat/.hidden.npy", "x")
    write(folder / "flat/notes.txt", "x")
    write(folder / "flat/deeper/a.npy", npy(cloud(0)))
    write(folder / "loose.npy", npy(cloud(0)))
    write(folder / "flat/bad\x1b[31m.npy", "x")
    write(tmp_path / "secret.npy", npy(cloud(99)))
    (folder / "long/link.npy").symlink_to(tmp_path / "secret.npy")
    (folder / "long/broken.npy").symlink_to(folder / "nowhere.npy")
    (folder / "long/loop.npy").symlink_to("loop.npy")
    (folder / "outside").symlink_to(tmp_path)
    os.mkfifo(folder / "long/pipe.npy")
    card = do_import(folder, tmp_path)
    found = refusals(card)
    assert found.pop("flat/bad\\u001b[31m.npy").startswith("damaged or no .npy file")
    assert found == {
        "flat/deeper": "is a folder inside a class folder",
        "loose.npy": "lies in no class folder",
        "long/broken.npy": "is no regular file",
        "long/link.npy": "is a symbolic link that leaves the folder",
        "long/loop.npy": "is a symbolic link that leaves the folder",
        "long/pipe.npy": "is no regular file",
        "outside": "is a symbolic link that leaves the folder",
    }
    assert (card.ignored, card.train_items + card.test_items) == (1, 10)


def test_all_problems_at_once(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "x")
    write(folder / "third/only.npy", npy(cloud(50)))
    write(folder / "third/bad.npy", "x")
    shutil.copytree(folder / "flat", folder / "fourth")
    with pytest.raises(UserError) as caught:
        do_import(folder, tmp_path)
    for words in ("class 'third': 1 usable", "'flat': 0 usable", "'fourth': 0 usable", "- third/bad.npy: damaged"):
        assert words in str(caught.value)
    with pytest.raises(UserError) as caught:
        do_import(tmp_path / "x", tmp_path, name="sweethome12", points=1, test_fraction=1, seed=-1)
    assert len(str(caught.value).splitlines()) == 4
    write(tmp_path / "one/only/a.npy", npy(np.stack([cloud(1), cloud(2)])))
    with pytest.raises(UserError, match="1 class, but"):
        do_import(tmp_path / "one", tmp_path)
    write(tmp_path / "half/train/a/a.npy", npy(cloud(1)))
    with pytest.raises(UserError, match="no test/CLASS"):
        do_import(tmp_path / "half", tmp_path)
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("name", ["", "../up", "a b", "x" * 65])
def test_names_that_cannot_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="may hold letters"):
        do_import(make_folder(tmp_path / "x", each=2), tmp_path, name=name)


def test_force(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "x")
    first = do_import(folder, tmp_path)
    with pytest.raises(UserError, match="--force"):
        do_import(folder, tmp_path, points=32)
    assert imported_datasets(tmp_path)["mine"].points == POINTS
    assert do_import(folder, tmp_path, points=32, force=True).digest != first.digest
    assert imported_datasets(tmp_path)["mine"].points == 32


def test_an_end_at_any_moment_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "x")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do_import(folder, tmp_path, progress=interrupt)
    assert not (tmp_path / "imported").exists()

    def disk_is_full(path: Path, content: bytes | str) -> None:
        if path.suffix == ".json":
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr("harness.data.importing.write_atomically", disk_is_full)
    with pytest.raises(UserError, match="No space left"):
        do_import(folder, tmp_path)
    assert list((tmp_path / "imported").iterdir()) == []


def end_this_process(path: Path, **options: Any) -> np.ndarray:
    if path.name == "3.npy":
        os._exit(1)
    return read_clouds(path, **options)


def test_a_file_that_ends_its_reader_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import multiprocessing

    # A fork takes this module along; a fork server would have to import it.
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind, get=multiprocessing.get_context: get("fork"))
    monkeypatch.setattr("harness.data.reading._read_one", end_this_process)
    card = do_import(make_folder(tmp_path / "x"), tmp_path)
    assert set(refusals(card)) == {"flat/3.npy", "long/3.npy"}
    assert set(refusals(card).values()) == {"reading it ended its process"}
    assert card.train_items + card.test_items == 8


# A dataset like any other


def test_a_damaged_card_harms_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    folder = make_folder(tmp_path / "x", each=2)
    do_import(folder, tmp_path, name="good")
    do_import(folder, tmp_path, name="bad")
    card = tmp_path / "imported" / "bad.json"
    whole = card.read_text()
    for content in (whole[:50], "[]", whole.replace('"points": 64', '"points": "x"'), whole.replace('"bad"', '"x"')):
        card.write_text(content)
        assert {"good", "sweethome12"} < set(registry.names("datasets"))
        assert "bad" not in registry.names("datasets")
        with pytest.raises(UserError, match=r"bad\.json: .*import it again"):
            registry.get("datasets", "bad")
    with pytest.raises(UserError, match="did you mean 'good'"):
        registry.get("datasets", "goods")
    suite = write(tmp_path / "s.yaml", first_suite(Card.model_validate_json(whole)))
    with pytest.raises(UserError, match=r"datasets\.0: .*bad\.json: "):
        load_suite(str(suite))
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "elsewhere"))
    assert "good" not in registry.names("datasets")


def test_clouds_that_are_not_the_cards_are_refused(tmp_path: Path) -> None:
    do_import(make_folder(tmp_path / "x", each=2), tmp_path)
    data = imported_datasets(tmp_path)["mine"]
    assert data.missing(tmp_path) is None
    clouds = tmp_path / "imported" / "mine.safetensors"
    clouds.write_bytes(clouds.read_bytes()[:-1] + b"\7")
    with pytest.raises(UserError, match=r"is not the .* of its card"):
        data.load("train", tmp_path)
    clouds.unlink()
    assert "harness data import FOLDER --name mine" in (data.missing(tmp_path) or "")


def test_an_imported_dataset_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.describe import describe_dataset
    from harness.train import run_trial

    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    card = do_import(make_folder(tmp_path / "x", each=24, count=200), tmp_path, points=128)
    suite = load_suite(str(write(tmp_path / "mine.yaml", first_suite(card))))
    assert len(suite.trials) == 9 and suite.trials[0].spec()["dataset"] == {"name": "mine", "version": 1}
    assert describe_dataset("mine")["normalised"] is True
    trial = make_trial("linear_probe", dataset=suite.trials[0].dataset)
    result = run_trial(trial, claim(trial, tmp_path / "results"))
    assert (result.status, result.error, result.metrics.total) == ("done", None, 12)
    assert json.loads((tmp_path / "imported" / "mine.json").read_text())["digest"] == card.digest
