"""Part segmentation, from the head to the numbers of a trial."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness import load_trial, registry
from harness.check import combination, dry_step
from harness.cli import main
from harness.data.shapenetpart import PARTS, SHAPENETPART
from harness.errors import SuiteError, UserError
from harness.method import Method, Task, attach_with, misfits
from harness.models.encoder import PlainEncoder
from harness.models.point_mae import PointMAE
from harness.models.segmentation import PartHead, Segmenter, spread, thirds
from harness.models.tokenizer import Tokenizer
from harness.result import Result
from harness.settings import Data, Protocol, Train
from harness.suite import load_suite
from harness.tasks import task_of
from harness.tasks.part_segmentation import PartEvaluation
from harness.train import run_trial
from harness.trial import Trial
from harness.trial_folder import CHECKPOINT
from tests.harness.data.official import write_small_shapenetpart
from tests.harness.test_resume import assert_same, cut_off
from tests.harness.test_train import claim
from tests.harness.test_train import make_trial as any_trial
from tests.methods.cases import VARIANTS, networks, smallest

SYNSETS = {"Airplane": "02691156", "Chair": "03001627", "Mug": "03797390"}
ITEMS = {"train": 6, "val": 2, "test": 5}
"""Of airplanes; chairs are one more, mugs two."""
TINY = PointMAE(preset="tiny", depth=3, groups=8, group_size=8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("data")
    write_small_shapenetpart(root, categories=SYNSETS, items=ITEMS)
    return root


@pytest.fixture(autouse=True)
def _data_is_there(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(data))


def make_trial(method: str = "lora", *, epochs: int = 1, **changes: Any) -> Trial:
    settings = Train(
        epochs=epochs, batch_size=8, warmup_epochs=0, learning_rate=2e-3, augment="scale_shift", drop_path=0.1
    )
    common = {
        "dataset": SHAPENETPART,
        "backbone": TINY,
        "train": settings,
        "data": Data(points=64, sampling="resample"),
    }
    return any_trial(method, **(common | {"protocol": Protocol()} | changes))


# The head


def test_exact_sizes() -> None:
    """Derived by hand from the official layers; the whole model is the 27.06 M that the papers print."""
    dim, parts = 384, 50
    label = 16 * 64 + 2 * 64
    propagation = (3 * dim + 3) * 4 * dim + 4 * dim + 2 * 4 * dim + 4 * dim * 1024 + 1024 + 2 * 1024
    points = (1024 + 6 * dim + 64) * 512 + 512 + 2 * 512 + 512 * 256 + 256 + 2 * 256 + 256 * parts + parts
    head = PartHead(dim=dim, categories=16, parts=parts)
    counted = sum(parameter.numel() for parameter in head.parameters())
    assert counted == label + propagation + points == 5_238_706
    assert round((21_825_792 + counted) / 1e6, 2) == 27.06


@pytest.mark.parametrize(("depth", "blocks"), [(12, (3, 7, 11)), (3, (0, 1, 2)), (4, (1, 2, 3)), (24, (7, 15, 23))])
def test_thirds_of_the_depth(depth: int, blocks: tuple[int, int, int]) -> None:
    assert thirds(depth) == blocks


def as_published(head: PartHead, points: Tensor, categories: Tensor, tokens: Any) -> Tensor:
    """The head as the official code goes about it: everything repeated and concatenated for every point."""

    def layer(linear: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
        """A 1x1 convolution on (B, N, C), and BatchNorm by its running statistics."""
        weight, bias = linear.get_parameter("weight"), linear.get_parameter("bias")
        x = F.conv1d(x.transpose(1, 2), weight[..., None], bias)
        mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
        return F.batch_norm(x, mean, var, norm.get_parameter("weight"), norm.get_parameter("bias")).transpose(1, 2)

    features = torch.cat(tokens.kept, dim=-1)
    distance = torch.cdist(points.double(), tokens.centers.double()).square()
    nearest, members = distance.sort(dim=-1)
    inverse = 1 / (nearest[..., :3] + 1e-8)
    weights = (inverse / inverse.sum(-1, keepdim=True)).float()
    picked = torch.stack([cloud[index] for cloud, index in zip(features, members[..., :3], strict=True)])
    x = torch.cat([points, (picked * weights[..., None]).sum(2)], dim=-1)
    x = layer(head.propagation.point1, head.propagation.norm1, x).relu()
    x = layer(head.propagation.point2, head.propagation.norm2, x).relu()
    label = F.leaky_relu(head.label.norm(F.one_hot(categories, 16).float() @ head.label.linear.weight.T), 0.2)
    whole = torch.cat([features.max(1).values, features.mean(1), label], dim=-1)
    x = torch.cat([x, whole[:, None].expand(-1, points.shape[1], -1)], dim=-1)
    x = layer(head.point2, head.norm2, layer(head.point1, head.norm1, x).relu()).relu()
    return F.linear(x, head.point3.weight, head.point3.bias)


def test_the_head_is_the_official_one() -> None:
    encoder = TINY.build(drop_path=0).eval()
    head = PartHead(dim=96, categories=16, parts=50)
    model = Segmenter(encoder=encoder, blocks=thirds(3), head=head)
    clouds, categories = torch.rand(4, 100, 3) - 0.5, torch.tensor([0, 3, 15, 3])
    with torch.no_grad():
        model.train()
        for _ in range(3):  # running statistics that are neither 0 nor 1
            model(2 * clouds, categories)
        scores = model.eval()(clouds, categories)
        tokens = encoder(clouds, keep=(0, 1, 2))
        expected = as_published(head, clouds, categories, tokens)
    assert scores.shape == (4, 100, 50) and torch.allclose(scores, expected, atol=1e-4 * expected.abs().max().item())


def test_spreading_takes_the_three_nearest_and_sums_to_one() -> None:
    points, centers = torch.rand(2, 30, 3), torch.rand(2, 9, 3)
    weights = spread(points, centers)
    assert torch.equal((weights > 0).sum(-1), torch.full((2, 30), 3)) and torch.allclose(
        weights.sum(-1), torch.ones(2, 30)
    )
    assert torch.equal(weights.argmax(-1), torch.cdist(points, centers).argmin(-1))
    on_a_center = spread(centers[:, :1], centers)
    assert torch.allclose(on_a_center[:, 0, 0], torch.ones(2), atol=1e-4)
    assert spread(points, centers[:, :2]).shape == (2, 30, 2), "fewer than three centres"


# Every registered method, by registration alone


def _methods() -> Iterator[Any]:
    for name in networks():
        backbone = smallest(name)
        if backbone.hierarchical:
            continue
        backbone = backbone.model_copy(update={"depth": 3})
        for method in registry.names("methods"):
            for settings in [{}, *(extra for other, extra, _ in VARIANTS if other == method)]:
                marks = [] if name == networks()[0] and not settings else [pytest.mark.slow]
                yield pytest.param(
                    method, settings, backbone, marks=marks, id=f"{method}-{name}-{json.dumps(settings)}"
                )


@pytest.mark.parametrize(("name", "settings", "backbone"), list(_methods()))
def test_every_method_trains_what_it_declares(name: str, settings: dict[str, Any], backbone: PointMAE) -> None:
    method: Method = registry.get("methods", name).model_validate(settings).on(backbone)
    if problems := misfits(method, backbone):
        pytest.skip(str(problems))
    torch.manual_seed(2)  # one with which none of DAPT's gates, which are ReLUs, is closed to all tokens
    encoder = backbone.build(drop_path=0)
    assert isinstance(encoder, PlainEncoder)
    head = PartHead(dim=encoder.dim, categories=16, parts=50, dropout=0)
    attached = attach_with(
        method, encoder, Task(50, 16, pooled=False), lambda e: Segmenter(encoder=e, blocks=thirds(3), head=head)
    )
    clouds, categories = torch.rand(4, 96, 3) - 0.5, torch.tensor([0, 1, 0, 2])
    if attached.before_training is not None:
        attached.before_training(iter([torch.rand(16, 96, 3) - 0.5]))
    before = {name: p.detach().clone() for name, p in attached.model.named_parameters()}
    optimizer = torch.optim.AdamW(attached.optimizer_groups(0.0), lr=0.01)
    attached.model.train()
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(attached.model(clouds, categories).flatten(0, 1), torch.randint(50, (4 * 96,))).backward()
        assert attached.starved() == []
        optimizer.step()
    dead = {id(parameter) for parameter in attached.dead}
    idle = {id(p) for part in attached.model.modules() if isinstance(part, Tokenizer) for p in part.taken_out()}
    for name, parameter in attached.model.named_parameters():
        if name in attached.trainable and id(parameter) in idle:
            continue
        moved = not torch.equal(parameter, before[name])
        assert moved == (name in attached.trainable and id(parameter) not in dead), name
    tokens = attached.model.eval().encoder(clouds, keep=thirds(3))
    assert [kept.shape for kept in tokens.kept] == [(4, 8, encoder.dim)] * 3, "patch tokens alone, without prompts"
    assert torch.allclose(tokens.kept[-1], tokens.patches, atol=1e-5)


# The numbers


def naive(prediction: np.ndarray, label: np.ndarray, category: np.ndarray) -> tuple[float, float, dict[str, float]]:
    """Instance and class mIoU, shape by shape and part by part, as the field writes it down."""
    names, shapes = list(PARTS), dict[str, list[float]]()
    for told, true, kind in zip(prediction, label, category, strict=True):
        found = []
        for part in PARTS[names[kind]]:
            either = sum(1 for a, b in zip(told, true, strict=True) if a == part or b == part)
            both = sum(1 for a, b in zip(told, true, strict=True) if a == part and b == part)
            found.append(1.0 if either == 0 else both / either)
        shapes.setdefault(names[kind], []).append(sum(found) / len(found))
    everything = [value for values in shapes.values() for value in values]
    by_category = {name: sum(values) / len(values) for name, values in shapes.items()}
    return sum(everything) / len(everything), sum(by_category.values()) / len(by_category), by_category


def judged(prediction: Any, label: Any, category: Any) -> PartEvaluation:
    allowed = np.zeros((16, 50), bool)
    for row, own in enumerate(PARTS.values()):
        allowed[row, list(own)] = True
    arrays = np.array(prediction, np.uint8), np.array(label, np.uint8), np.array(category)
    return PartEvaluation(*arrays, allowed, tuple(PARTS), 0.5)


def test_miou_is_the_fields() -> None:
    rng = np.random.default_rng(0)
    category = rng.integers(0, 16, 40)
    own = [list(PARTS[list(PARTS)[kind]]) for kind in category]
    label = np.array([rng.choice(parts[: rng.integers(1, len(parts) + 1)], 50) for parts in own])
    prediction = np.where(rng.random(label.shape) < 0.6, label, [rng.choice(parts, 50) for parts in own])
    found = judged(prediction, label, category).metrics()
    instance, by_class, categories = naive(prediction, label, category)
    assert found.instance_miou == pytest.approx(instance) and found.class_miou == pytest.approx(by_class)
    assert found.category_miou == pytest.approx(categories)
    assert found.point_accuracy == pytest.approx((prediction == label).mean())
    assert (found.total, found.loss, found.accuracy, found.correct) == (40, 0.5, None, None)


def test_parts_that_are_absent_count_one() -> None:
    """By hand: a mug (36, 37) all of whose points are body, told so; and one half of which is told handle."""
    assert judged([[36, 36]], [[36, 36]], [11]).metrics().instance_miou == 1
    half = judged([[36, 37], [4, 4]], [[36, 36], [4, 5]], [11, 1]).metrics()
    assert half.category_miou == {"Mug": pytest.approx((1 / 2 + 0) / 2), "Bag": pytest.approx((1 / 2 + 0) / 2)}
    uneven = judged([[36, 36], [36, 37], [4, 4]], [[36, 36], [36, 36], [4, 4]], [11, 11, 1]).metrics()
    assert uneven.instance_miou == pytest.approx((1 + 0.25 + 1) / 3)
    assert uneven.class_miou == pytest.approx(((1 + 0.25) / 2 + 1) / 2), "every category counts alike"


def test_only_parts_of_the_category_are_told() -> None:
    """The likeliest part of all fifty is another category's; each item is told once, and in its place."""
    trial = make_trial()
    task = task_of(trial.dataset)
    test = task.load(trial, torch.device("cpu")).test

    class Everything(nn.Module):
        encoder = head = None

        def forward(self, points: Tensor, categories: Tensor) -> Tensor:
            return torch.arange(50.0).expand(*points.shape[:2], -1)

    from contextlib import nullcontext

    from harness.evaluation import OneProcess

    found: Any = task.evaluate(Everything(), test, trial, OneProcess(nullcontext))  # type: ignore[arg-type]
    for told, kind in zip(found.prediction, found.category, strict=True):
        assert set(told.tolist()) == {list(PARTS.values())[kind][-1]}
    assert len(found.label) == 5 + 6 + 7 and math.isfinite(found.loss)


