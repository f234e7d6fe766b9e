"""ldraw16 as prepared from a small LDraw tree: which parts, which side, the same bytes, and what bad sources get."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from harness.cli import main
from harness.data.checking import check_data
from harness.data.ldraw16 import LDRAW16, LDRAW16_SCANLIKE, NAMES
from harness.data.prepare import ldraw, ldraw16
from harness.data.prepare.ldraw16 import NEAR, listed_numbers, prepare_ldraw16
from harness.data.prepare.meshes import chamfer, near_duplicates, normalise, spacing
from harness.errors import UserError

TEST = sorted(number for number in listed_numbers() if number.isdigit())
TRAIN = [str(number) for number in range(70000, 71000) if not ldraw.in_test_split(str(number))]
UNLISTED = next(str(n) for n in range(70000, 71000) if ldraw.in_test_split(str(n)) and str(n) not in TEST)


def two_boxes(sizes: np.ndarray, shift: np.ndarray) -> str:
    """LDraw lines of a box of `sizes` (x, y, z) and one of half of them, moved by `shift`."""
    lines = []
    for (x, y, z), (a, b, c) in ((sizes, (0, 0, 0)), (sizes / 2, shift)):
        lines.append(f"1 16 {a:.4f} {b:.4f} {c:.4f} {x:.4f} 0 0 0 {y:.4f} 0 0 0 {z:.4f} box.dat")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def bricks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shapes to train on and one to test on of each class, and Bricks that must not be on the training side."""
    root = tmp_path_factory.mktemp("ldraw")
    (root / "p").mkdir()
    (root / "parts").mkdir()
    quads = []
    for axis in range(3):
        for side in (-1, 1):
            corners = [(1, 1), (1, -1), (-1, -1), (-1, 1)]
            words = [str(v) for corner in corners for v in np.insert(corner, axis, side)]
            quads.append("4 16 " + " ".join(words))
    (root / "p/box.dat").write_text("0 Box\n" + "\n".join(quads) + "\n")
    rng = np.random.default_rng(3)
    train, test = iter(TRAIN), iter(TEST)
    for kind in ldraw.LDRAW16:
        for number in [next(train) for _ in range(3)] + [next(test)]:
            shape = two_boxes(rng.uniform(0.2, 3, 3), rng.uniform(-3, 3, 3))
            write(root, number, kind, shape)
    sizes, shift = np.array([4.0, 1.0, 2.0]), np.array([1.0, -1.2, 0.0])
    write(root, TEST[60], "Brick", two_boxes(sizes, shift))
    write(root, TRAIN[60], "Brick", two_boxes(sizes * [1.004, 1, 1], shift))  # not a copy, but nearly
    write(
        root, TRAIN[61], "Brick", f"1 16 0 0 0 1 0 0 0 1 0 0 0 1 {TEST[60]}.dat\n" + two_boxes(sizes[::-1], shift * 4)
    )
    write(root, UNLISTED, "Brick", two_boxes(np.array([1.0, 5.0, 1.0]), shift))
    write(root, TRAIN[62], "Brick", f"1 16 0 0 0 1 0 0 0 1 0 0 0 1 {TRAIN[62]}.dat\n")
    write(root, TRAIN[63], "Brick", two_boxes(sizes * 2, shift * 2))  # a copy of the test part in another size
    write(root, TRAIN[64], "Gadget", two_boxes(sizes * [1, 1, 0.1], shift))
    return root


def write(root: Path, number: str, kind: str, lines: str) -> None:
    header = f"0 {kind} number {number}\n0 Name: {number}.dat\n0 Author: Ann Example [ann]\n0 !CATEGORY {kind}\n"
    (root / "parts" / f"{number}.dat").write_text(header + lines)


