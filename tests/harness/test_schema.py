"""The schema that editors use says what the harness says: what it takes, what it refuses, and what is installed."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import PositiveInt

from harness import registry
from harness.errors import SuiteError
from harness.method import Adapted, Method, Task
from harness.models.encoder import Encoder
from harness.pretraining import is_pretraining
from harness.schema import suite_schema
from harness.suite import load_suite, shipped_suites
from harness.suite_file import SECTIONS, SuiteFile

ROOT = Path(__file__).parents[2]
GOOD = """\
format: 1
name: small
seeds: 2
datasets: [sweethome12]
backbones:
  point_mae: {preset: tiny}
methods:
  lora: {rank: 8}
  vpt: {deep: false}
train: {epochs: 2}
references:
  probe: {method: lora}
overrides:
  - when: {method: lora}
    set: {train.epochs: 3}
"""
SET = "train.epochs: 3"
TAKEN = {
    "the good one": ("", ""),
    "no settings": ("lora: {rank: 8}", "lora:"),
    "another label": ("train:", "  wide: {method: lora, rank: 64}\ntrain:"),
    "a label that names another": ("vpt: {deep: false}", "vpt: {method: lora, rank: 64}"),
    "another backbone label": ("point_mae: {preset: tiny}", "small: {backbone: point_mae, preset: tiny}"),
    "its own name": ("{rank: 8}", "{method: lora, rank: 8}"),
    "shipped weights": ("preset: tiny", "preset: tiny, weights: point_mae_tiny_parts"),
    "seeds listed": ("seeds: 2", "seeds: [0, 7]"),
    "number as text": ("epochs: 2}", "epochs: 2, learning_rate: 1e-4, clip_norm: '10'}"),
    "whole number as text": ("epochs: 2}", "epochs: ' 1_0 '}"),
    "yes": ("deep: false", "deep: 'yes'"),
    "time-out": ("train:", "resources: {timeout: 12h}\ntrain:"),
    "time-out in seconds": ("train:", "resources: {timeout: 90.5}\ntrain:"),
    "nothing for a number": ("train:", "data: {points: null}\ntrain:"),
    "baseline": ("{method: lora}\n", "{baseline: nearest_neighbour}\n"),
    "override for all": ("when: {method: lora}\n    set", "set"),
    "override by list": ("{method: lora}\n    set", "{method: [lora, vpt], dataset: [sweethome12]}\n    set"),
    "override of a method": (SET, "method.rank: 16"),
    "override of a backbone": (SET, "backbone.groups: 16, data.points: 256"),
    "override of resources": (SET, "resources.timeout: 2d, protocol.frozen_batchnorm: running"),
    "keep": ("seeds: 2", "seeds: 2\nkeep: none"),
}
REFUSED = {
    "unknown key": ("train:", "trian:"),
    "missing key": ("seeds: 2\n", ""),
    "future format": ("format: 1", "format: 2"),
    "name with slashes": ("name: small", "name: ../small"),
    "wrong type": ("epochs: 2", "epochs: many"),
    "half an epoch": ("epochs: 2", "epochs: 2.5"),
    "half an epoch as text": ("epochs: 2", "epochs: '2.5'"),
    "list for a section": ("train: {epochs: 2}", "train: [epochs]"),
    "nothing for a section": ("train: {epochs: 2}", "train:"),
    "unknown setting": ("epochs: 2", "epoch: 2"),
    "out of range": ("epochs: 2", "epochs: 0"),
    "negative number as text": ("epochs: 2", "learning_rate: -1e-4"),
    "too much": ("epochs: 2", "drop_path: 1"),
    "no such choice": ("epochs: 2", "augment: spin"),
    "neither yes nor no": ("deep: false", "deep: perhaps"),
    "time-out in fortnights": ("train:", "resources: {timeout: 2f}\ntrain:"),
    "unknown dataset": ("[sweethome12]", "[sweethome21]"),
    "dataset twice": ("[sweethome12]", "[sweethome12, sweethome12]"),
    "seed twice": ("seeds: 2", "seeds: [3, 3]"),
    "no seeds": ("seeds: 2", "seeds: []"),
    "no datasets": ("[sweethome12]", "[]"),
    "no methods": ("  lora: {rank: 8}\n  vpt: {deep: false}", "  {}"),
    "unknown method": ("  vpt:", "  vtp:"),
    "unknown method under a label": ("vpt: {deep: false}", "wide: {method: vtp}"),
    "label without method": ("vpt: {deep: false}", "wide:"),
    "unknown setting of a method": ("rank: 8", "rnk: 8"),
    "setting of another method": ("rank: 8", "deep: true"),
    "setting of another method under a label": ("vpt: {deep: false}", "wide: {method: lora, deep: true}"),
    "setting of the method that the label names": ("vpt: {deep: false}", "vpt: {method: lora, deep: true}"),
    "out of range in a method": ("rank: 8", "rank: -8"),
    "unknown choice of a method": ("rank: 8", "targets: [attn.kqv]"),
    "unknown backbone": ("point_mae:", "point_may:"),
    "unknown setting of a backbone": ("preset: tiny", "presets: tiny"),
    "unknown preset": ("preset: tiny", "preset: huge"),
    "unknown weights": ("preset: tiny", "preset: tiny, weights: nope"),
    "method as a name": ("lora: {rank: 8}", "lora: 8"),
    "reference to nothing": ("{method: lora}\nov", "{}\nov"),
    "reference to two": ("{method: lora}\nov", "{method: lora, baseline: nearest_neighbour}\nov"),
    "reference to an unknown baseline": ("{method: lora}\nov", "{baseline: nearest}\nov"),
    "reference to unknown weights": ("{method: lora}\nov", "{method: lora, weights: nope}\nov"),
    "reference with a bad label": ("probe:", "a probe:"),
    "override that changes nothing": (f"{{{SET}}}", "{}"),
    "override of an unknown section": (SET, "training.epochs: 3"),
    "override of an unknown setting": (SET, "train.epoch: 3"),
    "override of no method's setting": (SET, "method.rnk: 3"),
    "override of no backbone's setting": (SET, "backbone.presets: tiny"),
    "override without a section": (SET, "epochs: 3"),
    "override that makes a method another": (SET, "method.method: vpt"),
    "override that makes a backbone another": (SET, "backbone.backbone: point_mae"),
    "override out of range": (SET, "train.epochs: 0"),
    "override of a method out of range": (SET, "method.rank: 0"),
    "override by colour": ("when: {method: lora}", "when: {colour: red}"),
    "override for an unknown dataset": ("when: {method: lora}", "when: {dataset: sweethome21}"),
    "unknown key of an override": ("when: {method: lora}", "whem: {method: lora}"),
    "keep nothing known": ("seeds: 2", "seeds: 2\nkeep: some"),
}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json.loads(json.dumps(suite_schema()))


def refusals(schema: dict[str, Any], text: str) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(yaml.safe_load(text))]


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def test_it_is_a_schema(schema: dict[str, Any]) -> None:
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)
    known = {f"#/$defs/{name}" for name in schema["$defs"]}
    assert set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(schema))) <= known


@pytest.mark.parametrize("case", TAKEN)
def test_what_the_harness_takes_it_takes(case: str, schema: dict[str, Any], tmp_path: Path) -> None:
    text = changed(*TAKEN[case])
    (tmp_path / "suite.yaml").write_text(text)
    assert load_suite(str(tmp_path / "suite.yaml")).trials
    assert refusals(schema, text) == []


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_harness_refuses_by_its_shape_it_refuses(case: str, schema: dict[str, Any], tmp_path: Path) -> None:
    text = changed(*REFUSED[case])
    (tmp_path / "suite.yaml").write_text(text)
    with pytest.raises(SuiteError):
        load_suite(str(tmp_path / "suite.yaml"))
    assert refusals(schema, text)


@pytest.mark.parametrize("name", [name for name in shipped_suites() if not is_pretraining(name)])
def test_shipped_suites(name: str, schema: dict[str, Any]) -> None:
    assert refusals(schema, shipped_suites()[name].read_text()) == []


def test_every_field_that_the_models_have_is_there(schema: dict[str, Any]) -> None:
    assert set(schema["properties"]) == set(SuiteFile.model_fields)
    settable = schema["$defs"]["Override"]["properties"]["set"]["properties"]
    for section, model in SECTIONS.items():
        assert {key for key in settable if key.startswith(f"{section}.")} == {
            f"{section}.{field}" for field in model.model_fields
        }
    assert schema["$defs"]["Train"]["properties"]["batch_size"] | {"pattern": ""} == {
        "default": 32,
        "description": "Global batch size; the last partial batch of an epoch is dropped.",
        "minimum": 2,
        "pattern": "",
        "type": ["integer", "string"],
    }


def test_installed_plugins_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class Train(Method):  # the name of one of our own models
        """A third party's."""

        width: PositiveInt = 3
        odd: object = object()

        def adapt(self, encoder: Encoder, task: Task) -> Adapted:
            return Adapted(encoder)

    names, get = registry.names, registry.get
    monkeypatch.setattr(registry, "names", lambda kind: [*names(kind), *["theirs", "again"] * (kind == "methods")])
    monkeypatch.setattr(registry, "get", lambda kind, name: Train if name in ("theirs", "again") else get(kind, name))
    schema = json.loads(json.dumps(suite_schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    assert refusals(schema, changed("lora: {rank: 8}", "theirs: {width: 4, odd: [1]}")) == []
    assert refusals(schema, changed("lora: {rank: 8}", "mine: {method: again, width: 4}")) == []
    assert refusals(schema, changed("lora: {rank: 8}", "theirs: {width: 0}"))
    assert refusals(schema, changed("lora: {rank: 8}", "theirs: {rank: 8}"))
    assert refusals(schema, changed(SET, "method.width: 4")) == []
    assert refusals(schema, changed("epochs: 2", "width: 2"))


def test_it_is_made_in_no_time() -> None:
    start = time.perf_counter()
    suite_schema()
    assert time.perf_counter() - start < 2


def test_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from harness.cli import main; main()", "schema"]
    shown = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=True)
    assert json.loads(shown.stdout) == json.loads(json.dumps(suite_schema())) and not shown.stderr
    subprocess.run([*command, "-o", "suite.schema.json"], cwd=tmp_path, env=os.environ, check=True, timeout=60)
    assert (tmp_path / "suite.schema.json").read_text() == shown.stdout
