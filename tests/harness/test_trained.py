"""A trained model outside the harness: the one that the report speaks of, or an error that says why not."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness import load_exported, load_trial, registry
from harness.adapter import fill, unpack, untrained
from harness.cli import main
from harness.data.imported import clouds_path
from harness.data.importing import import_folder
from harness.data.splits import EVALUATION_BATCH
from harness.data.splits import test_batches as batches
from harness.errors import UserError
from harness.export import export
from harness.models.encoder import PlainEncoder
from harness.models.point_mae import PointMAE
from harness.models.weights import WEIGHTS, data_root, load_weights
from harness.result import Result
from harness.settings import Data, Protocol, Resources, Train
from harness.train import Training, run_trial
from harness.trained import FILES
from harness.trial import Trial, identity_of
from harness.trial_folder import ADAPTER, ADAPTER_CARD, ADAPTER_HEAD
from tests.harness.test_train import claim, make_trial

ROOT = Path(__file__).parent.parent.parent
WEIGHTS_NAME = "point_mae_tiny_parts"
METHODS = registry.names("methods")
EVERY_TIME = ("full", "linear_probe", "lora", "dapt", "point_peft")
"""The methods that these tests take every time; the others go with the slow tests."""
SOME = [name if name in EVERY_TIME else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]


def on(weights: str) -> PointMAE:
    return PointMAE(preset="tiny", groups=8, group_size=8, weights=weights)


@dataclass(frozen=True)
class Finished:
    """A trial that has just been trained here."""

    trial: Trial
    path: Path
    seen: Tensor
    """Test clouds as the encoder sees them (n, points, 3)."""
    scores: Tensor
    """What the trained model, still in memory, says of them (n, K)."""


Finish = Callable[..., Finished]


@pytest.fixture(scope="module")
def finish(tmp_path_factory: pytest.TempPathFactory) -> Finish:
    """Train a method; once per combination."""
    root, done = tmp_path_factory.mktemp("results") / "trials", dict[str, Finished]()

    def train(method: str, **changes: object) -> Finished:
        trial = make_trial(method, **({"backbone": on(WEIGHTS_NAME)} | changes))
        if trial.identity not in done:
            writer = claim(trial, root)
            training = Training(trial, writer)
            writer.finish(training.run(None))
            seen = torch.cat([clouds for _, clouds in batches(training.test, trial)])
            done[trial.identity] = Finished(trial, writer.path, seen, logits(training.attached.model, seen))
        return done[trial.identity]

    return train


@pytest.fixture
def copied(finish: Finish, tmp_path: Path) -> Path:
    """The folder of a LoRA trial, to be damaged."""
    return Path(shutil.copytree(finish("lora").path, tmp_path / "copy"))


@torch.no_grad()
def logits(model: torch.nn.Module, seen: Tensor) -> Tensor:
    return torch.cat([model.eval()(clouds) for clouds in seen.split(EVALUATION_BATCH)])


def predictions(path: Path) -> np.ndarray:
    with np.load(path / "predictions.npz") as stored:
        found: np.ndarray = stored["prediction"]
        return found


def stored_clouds(trial: Trial) -> np.ndarray:
    return trial.dataset.load("test", data_root()).points


# The same model


@pytest.mark.parametrize("weights", [WEIGHTS_NAME, "random"])
@pytest.mark.parametrize("method", SOME)
def test_what_is_loaded_is_what_was_trained(method: str, weights: str, finish: Finish) -> None:
    finished = finish(method, backbone=on(weights))
    trained = load_trial(finished.path)
    assert torch.equal(logits(trained.model, finished.seen), finished.scores)
    probabilities = trained.predict(stored_clouds(finished.trial))
    assert np.array_equal(probabilities.argmax(1).numpy(), predictions(finished.path))
    assert (trained.classes, trained.points) == (finished.trial.dataset.classes, 128)
    assert trained.trial.identity == finished.trial.identity and trained.spec == finished.trial.spec()
    assert not any(module.training for module in trained.model.modules())


@pytest.mark.parametrize("weights", [WEIGHTS_NAME, "random"])
@pytest.mark.parametrize("method", SOME)
def test_the_adapter_file_needs_no_seed(method: str, weights: str, finish: Finish) -> None:
    finished = finish(method, backbone=on(weights))
    other = finished.trial.with_seed(1234)
    attached, _ = untrained(other, train_items=other.dataset.train_items)
    assert not torch.equal(logits(attached.model, finished.seen), finished.scores)
    contents = [(finished.path / file).read_bytes() for file in FILES.values()]
    assert fill(attached, unpack(contents, attached, other.method)) is None
    assert torch.equal(logits(attached.model, finished.seen), finished.scores)


def test_what_the_base_weights_hold_is_not_in_the_adapter(finish: Finish) -> None:
    probe = finish("linear_probe").path
    assert set(load_file(probe / ADAPTER)) == {"encoder.class_token", "encoder.class_position"}
    assert all(name.startswith("head.") for name in load_file(probe / ADAPTER_HEAD))
    bank = set(load_file(finish("point_peft").path / ADAPTER))
    query = {name for name in bank if name.startswith("encoder.query.")}
    assert query == {"encoder.query.encoder.class_token", "encoder.query.encoder.class_position"}


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps one precision per process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_predictions_are_in_the_trials_precision(fresh_accelerator: None, tmp_path: Path) -> None:
    trial = make_trial(resources=Resources(precision="bf16"))
    writer = claim(trial, tmp_path)
    assert run_trial(trial, writer).status == "done"
    trained = load_trial(writer.path)
    clouds = stored_clouds(trial)
    assert np.array_equal(trained.predict(clouds).argmax(1).numpy(), predictions(writer.path))
    exact = replace(trained, trial=replace(trial, resources=Resources()))
    assert not torch.equal(exact.predict(clouds), trained.predict(clouds))


def test_validation_and_farthest_points(finish: Finish) -> None:
    finished = finish(
        "vpt",
        protocol=Protocol(selection="validation", validation_fraction=0.2),
        data=Data(points=64, sampling="fps"),
        train=Train(epochs=2, batch_size=16, warmup_epochs=0, drop_path=0.1),
    )
    found = load_trial(finished.path).predict(stored_clouds(finished.trial))
    assert np.array_equal(found.argmax(1).numpy(), predictions(finished.path))


# A specification is a trial


@pytest.mark.parametrize("method", SOME)
def test_a_specification_reads_back(method: str) -> None:
    trial = make_trial(method, seed=3, train=Train(epochs=7, learning_rate=1e-4), keep="none")
    again = Trial.from_spec(json.loads(json.dumps(trial.spec())))
    assert (again.identity, again.spec(), again.method) == (trial.identity, trial.spec(), trial.method)


def test_a_specification_that_is_none_here(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = make_trial("lora")
    spec = trial.spec()
    with pytest.raises(UserError, match="baseline 'nearest_neighbour' trains nothing"):
        Trial.from_spec(replace(trial, baseline="nearest_neighbour").spec())
    for section, changes, words in (
        ("method", {"name": "lroa"}, "unknown method 'lroa'; did you mean 'lora'"),
        ("method", {"version": 2}, "method 'lora' is of version 1 here, and version 2 is needed"),
        ("method", {"settings": {"rnk": 3}}, "rnk"),
        ("backbone", {"version": 9}, "backbone 'point_mae' is of version 1 here"),
        ("dataset", {"name": "nope"}, "unknown dataset 'nope'"),
        ("resources", {"processes": 8}, "processes"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            Trial.from_spec(spec | {section: spec[section] | changes})
    with pytest.raises(UserError, match="weights_version would be different here"):
        Trial.from_spec(spec | {"weights_version": 5})
    with pytest.raises(UserError, match="unknown weights 'mine'"):
        Trial.from_spec(make_trial(backbone=on("mine")).spec())


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments \\['harness'\\]")  # our part of the card
@pytest.mark.parametrize("method", ["lora", "hf_peft"])
def test_hf_peft_reads_its_adapters(method: str, finish: Finish) -> None:
    """Onto the bare encoder with the base weights, without this harness."""
    peft = pytest.importorskip("peft")
    finished = finish(method, backbone=on(WEIGHTS_NAME))
    encoder = finished.trial.backbone.build(drop_path=0.0)
    load_weights(encoder, WEIGHTS_NAME)
    read = peft.PeftModel.from_pretrained(encoder, finished.path / ADAPTER.parent).eval()
    with torch.no_grad():
        ours = load_trial(finished.path).model.encoder(finished.seen).features
        assert torch.allclose(read(finished.seen).features, ours, atol=1e-5)


@pytest.mark.parametrize("method", ["full", "linear_probe", "lora", "bitfit", "hf_peft"])
def test_an_exported_model_is_the_trained_one(
    method: str,
    finish: Finish,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finished = finish(method, backbone=on(WEIGHTS_NAME))
    file = tmp_path / "deep" / "model.safetensors"
    monkeypatch.setattr(sys, "argv", ["harness", "export", str(finished.path), str(file), "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["difference"] < 1e-5
    model = load_exported(file)
    assert type(model.encoder) is PlainEncoder
    assert torch.allclose(logits(model, finished.seen), finished.scores, atol=1e-4)


def test_what_cannot_be_exported(finish: Finish, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="method 'dapt' changes what the encoder computes"):
        export(load_trial(finish("dapt").path), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"name the file model\.pt\.safetensors"):
        export(load_trial(finish("lora").path), tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())
    export(load_trial(finish("lora").path), tmp_path / "model.safetensors")
    (tmp_path / "model.json").write_text('{"backbone": {"name": "point_mae", "settings": {}}, "pool": ["class"]}')
    with pytest.raises(UserError, match=r"does not describe model\.safetensors"):
        load_exported(tmp_path / "model.safetensors")
    (tmp_path / "model.json").unlink()
    with pytest.raises(UserError, match=r"model\.json: cannot be read"):
        load_exported(tmp_path / "model.safetensors")


# Errors, one per thing that can be wrong


def edit_result(path: Path, **changes: object) -> None:
    raw = json.loads((path / "result.json").read_text()) | changes
    (path / "result.json").write_text(Result.model_validate(raw | {"id": identity_of(raw["spec"])}).model_dump_json())


def edit_card(path: Path, **changes: object) -> None:
    raw = json.loads((path / ADAPTER_CARD).read_text())
    (path / ADAPTER_CARD).write_text(json.dumps(raw | {"harness": raw["harness"] | changes}))


def edit_tensors(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Other tensors, and a result that vouches for them."""
    state = load_file(path / ADAPTER_HEAD)
    change(state)
    save_file(state, path / ADAPTER_HEAD)
    digests = json.loads((path / "result.json").read_text())["digests"]
    edit_result(path, digests=digests | {"head": hashlib.sha256((path / ADAPTER_HEAD).read_bytes()).hexdigest()})


