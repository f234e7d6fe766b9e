# ruff: noqa: E501 (a table of cases)
"""Bad input gets one clear message per problem: file, line, field, what to do. Exit code 2, no traceback, nothing written."""

from pathlib import Path

import pytest

from harness.errors import SuiteError, UserError
from harness.suite import load_suite

GOOD = """\
format: 1
name: small
seeds: 2
datasets: [sweethome12]
backbones:
  point_mae: {preset: tiny}
methods:
  lora: {rank: 8}
  dapt: {rank: 16}
train: {epochs: 2, batch_size: 16}
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "suite.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems(folder: Path, text: str | bytes, settings: tuple[str, ...] = ()) -> list[str]:
    with pytest.raises(SuiteError) as caught:
        load_suite(str(write(folder, text)), settings)
    return [str(problem).removeprefix(str(folder) + "/") for problem in caught.value.problems]


def test_the_good_one_is_good(tmp_path: Path) -> None:
    assert len(load_suite(str(write(tmp_path, GOOD))).trials) == 4


CASES = {
    "unknown key": ("train: {epochs: 2, batch_size: 16}", "trian: {epochs: 2}", 10, "trian", "did you mean 'train'"),
    "unknown setting": ("epochs: 2", "epoch: 2", 10, "train.epoch", "did you mean 'epochs'"),
    "wrong type": ("epochs: 2", "epochs: many", 10, "train.epochs", "'many'"),
    "out of range": ("batch_size: 16", "batch_size: 0", 10, "train.batch_size", "got 0"),
    "rank out of range": ("rank: 8", "rank: -8", 8, "methods.lora.rank", "got -8"),
    "infinite": ("epochs: 2", "learning_rate: .inf", 10, "train.learning_rate", "finite"),
    "unknown method": ("lora: {rank: 8}", "lroa: {}", 8, "methods.lroa", "did you mean 'lora'"),
    "unknown dataset": ("[sweethome12]", "[sweethome21]", 4, "datasets.0", "did you mean 'sweethome12'"),
    "unknown backbone": ("point_mae:", "point_may:", 6, "backbones.point_may", "did you mean 'point_mae'"),
    "unknown weights": ("preset: tiny", "preset: tiny, weights: nope", 6, "backbones.point_mae.weights", "unknown weights"),
    "weights that do not fit": (
        "preset: tiny", "preset: base, weights: point_mae_tiny_parts", 6, "backbones.point_mae.weights", "dim is 384",
    ),
    "unknown weights of a reference": (
        "train:", "references: {probe: {method: lora, weights: radnom}}\ntrain:", 10, "references.probe.weights", "did you mean 'random'",
    ),
    "weights of a reference that do not fit": (
        "train:", "references: {probe: {method: lora, weights: point_mae_shapenet}}\ntrain:", 10, "references.probe.weights", "dim is 96",
    ),
    "duplicate trial": ("dapt: {rank: 16}", "other: {method: lora, rank: 8}", 9, "methods.other", "same trial as lora"),
    "dataset twice": ("[sweethome12]", "[sweethome12, sweethome12]", 4, "datasets.1", "listed twice"),
    "empty grid: seeds": ("seeds: 2", "seeds: []", 3, "seeds", "at least 1"),
    "empty grid: datasets": ("[sweethome12]", "[]", 4, "datasets", "at least 1"),
    "name with slashes": ("name: small", "name: ../small", 2, "name", "letters, digits"),
    "name of the harness's own folder": ("name: small", "name: trials", 2, "name", "folder of the harness"),
    "key twice": ("seeds: 2", "seeds: 2\nseeds: 3", 4, "seeds", "given twice"),
    "fewer points than groups": ("train:", "data: {points: 16}\ntrain:", 6, "backbones.point_mae", "32 groups"),
    "more points than there are": ("train:", "data: {points: 4096}\ntrain:", 10, "sweethome12", "holds 1024"),
    "heads that do not divide": ("preset: tiny", "preset: tiny, heads: 5", 6, "backbones.point_mae", "not a multiple of heads 5"),
    "future format": ("format: 1", "format: 2", 1, "format", "1"),
    "override of nothing": (
        "train:", "overrides: [{when: {method: lroa}, set: {train.epochs: 3}}]\ntrain:", 10, "overrides.0.when.method", "did you mean 'lora'",
    ),
    "override of an unknown key": (
        "train:", "overrides: [{set: {train.epochz: 3}}]\ntrain:", 10, "overrides.0.set", "did you mean 'epochs'",
    ),
    "validation without a split": ("train:", "protocol: {selection: validation}\ntrain:", 10, "protocol.selection", "validation_fraction"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_clear_message(case: str, tmp_path: Path) -> None:
    old, new, line, field, words = CASES[case]
    assert old in GOOD
    found = problems(tmp_path, GOOD.replace(old, new, 1))
    assert any(text.startswith(f"suite.yaml:{line}: {field}") and words in text for text in found), found


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("- a\n- b\n", 1, "mapping"),
        ("", None, "empty"),
        ("name: [\n", 2, "not valid YAML"),
        ("name: !!python/object/apply:os.system [echo]\n", 1, "tag"),
        (b"name: \xff\xfe\n", 1, "UTF-8"),
        ("a: &a [x]\n" + "".join(f"b{i}: &b{i} [{', '.join(['*a' if i == 0 else f'*b{i - 1}'] * 9)}]\n" for i in range(9)), None, "more than"),
    ],
    ids=["no mapping", "empty file", "broken YAML", "tag that runs code", "not UTF-8", "alias bomb"],
)  # fmt: skip
def test_files_that_are_no_suites(text: str | bytes, line: int | None, words: str, tmp_path: Path) -> None:
    found = problems(tmp_path, text)
    assert len(found) == 1
    assert words in found[0]
    assert found[0].startswith(f"suite.yaml:{line}: " if line else "suite.yaml: ")


def test_all_problems_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("rank: 8", "rank: 0").replace("[sweethome12]", "[nope]").replace("epochs: 2", "epochs: x")
    found = problems(tmp_path, text)
    assert {text.split(": ")[1] for text in found} >= {"methods.lora.rank", "datasets.0", "train.epochs"}


def test_numbers_written_as_text_are_numbers(tmp_path: Path) -> None:
    suite = load_suite(str(write(tmp_path, GOOD.replace("epochs: 2", "epochs: 2, learning_rate: 1e-4"))))
    assert suite.trials[0].train.learning_rate == 1e-4


@pytest.mark.parametrize("setting", ["train.epochz=3", "nonsense", "train.epochs=many", "method.rank=-1", "name.x=1"])
def test_bad_settings_on_the_command_line(setting: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--set"):
        load_suite(str(write(tmp_path, GOOD)), [setting])


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"nowhere/x\.yaml: no such file"):
        load_suite("nowhere/x.yaml")
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        load_suite("quickstrat")


@pytest.mark.parametrize("selection", ["method=lroa", "colour=red", "method", "seed=9"])
def test_selections_that_match_nothing(selection: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--only"):
        load_suite(str(write(tmp_path, GOOD))).only([selection])