# Trials


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    output: Path = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_DATA", str(data))
        trial = make_trial("dapt", epochs=2, protocol=Protocol(selection="paper"))
        return output, run_trial(trial, claim(trial, output / "trials"))


def test_a_trial_leaves_what_it_promises(finished: tuple[Path, Result]) -> None:
    output, result = finished
    assert (result.status, result.error, result.task) == ("done", None, "part segmentation")
    folder = output / "trials" / result.id
    with np.load(folder / "predictions.npz") as stored:
        assert {name: stored[name].shape for name in stored} == {
            "prediction": (18, 64), "label": (18, 64), "category": (18,),
        }  # fmt: skip
        assert stored["prediction"].dtype == np.uint8
        again = naive(stored["prediction"], stored["label"], stored["category"])
    metrics = result.metrics
    assert (metrics.instance_miou, metrics.class_miou) == pytest.approx(again[:2])
    assert metrics.category_miou == pytest.approx(again[2]) and set(metrics.category_miou or {}) == set(SYNSETS)
    assert result.score == metrics.instance_miou and metrics.accuracy is None and metrics.total == 18
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = max(row["test/instance_miou"] for row in rows)
    assert metrics.instance_miou_best_on_test == best and rows[-1]["test/instance_miou"] == metrics.instance_miou
    for key, value in metrics.model_dump().items():
        assert (value is None) == (f"metrics.{key}" in result.reasons), key
    assert result.reasons["metrics.accuracy"] == "not a number of part segmentation"