def spec_of(path: Path) -> dict[str, object]:
    spec: dict[str, object] = json.loads((path / "result.json").read_text())["spec"]
    return spec


def digest_of_weights(path: Path) -> str:
    digest: str = json.loads((path / "result.json").read_text())["digests"]["weights"]
    return digest


BASELINE = {"format": 1, "dataset": {"name": "x", "version": 1}, "data": {"points": 9}, "baseline": "nearest_neighbour"}
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no result": (lambda p: (p / "result.json").unlink(), "no trial has finished here"),
    "cut result": (lambda p: (p / "result.json").write_text("{"), "result.json: damaged; get it again"),
    "changed specification": (
        lambda p: (p / "result.json").write_text((p / "result.json").read_text().replace('"rank":32', '"rank":8')
                                                 .replace('"rank": 32', '"rank": 8')),
        "its specification is not that of trial",
    ),
    "failed": (lambda p: edit_result(p, status="oom", error="out of memory: x\ny"), "ended as oom: out of memory: x"),
    "lost": (lambda p: edit_result(p, status="lost", error=None), "ended as lost: no reason is known"),
    "baseline": (lambda p: edit_result(p, spec=BASELINE), "baseline 'nearest_neighbour', which trains nothing"),
    "no adapter": (lambda p: (p / ADAPTER).unlink(), "the suite says `keep: none`, or it was removed"),
    "damaged adapter": (lambda p: (p / ADAPTER).write_bytes(b"x"), "damaged or replaced: SHA-256 2d711642b726"),
    "damaged head": (lambda p: (p / ADAPTER_HEAD).write_bytes(b"x"), "head.safetensors: damaged or replaced"),
    "no adapter by digest": (
        lambda p: edit_result(p, digests={"weights": digest_of_weights(p)}), "result.json says None"
    ),
    "no card": (lambda p: (p / ADAPTER_CARD).unlink(), "adapter_config.json: cannot be read (No such file"),
    "cut card": (lambda p: (p / ADAPTER_CARD).write_text("{"), "damaged, or not of this version of the harness"),
    "card without normalised": (lambda p: edit_card(p, normalised=None), "(normalised: "),
    "another card": (lambda p: edit_card(p, trial="0" * 16), "adapter_config.json: is not of trial"),
    "fewer classes": (lambda p: edit_card(p, classes=["a", "b"]), "'head.8.bias' is (12,) torch.float32"),
    "a tensor less": (lambda p: edit_tensors(p, lambda s: s.pop("head.0.weight")), "'head.0.weight' is trained"),
    "a tensor more": (lambda p: edit_tensors(p, lambda s: s.update(x=torch.ones(1))), "'x' is no part of the model"),
    "a tensor of 64 bits": (
        lambda p: edit_tensors(p, lambda s: s.update({"head.0.bias": s["head.0.bias"].double()})), "torch.float64",
    ),
    "other backbone version": (
        lambda p: [edit_result(p, spec=(spec := spec_of(p) | {"backbone": spec_of(p)["backbone"] | {"version": 7}})),  # type: ignore[operator]
                   edit_card(p, spec=spec, trial=identity_of(spec))],
        "cannot be built: backbone 'point_mae' is of version 1 here, and version 7 is needed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_what_cannot_be_used_says_why(what: str, copied: Path) -> None:
    damage, words = DAMAGE[what]
    load_trial(copied)
    damage(copied)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        load_trial(copied)
    assert str(copied) in str(caught.value)


def test_base_weights_that_are_missing_or_others(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    shipped = WEIGHTS[WEIGHTS_NAME]
    monkeypatch.setitem(WEIGHTS, WEIGHTS_NAME, replace(shipped, shipped=False))
    with pytest.raises(UserError, match=f"cannot be built: weights '{WEIGHTS_NAME}' are not at {tmp_path}"):
        load_trial(copied)
    state = load_file(shipped.path())
    state["norm.bias"] += 1
    (tmp_path / "weights").mkdir()
    save_file(state, WEIGHTS[WEIGHTS_NAME].path())
    with pytest.raises(UserError, match=f"was trained on other weights '{WEIGHTS_NAME}': SHA-256"):
        load_trial(copied)


def test_trials_are_found_by_the_beginning_of_their_identity(finish: Finish) -> None:
    first, second = finish("lora"), finish("linear_probe")
    output = first.path.parent.parent
    trial = first.trial.identity
    assert load_trial(trial, output=output).result.id == load_trial(trial[:12], output=str(output)).result.id == trial
    twin = first.path.with_name(trial[:12] + "0000")
    shutil.copytree(first.path, twin)
    with pytest.raises(UserError, match=f"'{trial[:12]}' begins 2 trials; add digits\n- {trial[:12]}"):
        load_trial(trial[:12], output=output)
    shutil.rmtree(twin)
    typo = second.trial.identity[:7] + "x"
    with pytest.raises(UserError, match=f"no trial '{typo}'; did you mean .*\n- .*sweethome12 seed 0 \\(done\\)"):
        load_trial(typo, output=output)
    for name, words in (
        (str(output / "trials" / "nope"), "no such folder; name the folder of a trial"),
        (str(first.path / "result.json"), "is a file; name the folder"),
        (output, "result.json: no such file; no trial has finished here"),
    ):
        with pytest.raises(UserError, match=words):
            load_trial(name, output=output)
    with pytest.raises(UserError, match="trials: no such folder; --output"):
        load_trial(trial, output=output / "elsewhere")
    with pytest.raises(UserError, match="device 'abacus' cannot be used here"):
        load_trial(trial, output=output, device="abacus")


def test_loading_leaves_the_callers_random_numbers_alone(finish: Finish) -> None:
    path = finish("lora").path
    before = torch.get_rng_state()
    load_trial(path)
    assert torch.equal(torch.get_rng_state(), before)


# Clouds in, probabilities out


def test_clouds_of_many_kinds(finish: Finish) -> None:
    trained = load_trial(finish("lora").path)
    clouds = np.random.default_rng(0).uniform(-1, 1, (70, 200, 3))
    found = trained.predict(clouds)
    assert (found.shape, found.dtype, found.requires_grad) == ((70, 12), torch.float64, False)
    assert torch.allclose(found.sum(1), torch.ones(70, dtype=torch.float64))
    same = (
        clouds.astype(np.float32),
        torch.from_numpy(clouds),
        torch.from_numpy(clouds).requires_grad_(),
        clouds.tolist(),
    )
    for other in same:
        assert torch.equal(trained.predict(other), found)
    assert torch.allclose(trained.predict(clouds[3]), found[3:4], atol=1e-6)
    assert trained.predict(clouds[:, ::-1]).shape == found.shape
    features = trained.embed(clouds)
    assert (features.shape, features.dtype) == ((70, 2 * 96), torch.float32)
    assert torch.allclose(trained.model.head(features).double().softmax(1), found, atol=1e-6)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (np.zeros((127, 3)), "needs 128 points per cloud, got 127"),
        (np.zeros((128, 2)), r"shape \(N, 3\) or \(B, N, 3\), got \(128, 2\)"),
        (np.zeros(3), "shape"),
        (np.zeros((0, 128, 3)), "shape"),
        (np.full((128, 3), np.nan), "NaN"),
        (np.full((128, 3), 1e300), "infinite"),
        (np.full((128, 3), "1"), "real numbers"),
        (np.full((128, 3), 1j), "real numbers"),
    ],
)
def test_no_clouds(points: np.ndarray, words: str, finish: Finish) -> None:
    with pytest.raises(ValueError, match=words):
        load_trial(finish("lora").path).predict(points)


