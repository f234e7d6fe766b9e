"""The same model for others: HF peft's files, and plain weights."""

import json
import sys
from pathlib import Path

import pytest
import torch

from harness import load_exported, load_trial
from harness.cli import main
from harness.errors import UserError
from harness.export import export
from harness.models.encoder import PlainEncoder
from harness.models.weights import load_weights
from harness.trial_folder import ADAPTER
from tests.harness.trained.finished import WEIGHTS_NAME, Finish, logits, on


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