def test_validation_is_carved_by_category_and_chooses(tmp_path: Path) -> None:
    trial = make_trial(epochs=2, protocol=Protocol(selection="validation", validation_fraction=0.25))
    train, _, validation, _ = task_of(trial.dataset).load(trial, torch.device("cpu"))
    assert validation is not None and (len(train), len(validation)) == (23, 7)
    assert validation.categories.bincount(minlength=16)[[0, 4, 11]].tolist() == [2, 2, 3]
    assert not set(validation.starts.tolist()) & set(train.starts.tolist())
    result = run_trial(trial, claim(trial, tmp_path))
    assert result.metrics.validation_instance_miou is not None and result.metrics.validation_accuracy is None


def test_methods_see_the_same_clouds() -> None:
    """Points, augmentation and order are drawn from streams that no method touches."""
    batches = []
    for method in ("lora", "dapt"):
        trial = make_trial(method)
        task = task_of(trial.dataset)
        train = task.load(trial, torch.device("cpu")).train
        noise = torch.Generator().manual_seed(5)
        batches.append(task.batch(train, torch.tensor([3, 20, 4]), trial, lambda points, _: points, noise))
    (first, second) = batches
    assert torch.equal(first.inputs[0], second.inputs[0]) and torch.equal(first.targets, second.targets)
    assert first.inputs[0].shape == (3, 64, 3) and first.inputs[1].tolist() == [0, 11, 0]
    assert ((first.targets[1] == 36) | (first.targets[1] == 37)).all()