def shapes(folder: Path) -> None:
    """Two classes of clouds in files, of 200 points and more, far from the origin."""
    generator = np.random.default_rng(0)
    for kind, stretch in (("flat", (9, 9, 1)), ("long", (1, 1, 9))):
        for split, each in (("train", 8), ("test", 3)):
            (folder / split / kind).mkdir(parents=True)
            for index in range(each):
                points = generator.uniform(0, 1, (200 + 20 * index, 3)) * stretch + 50
                np.save(folder / split / kind / f"{index}.npy", points)


@pytest.mark.parametrize("normalise", [True, False])
def test_files_are_read_as_the_dataset_was(normalise: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained on imported files, of which nothing is left here: its test files get the trial's own predictions."""
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "data"))
    shapes(tmp_path / "shapes")
    import_folder(tmp_path / "shapes", name="mine", root=data_root(), points=160, normalise=normalise, up="y")
    train = Train(epochs=1, batch_size=4, warmup_epochs=0, learning_rate=1e-3)
    trial = make_trial(dataset=registry.get("datasets", "mine"), data=Data(points=64, sampling="fps"), train=train)
    writer = claim(trial, tmp_path)
    assert run_trial(trial, writer).status == "done"
    stored = stored_clouds(trial)
    clouds_path("mine", data_root()).unlink()
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "nowhere"))

    trained = load_trial(writer.path)
    assert (trained.classes, trained.trial.dataset.up) == (("flat", "long"), "y")
    with pytest.raises(UserError, match="known from an adapter only"):
        trained.trial.dataset.load("test", data_root())
    found = trained.predict_files(sorted((tmp_path / "shapes" / "test").glob("*/*.npy")))
    probabilities = torch.cat([entry.probabilities for entry in found if entry.probabilities is not None])
    assert torch.equal(probabilities, trained.predict(stored))
    assert np.array_equal(probabilities.argmax(1).numpy(), predictions(writer.path))


