"""Pre-training checkpoints in every official layout become weights, and nothing else does."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness import load_trial, registry
from harness.cli import main
from harness.errors import UserError
from harness.importing.files import import_file, remove, suite_entry
from harness.models import weights as known
from harness.models.manifest import imported_names, manifest_path, read_manifest, weights_path
from harness.models.point_mae import PointMAE
from harness.models.weights import all_weights, find_weights, load_weights
from harness.suite import load_suite
from harness.train import run_trial
from tests.harness.importing.checkpoints import LAYOUTS, PLAIN, Pretraining, ones, randomised, write
from tests.harness.importing.test_reading import RunsCode
from tests.harness.test_cli import harness
from tests.harness.test_train import claim, make_trial

pytestmark = pytest.mark.usefixtures("in_process", "root")


def mae(path: Path, **changes: Tensor | None) -> Path:
    """A Point-MAE checkpoint with some tensors changed, or left out."""
    layout = LAYOUTS["Point-MAE, pre-training"]
    state = layout.state(randomised(layout.settings().build(drop_path=0)))
    for name, value in changes.items():
        state |= {name: value} if value is not None else {}
        if value is None:
            del state[name]
    return write(path, state)


ENCODER = "module.MAE_encoder."


# What is imported is what was in the file


@pytest.mark.parametrize("title", LAYOUTS)
def test_features_are_those_of_the_file(title: str, tmp_path: Path) -> None:
    layout = LAYOUTS[title]
    original = randomised(layout.settings().build(drop_path=0))
    state = layout.state(original)
    manifest = import_file(write(tmp_path / "a.pth", state), name="mine", **layout.options)
    assert (manifest.source.layout, manifest.backbone) == (title, layout.backbone)
    assert {*manifest.source.used.values()} | {n for names in manifest.source.left.values() for n in names} == {*state}
    assert {*manifest.source.missing} == {*layout.lacks}
    assert find_weights("mine").misfit(layout.settings()) is None and manifest == read_manifest("mine")

    encoder = registry.get("backbones", manifest.backbone)(**manifest.requires | patches(layout)).build(drop_path=0)
    assert load_weights(encoder, "mine") == manifest.digest
    own, theirs = encoder.state_dict(), original.state_dict()
    line = yaml.safe_load(suite_entry(manifest))[layout.backbone]
    assert find_weights("mine").misfit(registry.get("backbones", layout.backbone)(**line)) is None
    for name in layout.lacks:
        own[name].copy_(theirs[name])
    points = torch.rand(2, 64, 3)
    assert torch.equal(encoder.eval()(points).features, original(points).features)


def patches(layout: Pretraining) -> dict[str, object]:
    """Settings that are in no tensor."""
    keys = ("groups", "group_size", "num_groups", "group_sizes", "local_radius")
    return {key: value for key in keys if (value := getattr(layout.settings(), key, None)) is not None}


def test_every_tensor_that_is_left_has_its_reason(tmp_path: Path) -> None:
    layout = LAYOUTS["Point-BERT, pre-training"]
    state = layout.state(layout.settings().build(drop_path=0)) | {"module.transformer_k.norm.bias": torch.ones(24)}
    left = import_file(write(tmp_path / "a.pth", state, comment="x"), name="mine").source.left
    assert {why: len(names) for why, names in left.items()} == {
        "decoder of pre-training": 1,
        "head of pre-training": 2,
        "the other branch of Point-BERT's two, which --branch takes": 1,
        "the pre-training task's negatives": 2,
        "the pre-training task's tokeniser": 1,
    }


def test_names_of_the_harness_are_read_too(tmp_path: Path) -> None:
    """What `harness pretrain` writes, and what somebody converted by hand."""
    for kind in ("point_mae", "point_bert"):
        encoder = randomised(registry.get("backbones", kind)(**PLAIN).build(drop_path=0))
        save_file(encoder.state_dict(), tmp_path / f"{kind}.safetensors")
        manifest = import_file(tmp_path / f"{kind}.safetensors")
        assert (manifest.name, manifest.backbone) == (kind, kind)
        own, written = encoder.state_dict(), load_file(weights_path(kind))
        assert set(own) == set(written) and all(torch.equal(value, own[name]) for name, value in written.items())


def test_who_says_what_the_tensors_do_not(tmp_path: Path) -> None:
    path = mae(tmp_path / "a.pth")
    assert import_file(path, name="six").source.assumed == {"heads": 6}
    four = import_file(path, name="four", backbone="act", settings=["backbone.heads=4"])
    assert (four.source.assumed, four.requires["heads"], four.backbone) == ({}, 4, "act")
    assert suite_entry(four) == "act: {dim: 24, depth: 2, tokenizer_width: 32, heads: 4, weights: four}"
    for setting, words in (
        ("backbone.heads=5", "dim 24 is not a multiple of heads 5"),
        ("backbone.heads=x", "heads: Input should be a valid integer"),
        ("backbone.dim=48", "--set backbone.dim=48: the tensors say 24"),
        ("backbone.hads=4", "unknown setting 'hads'; did you mean 'heads'?"),
        ("train.epochs=4", "--set train.epochs: cannot be set"),
        ("heads", "expected KEY=VALUE, for example backbone.heads=6"),
    ):
        with pytest.raises(UserError) as caught:
            import_file(path, name="five", settings=[setting])
        assert words in str(caught.value)
    with pytest.raises(UserError, match="unknown backbone 'point_mea'; did you mean 'point_mae'"):
        import_file(path, name="five", backbone="point_mea")
    assert imported_names() == ["four", "six"]


def test_a_guess_is_said(tmp_path: Path) -> None:
    layout = LAYOUTS["an encoder under base_model."]
    path = write(tmp_path / "a.pth", layout.state(randomised(layout.settings().build(drop_path=0))))
    guessed, told = import_file(path, name="a"), import_file(path, name="b", backbone="point_mae")
    assert (guessed.backbone, guessed.source.guess[-19:]) == ("recon", "; taken for ReCon's")
    assert (told.backbone, told.source.guess) == ("point_mae", "")


# What is refused


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({f"{ENCODER}norm.weight": torch.full((24,), float("nan"))}, {}, "'module.MAE_encoder.norm.weight' holds NaN"),
        ({f"{ENCODER}norm.bias": torch.full((24,), float("inf"))}, {}, "holds NaN or infinite values"),
        ({f"{ENCODER}norm.bias": torch.ones(7)}, {}, "norm.bias' is (7,), and a point_mae has (24,)"),
        ({f"{ENCODER}norm.bias": None}, {}, "lacks 1 tensors of a point_mae encoder, first 'norm.bias'"),
        ({f"{ENCODER}norm.weight": None}, {}, "is no point_mae encoder: it lacks 'norm.weight'"),
        ({f"{ENCODER}norm.weight": torch.tensor(1.0)}, {}, "is no point_mae encoder"),
        (
            {f"{ENCODER}blocks.blocks.1.attn.qkv.bias": torch.ones(72)}, {},
            "holds 1 tensors that a point_mae encoder lacks, first 'module.MAE_encoder.blocks.blocks.1.attn.qkv.bias'",
        ),
        ({"MAE_encoder.norm.weight": torch.ones(24)}, {}, "are one name without 'module.'"),
        ({}, {"backbone": "point_bert"}, "is no point_bert encoder: it lacks 'reduce_dim.weight'"),
        ({}, {"branch": "k"}, "--branch k: there is no transformer_k. in it"),
    ],
)  # fmt: skip
def test_one_error_and_nothing_written(
    changes: dict[str, Tensor | None], options: dict[str, str], words: str, tmp_path: Path, root: Path
) -> None:
    path = mae(tmp_path / "a.pth", **changes)
    with pytest.raises(UserError) as caught:
        import_file(path, name="mine", **options)  # type: ignore[arg-type]
    assert words in str(caught.value) and str(path) in str(caught.value)
    assert not root.exists()


def test_a_hostile_file_at_the_command_line(tmp_path: Path) -> None:
    torch.save({"base_model": {}, "x": RunsCode(tmp_path / "ran")}, tmp_path / "evil.pth")
    done = harness("weights", "import", "evil.pth", "--as", "mine", cwd=tmp_path, HARNESS_DATA=str(tmp_path / "data"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: evil.pth: needs posix.system, which would run code")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pth"]


def test_a_folder_that_takes_nothing(tmp_path: Path, root: Path) -> None:
    root.write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"data/weights: cannot be written \(Not a directory\)"):
        import_file(mae(tmp_path / "a.pth"), name="mine")


def test_what_is_no_encoder(tmp_path: Path, root: Path) -> None:
    path = write(tmp_path / "resnet.pth", ones("conv1.weight", "fc.bias"))
    with pytest.raises(UserError, match=r"resnet.pth: not recognised: 2 tensors, among them conv1.weight, fc.bias;"):
        import_file(path)
    assert not root.exists()


# Names


def test_names_come_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = mae(tmp_path / "pretrain.pth")
    assert import_file(published).name == "pretrain"  # the file's name is the authors', its sizes are not
    small = known.WEIGHTS["point_mae_shapenet"]
    requires = {"dim": 24, "depth": 2, "heads": 6, "tokenizer_width": 32}
    monkeypatch.setitem(known.WEIGHTS, small.name, replace(small, requires=requires))
    assert import_file(published).name == "point_mae_shapenet"
    assert find_weights("point_mae_shapenet").missing() is None
    assert import_file(mae(tmp_path / "ckpt last (3).pth")).name == "ckpt_last_3"
    with pytest.raises(UserError, match="what shall it be called"):
        import_file(mae(tmp_path / "...pth"))
    assert imported_names() == ["ckpt_last_3", "point_mae_shapenet", "pretrain"]


def test_a_known_name_is_kept_for_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mae(tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"those are point_mae \(dim 384, .*is point_mae \(dim 24, .*another name"):
        import_file(path, name="point_mae_shapenet")
    small = known.WEIGHTS["point_mae_shapenet"]
    assert small.official is not None
    requires = {"dim": 24, "depth": 2, "heads": 6, "tokenizer_width": 32}
    digest = replace(small.official, sha256="0" * 64)
    monkeypatch.setitem(known.WEIGHTS, small.name, replace(small, requires=requires, official=digest))
    with pytest.raises(UserError, match="the authors' file has SHA-256 000000000000…"):
        import_file(path, name="point_mae_shapenet")
    for name, words in (
        ("point_mae_tiny_parts", "weights of the harness are called so"),
        ("random", "nor be 'random'"),
        ("..", "neither begin with '.'"),
        ("a/b", "may hold letters, digits"),
        ("", "may hold letters, digits"),
    ):
        with pytest.raises(UserError, match=words):
            import_file(path, name=name)


def test_a_name_that_is_taken(tmp_path: Path) -> None:
    first = import_file(mae(tmp_path / "a.pth"), name="mine")
    with pytest.raises(UserError, match="'mine' is imported already; --force replaces it"):
        import_file(mae(tmp_path / "b.pth"), name="mine")
    assert read_manifest("mine") == first
    assert import_file(mae(tmp_path / "b.pth"), name="mine", force=True).digest != first.digest
    assert [path.name for path in remove("mine")] == ["mine.json", "mine.safetensors"]
    for name in ("mine", "../data", "..", ".", "point_mae_tiny_parts"):
        with pytest.raises(UserError, match=r"nothing is imported as|ship with the harness"):
            remove(name)


# What suites, schema and lists see


SUITE = """\
format: 1
name: s
seeds: 1
datasets: [sweethome12]
backbones:
  small: {backbone: point_mae, preset: tiny, dim: 24, depth: 2, groups: 8, group_size: 8, weights: mine}
