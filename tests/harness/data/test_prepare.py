"""The shipped data is what its description says, and its preparation is deterministic and safe."""

from __future__ import annotations

import csv
import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, load_file

from harness.data.prepare import ldraw, sh3f
from harness.data.prepare.meshes import MeshError, chamfer, normalise, read_obj, sample_surface, seeded, signature
from harness.data.prepare.scanlike import scan_like
from harness.data.prepare.sweethome import CLASSES, LABELS, name_stem, prepare_sweethome12, read_labels
from harness.errors import UserError

ASSETS = LABELS.parent
SETS = ("sweethome12", "sweethome12_scanlike")


def box(width: float, depth: float, height: float) -> str:
    """OBJ text of a box, y up; its corners are 1..8 with z, y, x as bits."""
    corners = [(x, y, z) for x in (0, width) for y in (0, height) for z in (0, depth)]
    faces = ["1 2 4 3", "5 6 8 7", "1 2 6 5", "3 4 8 7", "1 3 7 5", "2/1/1 4 8 6"]
    return "\n".join([f"v {x} {y} {z}" for x, y, z in corners] + [f"f {face}" for face in faces])


def write_library(path: Path, models: dict[str, str], extra: dict[str, str] | None = None) -> Path:
    """A .sh3f with one catalogue entry per model path."""
    lines = []
    for number, model in enumerate(models, start=1):
        lines += [f"name#{number}=Thing\\u20ac{number}", f"model#{number}={model}", f"creator#{number}=Somebody"]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(sh3f.CATALOGUE, "\n".join(lines))
        for member, text in ({name.lstrip("/"): text for name, text in models.items()} | (extra or {})).items():
            archive.writestr(member, text)
    return path


@pytest.fixture
def furniture(tmp_path: Path) -> tuple[Path, Path]:
    """A library with four boxes of each class and one of kind 'other', and its table of labels."""
    rng = np.random.default_rng(0)
    kinds = [kind for kind in CLASSES for _ in range(4)] + ["other"]
    models = {f"/x/{i}.obj": box(*rng.uniform(0.05, 2, 3)) for i in range(len(kinds))}
    source = write_library(tmp_path / "Mini.sh3f", models)
    labels = tmp_path / "labels.csv"
    with labels.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["library", "model", "item", "class", "reason"])
        writer.writerows(["Mini", model, "", kind, ""] for model, kind in zip(models, kinds, strict=True))
    return source, labels


@pytest.fixture
def bricks(tmp_path: Path) -> Path:
    """A tiny LDraw library: bricks that include a primitive, one assembly, an alias and a self-including file."""
    root = tmp_path / "ldraw"
    for folder in ("p", "parts/s"):
        (root / folder).mkdir(parents=True)
    (root / "p/rect.dat").write_text("0 Rectangle\n4 16 1 0 1 1 0 -1 -1 0 -1 -1 0 1\n")
    for number in range(3000, 3040):
        size = number - 2990
        walls = f"1 16 0 {size} 0 {size} 0 0 0 1 0 0 0 7 rect.dat\n1 16 0 0 0 0 1 0 9 0 0 0 0 5 RECT.DAT\n"
        (root / f"parts/{number}.dat").write_text(f"0 Brick {number}\n{walls}")
    held_out = next(n for n in range(3000, 3040) if ldraw.in_test_split(str(n)))
    (root / "parts/9000c01.dat").write_text(
        f"0 Assembly\n1 16 0 0 0 1 0 0 0 1 0 0 0 1 {held_out}.dat\n3 16 0 0 0 9 0 0 0 9 0\n"
    )
    (root / "parts/9001.dat").write_text("0 =Brick alias\n1 16 0 0 0 1 0 0 0 1 0 0 0 1 3000.dat\n")
    (root / "parts/9002.dat").write_text("0 Brick loop\n1 16 0 0 0 1 0 0 0 1 0 0 0 1 9002.dat\n")
    return root