def ply(points: np.ndarray) -> str:
    header = f"ply\nformat ascii 1.0\nelement vertex {len(points)}\n"
    rows = "".join(f"{x} {y} {z}\n" for x, y, z in points)
    return header + "".join(f"property float {axis}\n" for axis in "xyz") + "end_header\n" + rows


def write_files(folder: Path) -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (3, 300, 3))
    np.save(folder / "three.npy", points)
    (folder / "chair.ply").write_text(ply(points[0]))
    (folder / "[red].ply").write_text(ply(points[1, :200]))
    (folder / "few.ply").write_text(ply(points[0, :127]))
    (folder / "bad.off").write_text("OFF\n9 9 9\n")


def test_files_of_many_sizes_and_some_refused(finish: Finish, tmp_path: Path) -> None:
    write_files(tmp_path)
    trained = load_trial(finish("lora").path)
    names = ["few.ply", "three.npy", "bad.off", "[red].ply", "chair.ply", "missing.ply"]
    found = trained.predict_files([tmp_path / name for name in names])
    assert [entry.path.name for entry in found] == names
    sizes = [None if entry.probabilities is None else tuple(entry.probabilities.shape) for entry in found]
    assert sizes == [None, (3, 12), None, (1, 12), (1, 12), None]
    refused = [entry.refused or "" for entry in found]
    assert refused[0] == "holds 127 points, fewer than the 128 needed" and refused[5] == "no such file"
    assert refused[2].startswith("damaged or no .off file") and not refused[1] + refused[3] + refused[4]
    assert trained.predict_files([]) == []


