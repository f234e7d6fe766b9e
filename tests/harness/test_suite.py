"""Suites: what expands to what, and what makes two trials one."""

from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import SuiteError
from harness.pretraining import is_pretraining, load_pretraining
from harness.settings import Resources
from harness.suite import Suite, load_suite, shipped_suites
from harness.trial import Trial

TEXT = """\
format: 1
name: small
seeds: [0, 7]
datasets: [sweethome12, sweethome12_scanlike]
backbones:
  tiny: {backbone: point_mae, preset: tiny}
methods:
  lora: {rank: 8}
  wide: {method: lora, rank: 16}
train: {epochs: 4}
overrides:
  - when: {method: wide}
    set: {train.epochs: 5, method.rank: 32}
  - when: {method: [lora, wide], dataset: sweethome12_scanlike}
    set: {train.epochs: 6, data.points: 600}
"""


def suite(folder: Path, text: str = TEXT, *settings: str) -> Suite:
    path = folder / "suite.yaml"
    path.write_text(text)
    return load_suite(str(path), settings)


def test_grid_and_overrides(tmp_path: Path) -> None:
    trials = suite(tmp_path).trials
    assert len(trials) == 8
    found = {(t.method_label, t.dataset.name): (t.train.epochs, t.method.rank, t.data.points) for t in trials}  # type: ignore[attr-defined]
    assert found == {
        ("lora", "sweethome12"): (4, 8, 512),
        ("wide", "sweethome12"): (5, 32, 512),
        ("lora", "sweethome12_scanlike"): (6, 8, 600),
        ("wide", "sweethome12_scanlike"): (6, 32, 600),
    }
    assert sorted({t.seed for t in trials}) == [0, 7]


def identities(loaded: Suite) -> set[str]:
    return {trial.identity for trial in loaded.trials}


@pytest.mark.parametrize(
    "same",
    [
        TEXT.replace("name: small", "name: other"),
        TEXT.replace("tiny:", "renamed:"),
        TEXT.replace("train: {epochs: 4}", "train: {epochs: 4, learning_rate: 5e-4}"),  # the default, written out
        TEXT.replace("train: {epochs: 4}", "train: {epochs: 4}\nresources: {timeout: 5m, cpus_per_process: 2}"),
    ],
    ids=["name", "label", "default", "resources"],
)
def test_what_does_not_change_the_outcome_does_not_change_identities(same: str, tmp_path: Path) -> None:
    assert identities(suite(tmp_path, same)) == identities(suite(tmp_path))


@pytest.mark.parametrize(
    "setting",
    [
        "train.epochs=9",
        "train.clip_norm=3",
        "protocol.frozen_batchnorm=running",
        "resources.precision=bf16",
        "backbone.dim=48",
    ],
)
def test_what_changes_the_outcome_changes_identities(setting: str, tmp_path: Path) -> None:
    assert not identities(suite(tmp_path, TEXT.replace("rank: 16", "rank: 17"), setting)) & identities(suite(tmp_path))


def test_only(tmp_path: Path) -> None:
    loaded = suite(tmp_path)
    chosen = loaded.only(["method=lora", "seed=7"])
    assert {(t.method_label, t.seed) for t in chosen} == {("lora", 7)}
    assert len(chosen) == 2


def test_references_are_trials_of_their_own(tmp_path: Path) -> None:
    text = TEXT + "references:\n  nn: {baseline: nearest_neighbour}\n  plain: {method: lora, weights: random}\n"
    loaded = suite(tmp_path, text.replace("preset: tiny", "preset: tiny, weights: point_mae_tiny_parts"))
    references = [t for t in loaded.trials if t.reference]
    assert sum(t.baseline is not None for t in references) == 2 + 0  # 512 points and 600 points, one dataset each
    probes = [t for t in references if t.baseline is None]
    assert len(probes) == 4 and {t.backbone.weights for t in probes} == {"random"}
    assert {t.train.epochs for t in probes} == {4, 6}  # the overrides of `lora` hold for it