def test_obj_reading_cuts_polygons_and_counts_back_from_the_end() -> None:
    triangles = read_obj(text="v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1/7/7 2// 3 -1\n")
    assert triangles.shape == (2, 3, 3)
    assert triangles[1].tolist() == [[0, 0, 0], [1, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    "text",
    ["", "v 0 0 0\nf 1 2 3", "v 0 0 zero\nf 1 1 1", "v 0 0\nf 1 1 1", "v 0 0 0\nf 1 x 1", "v 0 0 0\nf -9 1 1"],
)
def test_damaged_obj_is_a_mesh_error(text: str) -> None:
    with pytest.raises(MeshError):
        read_obj(text=text)


def test_sampling_is_weighted_by_area() -> None:
    small, large = [[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 0, 5], [3, 0, 5], [0, 3, 5]]
    points = sample_surface(triangles=np.array([small, large], float), count=20000, rng=seeded("test"))
    assert (points[:, 2] == 5).mean() == pytest.approx(0.9, abs=0.01)
    with pytest.raises(MeshError):
        sample_surface(triangles=np.zeros((4, 3, 3)), count=8, rng=seeded("test"))


def test_signature_ignores_scale_and_place_and_tells_shapes_apart() -> None:
    one, other = read_obj(text=box(1, 2, 3)), read_obj(text=box(1, 2, 2))
    assert signature(triangles=one) == signature(triangles=one * 7 + 3)
    assert signature(triangles=one) != signature(triangles=other)


def test_scan_like_depends_on_the_item_alone_and_has_no_order() -> None:
    triangles = read_obj(text=box(1, 1, 1))
    points = normalise(points=sample_surface(triangles=triangles, count=2048, rng=seeded("test")))
    scan = scan_like(points=points, identity="a")
    assert scan.shape == points.shape
    assert np.array_equal(scan, scan_like(points=points, identity="a"))
    assert not np.allclose(scan, scan_like(points=points, identity="b"))
    assert chamfer(scan[:512], scan[512:1024]) < 0.08  # floor and object are in every part of the order


def test_preparation_is_deterministic_and_whole(furniture: tuple[Path, Path], tmp_path: Path) -> None:
    source, labels = furniture
    first = prepare_sweethome12(source=source, output=tmp_path / "one", labels=labels)
    second = prepare_sweethome12(source=tmp_path, output=tmp_path / "two", labels=labels)
    assert [path.name for path in first] == [f"{name}.{end}" for name in SETS for end in ("safetensors", "json")]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    card = json.loads(first[1].read_text())
    assert card["sizes"]["train"] + card["sizes"]["test"] == 4 * len(CLASSES)  # the 'other' item stays out
    assert card["items"][0]["name"] == "Thing\u20ac1"


def test_an_unpacked_library_gives_the_same_points(furniture: tuple[Path, Path], tmp_path: Path) -> None:
    source, labels = furniture
    with zipfile.ZipFile(source) as archive:
        archive.extractall(tmp_path / "unpacked" / "Mini")
    zipped = prepare_sweethome12(source=source, output=tmp_path / "one", labels=labels)
    unpacked = prepare_sweethome12(source=tmp_path / "unpacked", output=tmp_path / "two", labels=labels)
    assert [path.read_bytes() for path in zipped] == [path.read_bytes() for path in unpacked]


def test_the_catalogue_rotation_stands_a_model_upright(tmp_path: Path) -> None:
    path = write_library(tmp_path / "Mini.sh3f", {"/tall.obj": box(1, 5, 1)})  # 5 long in depth: it lies
    lying = sh3f.Furniture("Mini", "/tall.obj", "", "", (1, 0, 0, 0, 1, 0, 0, 0, 1))
    raised = sh3f.Furniture("Mini", "/tall.obj", "", "", (1, 0, 0, 0, 0, 1, 0, -1, 0))
    with sh3f.library(path=path) as opened:
        extents = [np.ptp(sh3f.read_model(opened=opened, item=i), axis=(0, 1)) for i in (lying, raised)]
    assert extents[0].tolist() == [1, 5, 1]
    assert extents[1].tolist() == [1, 1, 5]  # z up


@pytest.mark.parametrize("model", ["../x", "/../../x.obj", "a/..\\..\\x", "absent.obj"])
@pytest.mark.parametrize("unpacked", [False, True])
def test_a_path_out_of_the_library_or_to_nothing_is_refused(model: str, unpacked: bool, tmp_path: Path) -> None:
    (tmp_path / "x").write_text(box(1, 1, 1))
    path = tmp_path / "Evil"
    if unpacked:
        path.mkdir()
        (path / sh3f.CATALOGUE).write_text(f"model#1={model}\n")
    else:
        path = write_library(tmp_path / "Evil.sh3f", {}, {"../x": box(1, 1, 1), "../../x.obj": box(1, 1, 1)})
    with sh3f.library(path=path) as opened, pytest.raises(MeshError):
        opened.read(model)


def test_a_link_out_of_an_unpacked_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "Lib"
    folder.mkdir()
    (folder / "model.obj").symlink_to(tmp_path / "secret")
    with sh3f.library(path=folder) as opened, pytest.raises(MeshError, match="leaves the library"):
        opened.read("model.obj")


def test_an_oversized_member_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_library(tmp_path / "Big.sh3f", {"/big.obj": "v 0 0 0\n" * 1000})
    monkeypatch.setattr(sh3f, "MAX_MEMBER_BYTES", 1000)
    with sh3f.library(path=path) as opened, pytest.raises(MeshError, match="larger than"):
        opened.read("/big.obj")


def test_a_missing_or_wrong_source_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.sh3f").write_text("not a zip")
    with zipfile.ZipFile(tmp_path / "bare.sh3f", "w") as archive:
        archive.writestr("readme", "")
    for source in ("absent", "empty", "no.sh3f", "bare.sh3f"):
        with pytest.raises(UserError, match="apt-get install sweethome3d-furniture"):
            prepare_sweethome12(source=tmp_path / source, output=tmp_path / "out")
    with pytest.raises(UserError, match="apt-get install ldraw-parts"):
        ldraw.prepare_pretraining(ldraw=tmp_path / "absent", furniture=tmp_path, output=tmp_path / "p.safetensors")


def test_a_wrong_label_table_names_the_line(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("library,model,item,class,reason\nA,/a.obj,a,chiar,\n")
    with pytest.raises(UserError, match=r"labels\.csv:2: class 'chiar'"):
        read_labels(path=table)


def test_ldraw_parts_are_flattened(bricks: Path) -> None:
    library = ldraw.PartLibrary(bricks)
    triangles, ingredients = library.triangles("3000.DAT")
    assert triangles.shape == (4, 3, 3)
    assert np.ptp(triangles, axis=(0, 1)).tolist() == [20, 19, 14]
    assert ingredients == {"3000"}
    with pytest.raises(MeshError, match="includes itself"):
        library.triangles("9002.dat")


@pytest.mark.parametrize(
    ("file", "base"),
    [("3001.dat", "3001"), ("3626bp01.dat", "3626"), ("s/3001s01.dat", "3001"), ("light.dat", "light")],
)
def test_variants_share_a_base_number(file: str, base: str) -> None:
    assert ldraw.base_number(file) == base


def test_pretraining_is_deterministic_and_sees_no_test_part(
    bricks: Path, furniture: tuple[Path, Path], tmp_path: Path
) -> None:
    runs = [
        ldraw.prepare_pretraining(ldraw=bricks, furniture=furniture[0], output=tmp_path / run / "p.safetensors")
        for run in ("one", "two")
    ]
    assert [path.read_bytes() for path in runs[0]] == [path.read_bytes() for path in runs[1]]
    card = json.loads(runs[0][1].read_text())
    points = load_file(runs[0][0])["points"]
    assert points.shape == (len(card["items"]), 2048, 3)
    bases = {ldraw.base_number(item) for item in card["items"]}
    held_out = {line for line in runs[0][2].read_text().splitlines() if not line.startswith("#")}
    assert held_out == {str(n) for n in range(3000, 3040) if ldraw.in_test_split(str(n))}
    assert not bases & held_out
    assert "9000" not in bases  # an assembly that contains a test part
    assert "9001" not in bases  # an alias
    assert card["excluded"]["ldraw: is or contains a part of the ldraw16 test split"] == len(held_out) + 1


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("Concept Sedan 02 Sport", "concept sedan"),
        ("Exterior door (white)", "exterior door"),
        ("Sitting female", "sitting"),
        ("Chair", "chair"),
    ],
)
def test_name_stem(name: str, stem: str) -> None:
    assert name_stem(name) == stem