methods:
  linear_probe: {}
data: {points: 64}
"""


def test_imported_weights_stand_beside_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], root: Path
) -> None:
    suite = tmp_path / "s.yaml"
    suite.write_text(SUITE)
    with pytest.raises(UserError, match=r"backbones.small.weights: unknown weights 'mine'; known: act_shapenet"):
        load_suite(str(suite))
    import_file(mae(tmp_path / "a.pth"), name="mine")
    (trial,) = load_suite(str(suite)).trials
    assert trial.spec()["weights_version"] == 1
    suite.write_text(SUITE.replace("depth: 2", "depth: 3"))
    with pytest.raises(UserError, match="weights 'mine' do not fit: depth is 3, they have 2"):
        load_suite(str(suite))
    suite.write_text(SUITE.replace("backbone: point_mae", "backbone: act"))
    with pytest.raises(UserError, match="do not fit: they are of point_mae"):
        load_suite(str(suite))

    def said(*arguments: str) -> str:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr("sys.argv", ["harness", *arguments])
            main()
        assert not ended.value.code
        return capsys.readouterr().out

    assert "mine" in said("list", "weights").split()
    assert '"mine"' in said("schema")
    shown = json.loads(said("weights", "show", "mine"))
    assert shown["manifest"] == json.loads(manifest_path("mine").read_text())
    listed = {entry["name"]: entry for entry in json.loads(said("weights", "list", "--json"))["weights"]}
    assert (
        listed["mine"]["missing"] is None
        and listed["mine"]["source"] == "Imported from a.pth (Point-MAE, pre-training)."
    )
    assert "harness weights import pretrain.pth --as point_mae_shapenet" in listed["point_mae_shapenet"]["missing"]
    assert "│ mine " in said("weights", "list")
    assert said("weights", "remove", "mine").count("removed") == 2
    assert "mine" not in all_weights()


def test_a_trial_on_imported_weights(tmp_path: Path) -> None:
    digest = import_file(mae(tmp_path / "a.pth"), name="mine").digest
    backbone = PointMAE(preset="tiny", dim=24, depth=2, groups=8, group_size=8, weights="mine")
    trial = make_trial("linear_probe", backbone=backbone)
    writer = claim(trial, tmp_path / "trials")
    result = run_trial(trial, writer)
    assert (result.status, result.digests["weights"]) == ("done", digest)
    assert load_trial(writer.path).evaluate().correct == result.metrics.correct
    import_file(mae(tmp_path / "b.pth"), name="mine", force=True)
    with pytest.raises(UserError, match="was trained on other weights 'mine'"):
        load_trial(writer.path)


def test_weights_that_were_changed_afterwards(tmp_path: Path) -> None:
    import_file(mae(tmp_path / "a.pth"), name="mine")
    encoder = PointMAE(**{**find_weights("mine").requires}).build(drop_path=0)
    load_weights(encoder, "mine")
    state = load_file(weights_path("mine"))
    save_file(state | {"norm.bias": state["norm.bias"] + 1}, weights_path("mine"))
    with pytest.raises(
        UserError, match=r"is not the [0-9a-f]{12}… of its manifest; import them again: harness weights"
    ):
        load_weights(encoder, "mine")
    weights_path("mine").unlink()
    with pytest.raises(UserError, match=r"weights 'mine' are not at .*harness weights import FILE --as mine --force"):
        load_weights(encoder, "mine")
    manifest_path("mine").write_text("{")
    with pytest.raises(UserError, match="no manifest of weights 'mine' "):
        find_weights("mine")
    assert imported_names() == []


def test_the_command_says_what_became_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = mae(tmp_path / "a.pth")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("sys.argv", ["harness", "weights", "import", str(path), "--as", "mine"])
        main()
    said = capsys.readouterr().out
    for words in (
        "mine: Point-MAE, pre-training\n",
        "encoder  point_mae: dim 24, depth 2, tokenizer_width 32\n",
        "assumed  backbone.heads=6: no tensor tells; --set KEY=VALUE\n",
        "used     46 tensors under 'base_model'\n",
        "left     4 decoder of pre-training (module.MAE_decoder.blocks.0.norm1.weight, module.decoder_pos_",
        "missing  class_token, class_position: new at fine-tuning, drawn at random\n",
        "it says  epoch 300\n",
        "point_mae: {dim: 24, depth: 2, tokenizer_width: 32, heads: 6, weights: mine}",
    ):
        assert words in said
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr("sys.argv", ["harness", "weights", "import", str(path), "--as", "mine"])
        main()
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("error: 'mine' is imported already")