# As users meet it


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_predict_in_a_process_of_its_own(finish: Finish, tmp_path: Path) -> None:
    write_files(tmp_path)
    finished = finish("lora")
    place = ["--output", str(finished.path.parent.parent)]
    run = ["-c", "from harness.cli import main; main()", "predict", finished.trial.identity]
    done = python(*run, "[red].ply", "three.npy", "few.ply", *place, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr == "refused: few.ply: holds 127 points, fewer than the 128 needed\n"
    assert "[red].ply" in done.stdout and "three.npy[2]" in done.stdout and "lora point_mae" in done.stdout


def test_predict_for_programs(
    finish: Finish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    path = str(finish("lora").path)

    def predict(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["harness", "predict", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code, *capsys.readouterr()

    code, out, _ = predict(path, "chair.ply", "few.ply", "--json", "--top", "2")
    chair, few = json.loads(out)["files"]
    (found,) = load_trial(path).predict_files(["chair.ply"])
    assert found.probabilities is not None
    values, classes = found.probabilities[0].topk(2)
    assert [guess["probability"] for guess in chair["clouds"][0]] == values.tolist()
    assert [guess["class"] for guess in chair["clouds"][0]] == [make_trial().dataset.classes[k] for k in classes]
    assert (code, chair["refused"], few["clouds"], few["file"]) == (1, None, [], "few.ply")
    code, out, _ = predict(path, "three.npy", "--csv", "--top", "99")
    lines = out.splitlines()
    assert (code, lines[0], len(lines)) == (0, "file,cloud,rank,class,probability", 1 + 3 * 12)
    code, out, error = predict(path, "nowhere.ply")
    assert (code, out, error) == (2, "", "error: no file could be read\n- nowhere.ply: no such file\n")
    assert predict(path, "chair.ply", "--json", "--csv")[0] == 2


def test_the_page_runs_as_printed(finish: Finish, tmp_path: Path) -> None:
    """As a script without a main guard, which the processes that read files must not run again."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "use_a_trained_model.md").read_text(), re.DOTALL)
    write_files(tmp_path)
    finished = finish("lora")
    shutil.copytree(finished.path, tmp_path / "results" / "trials" / finished.trial.identity)
    assert '"a212d1"' in code
    (tmp_path / "use.py").write_text(code.replace('"a212d1"', repr(finished.trial.identity[:6])))
    done = python("use.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "refused: few.ply: holds 127 points" in done.stdout
    assert done.stdout.count("chair.ply:") == 1