@pytest.mark.parametrize("name", SETS)
def test_shipped_set_satisfies_its_declaration(name: str) -> None:
    content = (ASSETS / f"{name}.safetensors").read_bytes()
    card = json.loads((ASSETS / f"{name}.json").read_text())
    tensors = load(content)
    points, labels, test = tensors["points"], tensors["labels"], tensors["test"]
    assert card["digest"] == hashlib.sha256(content).hexdigest()
    assert card["classes"] == list(CLASSES)
    assert (points.dtype, labels.dtype, test.dtype) == (np.float16, np.uint8, np.uint8)
    assert points.shape == (len(card["items"]), card["sizes"]["points"], 3)
    assert (int((test == 0).sum()), int((test == 1).sum())) == (card["sizes"]["train"], card["sizes"]["test"])
    assert [CLASSES[label] for label in labels] == [item["class"] for item in card["items"]]
    assert np.isfinite(points).all()
    assert np.linalg.norm(points.astype(np.float32), axis=2).max() <= 1 + 1e-3  # rounding to half precision
    for index, kind in enumerate(CLASSES):
        sides = test[labels == index]
        assert 6 <= sides.sum() < (sides == 0).sum(), kind


def test_no_group_is_on_both_sides_and_both_sets_agree() -> None:
    cards = [json.loads((ASSETS / f"{name}.json").read_text()) for name in SETS]
    tensors = [load_file(ASSETS / f"{name}.safetensors") for name in SETS]
    assert cards[0]["items"] == cards[1]["items"]
    assert np.array_equal(tensors[0]["test"], tensors[1]["test"])
    groups: dict[str, set[int]] = {}
    for item, side in zip(cards[0]["items"], tensors[0]["test"], strict=True):
        groups.setdefault(item["group"], set()).add(int(side))
    assert all(len(sides) == 1 for sides in groups.values())


def test_shipped_items_follow_the_reviewed_table_and_name_their_licence() -> None:
    labels = read_labels()
    card = json.loads((ASSETS / "sweethome12.json").read_text())
    for item in card["items"]:
        assert labels[item["library"], item["model"]].kind == item["class"]
        assert item["licence"].startswith("CC")
        assert item["library"] in card["attribution"]
    assert all(label.reason for label in labels.values() if label.kind == "drop")


def test_the_held_out_part_numbers_follow_their_rule() -> None:
    lines = (ASSETS / "ldraw16_test_parts.txt").read_text().splitlines()
    numbers = [line for line in lines if not line.startswith("#")]
    assert lines[0].startswith("#")
    assert numbers
    assert numbers == sorted(set(numbers))
    assert all(ldraw.in_test_split(number) for number in numbers)