@pytest.mark.parametrize("name", sorted(shipped_suites()))
def test_shipped_suites_are_valid(name: str) -> None:
    assert load_pretraining(name) if is_pretraining(name) else load_suite(name).trials


def test_the_papers_settings() -> None:
    loaded = load_suite("paper_table")
    assert len(loaded.trials) == (8 * 5 - 2) * 4 * 5
    assert {t.train.schedule for t in loaded.trials} == {t.protocol.selection for t in loaded.trials} == {"paper"}
    dapt = {t.dataset.name: t for t in loaded.only(["method=dapt", "backbone=point_mae"])}
    hardest, modelnet = dapt["scanobjectnn_pb_t50_rs"], dapt["modelnet40"]
    assert (hardest.train.drop_path, hardest.method.adapter_dropout, hardest.method.rank) == (0.3, 0.2, 64)  # type: ignore[attr-defined]
    assert (modelnet.method.rank, modelnet.method.pool) == (72, ("class", "patch_max"))  # type: ignore[attr-defined]
    assert (modelnet.backbone.groups, modelnet.data.points) == (64, 1024)  # type: ignore[attr-defined]


def test_exclude_leaves_combinations_out(tmp_path: Path) -> None:
    kept = suite(tmp_path, TEXT + "exclude:\n  - {dataset: sweethome12, method: [lora]}\n").trials
    combinations = {(t.dataset.name, t.method_label) for t in kept}
    assert len(combinations) == 3 and ("sweethome12", "lora") not in combinations
    with pytest.raises(SuiteError) as raised:
        suite(tmp_path, TEXT + "exclude:\n  - {method: lara}\n")
    assert "exclude.0.method: no method 'lara' in this suite; did you mean 'lora'?" in str(raised.value)


def test_folds_are_repeated_like_seeds(tmp_path: Path) -> None:
    path = tmp_path / "folds.yaml"

    def with_folds(folds: str, datasets: str = "modelnet40_fewshot_5w10s") -> tuple[Trial, ...]:
        path.write_text(
            f"format: 1\nname: folds\nseeds: 2\ndatasets: [{datasets}]\n{folds}\n"
            "backbones: {point_mae: {preset: tiny}}\nmethods: {full: {}}\n"
        )
        return load_suite(str(path)).trials

    trials = with_folds("")
    assert [(t.fold, t.seed) for t in trials] == [(fold, seed) for fold in range(10) for seed in (0, 1)]
    assert len({t.identity for t in trials}) == len({t.seeds.order for t in trials}) == 20
    assert trials[5].spec()["dataset"]["fold"] == 2 and Trial.from_spec(trials[5].spec()).identity == trials[5].identity
    assert [t.fold for t in with_folds("folds: [3]")] == [3, 3]
    mixed = with_folds("folds: 1", "modelnet40_fewshot_5w10s, sweethome12")
    assert [(t.dataset.name, t.fold) for t in mixed[1:3]] == [("modelnet40_fewshot_5w10s", 0), ("sweethome12", None)]
    assert "fold" not in mixed[2].spec()["dataset"]
    for folds, datasets, words in (
        ("folds: 11", "modelnet40_fewshot_5w10s", "has the folds 0 to 9, and no fold 10"),
        ("folds: 2", "sweethome12", "no dataset of this suite comes in folds"),
        ("folds: [1, 1]", "modelnet40_fewshot_5w10s", "'1' is listed twice"),
    ):
        with pytest.raises(SuiteError, match=words):
            with_folds(folds, datasets)


def test_identities_are_stable(tmp_path: Path) -> None:
    """A changed identity orphans everybody's results: change this only together with a version or the format."""
    trial = suite(tmp_path).trials[0]
    assert trial.identity == IDENTITY
    again = replace(trial, resources=Resources(activation_checkpointing=True))
    assert again.identity != IDENTITY and Trial.from_spec(again.spec()).resources.activation_checkpointing


IDENTITY = "bf37e36a6c4d901f"