@pytest.fixture(scope="module")
def prepared(bricks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    prepare_ldraw16(source=bricks, root=root, processes=1)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def card(root: Path, name: str = "ldraw16") -> dict:
    return json.loads((root / "ldraw16" / f"{name}.json").read_text())


def test_test_parts_are_the_recorded_ones_and_none_is_near_the_training_side(bricks: Path, prepared: Path) -> None:
    items = card(prepared)["items"]
    sides = {item["file"].removesuffix(".dat"): item["side"] for item in items}
    assert {number for number, side in sides.items() if side == "test"} == {*TEST[:16], TEST[60]}
    assert {number for number, side in sides.items() if side == "train"} <= {*TRAIN[:48]}
    library = ldraw.PartLibrary(bricks)
    clouds = {item["file"]: library.shape(ldraw.Part(item["file"], "", ""))[0].points for item in items}
    spacings = {file: spacing(cloud) for file, cloud in clouds.items()}
    train, test = ([item["file"] for item in items if item["side"] == side] for side in ("train", "test"))
    kinds = {item["file"]: item["class"] for item in items}
    for one in train:
        for other in (file for file in test if kinds[file] in (kinds[one], "Brick")):
            assert chamfer(clouds[one], clouds[other]) >= NEAR * (spacings[one] + spacings[other]) / 2
    kept = card(prepared)["left_out"]
    assert kept["near-duplicate of a test item"] >= 1
    assert kept["contains a test part"] == 1
    assert kept["no usable surface"] == 1
    assert kept["geometric copy of another part"] == 1
    assert kept["on the test side, but not among the parts recorded as unseen"] == 1


def test_what_is_written_is_as_declared(prepared: Path) -> None:
    for declared in (LDRAW16, LDRAW16_SCANLIKE):
        assert declared.missing(prepared) is None
        report = check_data(declared, prepared)
        assert not report.problems
        assert "not the clouds made from ldraw-parts" in report.notes[0]
        train, test = declared.load("train", prepared), declared.load("test", prepared)
        assert (len(train.labels), len(test.labels)) == tuple(
            card(prepared)["sizes"][side] for side in ("train", "test")
        )
        assert set(train.labels) == set(test.labels) == set(range(16))
        assert np.linalg.norm(train.points, axis=2).max() <= 1.001
        assert card(prepared, declared.name)["items"][0]["author"] == "Ann Example [ann]"
    clean, scan = (load_file(prepared / "ldraw16" / f"{name}.safetensors") for name in NAMES)
    assert np.array_equal(clean["test"], scan["test"]) and np.array_equal(clean["labels"], scan["labels"])
    assert not np.array_equal(clean["points"], scan["points"])


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_number_of_processes(
    bricks: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ldraw16, "CHUNK", 7)
    prepare_ldraw16(source=bricks, root=tmp_path, processes=3)
    assert contents(tmp_path) == contents(prepared)


def test_a_preparation_that_was_killed_goes_on(bricks: Path, prepared: Path, tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from harness.data.prepare import ldraw16
ldraw16.CHUNK = 8
def progress(stage, done, total):
    if done >= 24:
        os.kill(os.getpid(), signal.SIGKILL)
ldraw16.prepare_ldraw16(source=Path({str(bricks)!r}), root=Path({str(tmp_path)!r}), processes=1, progress=progress)
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL  # its pipes closed, so its workers ended, too
    assert not any(LDRAW16.missing(tmp_path) is None or path.suffix == ".json" for path in tmp_path.glob("ldraw16/*"))
    begun: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ldraw16, "CHUNK", 8)
        prepare_ldraw16(
            source=bricks, root=tmp_path, processes=1, progress=lambda stage, done, total: begun.append(done)
        )
    assert begun[0] >= 24
    assert contents(tmp_path) == contents(prepared)


@pytest.mark.slow
def test_ctrl_c_leaves_no_part_of_a_set_and_a_damaged_chunk_is_made_anew(
    bricks: Path, prepared: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare_ldraw16(source=bricks, root=tmp_path, processes=1, progress=interrupt_when_compared)
    assert [path for path in (tmp_path / "ldraw16").iterdir() if not path.name.startswith(".new-")] == []
    (chunk, *_) = (tmp_path / "ldraw16").glob(".new-*/*.safetensors")
    chunk.write_bytes(chunk.read_bytes()[:1000])
    prepare_ldraw16(source=bricks, root=tmp_path, processes=1)
    assert contents(tmp_path) == contents(prepared)


def interrupt_when_compared(stage: str, done: int, total: int) -> None:
    if stage.startswith("comparing"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("source", ["absent", "a file", "no parts", "empty parts", "one class"])
def test_a_source_that_cannot_be_used_gets_one_message(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / source
    if source == "a file":
        path.write_text("0 Brick\n")
    elif source != "absent":
        (path / ("p" if source == "no parts" else "parts")).mkdir(parents=True)
    if source == "one class":
        write(path, TRAIN[0], "Brick", "3 16 0 0 0 1 0 0 0 1 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "argv", ["harness", "data", "prepare", "ldraw16", "--source", str(path)])
    with pytest.raises(SystemExit) as stop:
        main()
    told = capsys.readouterr().err
    assert stop.value.code == 2
    assert told.startswith("error: ") and told.count("\n") == 1
    assert "apt-get install ldraw-parts" in told
    assert contents(tmp_path / "data") == {}


def test_a_folder_that_takes_no_files_gets_one_message(bricks: Path, tmp_path: Path) -> None:
    (tmp_path / "ldraw16").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        prepare_ldraw16(source=bricks, root=tmp_path, processes=1)


def test_a_full_disk_leaves_no_part_of_a_set(
    bricks: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes | str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ldraw16, "write_atomically", full)
        with pytest.raises(UserError, match=r"No space left on device.*run the same command again"):
            prepare_ldraw16(source=bricks, root=tmp_path, processes=1)
    assert contents(tmp_path) == {}


def test_two_preparations_do_not_meet(bricks: Path, tmp_path: Path) -> None:
    def second(stage: str, done: int, total: int) -> None:
        prepare_ldraw16(source=bricks, root=tmp_path, processes=1)

    with pytest.raises(UserError, match="another `harness data prepare ldraw16` is at work"):
        prepare_ldraw16(source=bricks, root=tmp_path, processes=1, progress=second)


def test_what_is_missing_names_the_command_and_the_package(tmp_path: Path) -> None:
    for declared in (LDRAW16, LDRAW16_SCANLIKE):
        problem = declared.missing(tmp_path)
        assert problem and "harness data prepare ldraw16" in problem and "apt-get install ldraw-parts" in problem


@pytest.mark.parametrize("damage", ["clouds", "card", "no card entry"])
def test_damaged_files_are_refused(damage: str, prepared: Path, tmp_path: Path) -> None:
    for path, content in contents(prepared).items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    clouds, own = (tmp_path / "ldraw16" / f"ldraw16.{end}" for end in ("safetensors", "json"))
    match damage:
        case "clouds":
            clouds.write_bytes(clouds.read_bytes()[:-1] + b"x")
        case "card":
            own.write_text(own.read_text()[:100])
        case _:
            own.write_text(json.dumps(json.loads(own.read_text()) | {"sizes": 3}))
    with pytest.raises(UserError, match="harness data prepare ldraw16"):
        LDRAW16.load("train", tmp_path)
    (problem,) = check_data(LDRAW16, tmp_path).problems
    assert "harness data prepare ldraw16" in problem


def test_the_recorded_items_agree_with_the_recorded_test_parts() -> None:
    lines = ldraw16.RECORDED.read_text().splitlines()[1:]
    sides = {line.split(",")[0]: line.split(",")[2] for line in lines}
    listed = listed_numbers()
    assert list(sides.values()).count("train") == LDRAW16.train_items
    assert list(sides.values()).count("test") == LDRAW16.test_items
    assert all((side == "test") == (ldraw.base_number(file) in listed) for file, side in sides.items())
    assert LDRAW16.classes == ldraw.LDRAW16


def test_endless_inclusion_without_a_loop_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ldraw, "MAX_INCLUDED", 2000)
    (tmp_path / "parts").mkdir()
    for level in range(20):
        lines = f"1 16 0 0 0 1 0 0 0 1 0 0 0 1 {level + 1}.dat\n" * 10
        (tmp_path / f"parts/{level}.dat").write_text(f"0 Brick\n{lines}")
    (tmp_path / "parts/20.dat").write_text("0 Brick\n")
    with pytest.raises(ldraw.MeshError, match="included files"):
        ldraw.PartLibrary(tmp_path).triangles("0.dat")


def test_a_huge_file_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/1.dat").write_text("0 Brick\n" + "0 comment\n" * 1000)
    monkeypatch.setattr(ldraw, "MAX_FILE_BYTES", 1000)
    with pytest.raises(ldraw.MeshError, match="larger than"):
        ldraw.PartLibrary(tmp_path).triangles("1.dat")


def test_near_duplicates_are_what_chamfer_says() -> None:
    rng = np.random.default_rng(0)
    clouds = np.stack([normalise(points=rng.normal(size=(256, 3)) * scale) for scale in rng.uniform(0.3, 1, (12, 3))])
    others = clouds[:6] + rng.normal(0, 0.02, (6, 256, 3)) * np.arange(6)[:, None, None]
    found = near_duplicates(clouds=clouds, others=others, below=0.06)
    assert found == [(i, j) for i in range(12) for j in range(6) if chamfer(clouds[i], others[j]) < 0.06]
    assert 2 <= len(found) < 6