@pytest.mark.parametrize("method", ["lora", pytest.param("point_peft", marks=pytest.mark.slow)])
def test_goes_on_exactly(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_trial(method, epochs=3)
    changes = {} if method == "lora" else {"method": registry.get("methods", method)(prompts=6, bank_neighbours=4)}
    trial = replace(settings, **changes)
    run_trial(trial, whole := claim(trial, tmp_path / "whole"))
    cut_off(monkeypatch, trial, tmp_path / "cut", epoch=1)
    writer = claim(trial, tmp_path / "cut")
    assert (writer.path / CHECKPOINT).is_file()
    run_trial(trial, writer)
    assert_same(writer.folder, whole.folder)


def test_what_is_loaded_is_what_was_trained(finished: tuple[Path, Result], data: Path) -> None:
    output, result = finished
    trained = load_trial(result.id, output=output)
    found: Any = trained.evaluate()
    with np.load(output / "trials" / result.id / "predictions.npz") as stored:
        assert np.array_equal(found.prediction, stored["prediction"])
    assert trained.told == {"recorded": result.metrics.instance_miou}
    scores = trained.model(torch.rand(2, 64, 3), torch.tensor([0, 11]))
    assert scores.shape == (2, 64, 50)
    with pytest.raises(UserError, match="is for part segmentation: it tells no class of a cloud"):
        trained.predict(torch.rand(64, 3))
    with pytest.raises(UserError, match="'sweethome12' is for classification"):
        trained.evaluate("sweethome12")


def test_an_adapter_knows_its_parts_without_the_data(
    finished: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, result = finished
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    trained = load_trial(output / "trials" / result.id)
    assert trained.classes == tuple(PARTS)
    assert [list(own) for own in trained.trial.dataset.parts] == [list(own) for own in PARTS.values()]  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="shapenetpart"):
        trained.evaluate()


def cli(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr("sys.argv", ["harness", *arguments])
        main()
    return int(ended.value.code or 0)


def test_evaluate_and_predict(
    finished: tuple[Path, Result], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, result = finished
    assert cli("evaluate", result.id, "--output", str(output), "--device", "cpu") == 0
    text = capsys.readouterr().out
    assert text.count(f"{100 * (result.metrics.instance_miou or 0):.2f} %") == 2
    assert "instance mIoU" in text and "class mIoU" in text and "accuracy" not in text
    assert cli("evaluate", result.id, "--output", str(output), "--device", "cpu", "--json") == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["category_miou"] == pytest.approx(result.metrics.category_miou)
    (tmp_path / "a.xyz").write_text("0 0 0\n1 1 1\n" * 50)
    assert cli("predict", result.id, str(tmp_path / "a.xyz"), "--output", str(output)) == 2
    assert "is for part segmentation" in capsys.readouterr().err
    assert cli("export", result.id, str(tmp_path / "m.safetensors"), "--output", str(output)) == 2
    assert "is for part segmentation" in capsys.readouterr().err and not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize("method", ["linear_probe", "dapt", "point_peft"])
def test_dry_steps(method: str) -> None:
    """`--check` needs no data."""
    shown = dry_step(make_trial(method))
    assert shown.problem is None and shown.seconds > 0
    assert combination(make_trial(method)) != combination(any_trial(method, backbone=TINY, data=Data(points=64)))


# What cannot be is refused before anything runs

SUITE = """\
format: 1
name: parts
seeds: 1
datasets: [shapenetpart]
backbones: {point_mae: {preset: tiny}}
methods: {lora: {}, vpt: {}}
"""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("backbones: {point_m2ae: {preset: tiny}}", "point_m2ae cannot do part segmentation here: its tokens become"),
        ("backbones: {point_mae: {preset: tiny, depth: 2}}", "reads tokens at three depths, and depth is 2"),
        ("protocol: {vote: 10}", "protocol.vote: voting is for classification"),
        ("data: {sampling: fps}", "data.sampling: fps is for"),
        ("references: {nearest: {baseline: nearest_neighbour}}", "baselines are for classification"),
        ("datasets: [shapenet55]", "suites train on classification"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(change: str, words: str, tmp_path: Path) -> None:
    key = change.partition(":")[0]
    kept = [line for line in SUITE.splitlines() if not line.startswith(f"{key}:")]
    (tmp_path / "suite.yaml").write_text("\n".join([*kept, change]) + "\n")
    with pytest.raises(SuiteError) as problem:
        load_suite(str(tmp_path / "suite.yaml"))
    assert len(problem.value.problems) == 1 and words in str(problem.value)


def test_resample_is_not_for_classification(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE.replace("shapenetpart", "sweethome12") + "data: {sampling: resample}\n")
    with pytest.raises(SuiteError, match="resample is for part segmentation"):
        load_suite(str(tmp_path / "suite.yaml"))


# The shipped suite


@pytest.mark.slow
def test_the_shipped_suite_end_to_end(data: Path, tmp_path: Path) -> None:
    """This very suite through the real command, made small: its reports show instance and class mIoU."""
    sets = {
        "backbone.preset": "tiny", "backbone.weights": "random", "backbone.groups": "8", "backbone.group_size": "8",
        "data.points": "64", "train.epochs": "1", "train.warmup_epochs": "0", "train.batch_size": "8", "seeds": "1",
        "resources.gpus_per_process": "0",
    }  # fmt: skip
    arguments = [f"--set={key}={value}" for key, value in sets.items()]
    command = [sys.executable, "-c", "from harness.cli import main; main()", "run", "part_segmentation", "--json"]
    done = subprocess.run(
        [*command, "--no-mlflow", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    methods = {trial.method_label for trial in load_suite("part_segmentation").trials}
    assert summary["done"] == len(methods) and summary["failed"] == {}
    found = [Result.model_validate_json(path.read_bytes()) for path in tmp_path.glob("results/trials/*/result.json")]
    assert all(0 < (result.score or 0) <= 1 for result in found) and len(found) == len(methods)
