"""`harness doctor`: every finding names what to mend, and is made by doing the thing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness import doctor, machine
from harness.cli import app
from harness.cluster import Cluster, Node
from harness.doctor import Finding, examine
from harness.errors import UserError
from harness.handshake import all_reduce

GIB = 2**30


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the two processes and without a server."""
    monkeypatch.setattr(doctor, "all_reduce", lambda backend: ("", 0.0))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def by(findings: Iterable[Finding], subject: str) -> Finding:
    (found,) = (finding for finding in findings if finding.subject == subject)
    return found


def facts(**changes: Any) -> dict[str, Any]:
    return machine.facts({"folders": {"results": "/tmp"}}) | changes


def test_this_machine_is_fit_and_nothing_is_left_behind(quick: None, tmp_path: Path) -> None:
    output = tmp_path / "not" / "there"
    answer = CliRunner().invoke(app, ["doctor", "--json", "--output", str(output)])
    found = json.loads(answer.stdout)
    assert (answer.exit_code, found["problems"]) == (0, 0), found
    subjects = {finding["subject"] for finding in found["findings"]}
    assert {
        "Python",
        "packages",
        "memory",
        "results folder",
        "data folder",
        "GPUs",
        "torch",
        "gloo",
        "MLflow",
    } <= subjects
    assert list(tmp_path.iterdir()) == []


def test_problems_are_said_with_what_to_do(quick: None, tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    answer = CliRunner().invoke(app, ["doctor", "--output", str(tmp_path / "results")])
    assert answer.exit_code == 1
    assert "problem" in answer.stdout and "mend: choose another --output" in answer.stdout


def test_no_gpu_is_said_plainly() -> None:
    none = doctor._gpus(facts(gpus={"problem": "NVML Shared Library Not Found", "devices": []}), "elsewhere")
    assert none.state == "note" and none.text.startswith("none (NVML: ") and "run on the CPU" in none.text


def test_gpus() -> None:
    device = {"name": "H200", "memory": 140 * GIB, "free": 139 * GIB}
    free = doctor._gpus(facts(gpus={"problem": "", "driver": "580.1", "devices": [device]}), "")
    assert (free.state, free.text) == ("ok", "H200 (139 of 140 GiB free); driver 580.1")
    busy = doctor._gpus(facts(gpus={"problem": "", "driver": "580.1", "devices": [device | {"free": GIB}]}), "")
    assert busy.state == "note" and "not comparable" in busy.mend
    missing = doctor._gpus(facts(gpus={"problem": "the package nvidia-ml-py is missing", "devices": []}), "")
    assert missing.state == "problem"


def test_a_torch_that_cannot_use_the_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("it can here")
    (found,) = doctor._torch(facts(gpus={"problem": "", "driver": "1", "devices": [{"name": "H200"}]}))
    assert found.state == "problem" and "sees no GPU" in found.text


@pytest.mark.parametrize(("free", "state"), [(20 * GIB, "ok"), (5 * GIB, "note"), (GIB // 2, "problem")])
def test_disks(free: int, state: str) -> None:
    folder = {"path": "/r", "exists": True, "problem": "", "free": free}
    assert by(doctor._machine(facts(folders={"results": folder})), "results folder").state == state


def test_a_data_folder_may_be_read_only() -> None:
    folder = {"path": "/d", "exists": True, "problem": "Read-only file system", "free": 20 * GIB}
    assert by(doctor._machine(facts(folders={"data": folder})), "data folder").state == "note"
    assert by(doctor._machine(facts(folders={"results": folder})), "results folder").state == "problem"


def test_little_memory() -> None:
    found = by(doctor._machine(facts(memory={"total": 8 * GIB, "available": GIB})), "memory")
    assert found.state == "note" and found.mend


def test_packages_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["ray[tune]>=2.50", "torch>=99", "nosuchthing>=1", "peft>=0.21; extra == 'dev'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    problems = [finding for finding in doctor._packages() if finding.state == "problem"]
    assert [finding.mend for finding in problems] == ["pip install 'torch>=99'", "pip install 'nosuchthing>=1'"]


def test_a_server_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    found = doctor._mlflow(tmp_path)
    assert (found.state, found.text) == ("problem", "http://127.0.0.1:9 does not answer")
    assert "secret" not in str(found)


@pytest.mark.slow
def test_two_processes_agree() -> None:
    assert all_reduce("gloo")[0] == ""


@pytest.mark.slow
def test_two_processes_that_cannot_meet_are_explained() -> None:
    problem, _ = all_reduce("nosuch")
    assert "nosuch" in problem


# Clusters


def node(host: str, *, driver: bool = False, ahead: float = 0.0, gpus: float = 0.0, **changes: Any) -> Node:
    folder = {"path": "/d", "exists": True, "problem": "", "free": 20 * GIB}
    told = machine.facts({}) | {"folders": {"results": folder, "data": folder}} | changes
    return Node(host, host, 4, gpus, driver=driver, facts=told, ahead=ahead, error=0.01)


def test_nodes_are_looked_at() -> None:
    here = machine.facts({})
    packages = here["packages"] | {"torch": "1.0"}
    second = node("b", ahead=5.0, gpus=2.0, results="No such file or directory", packages=packages)
    found = list(doctor._nodes(Cluster("a:1", (node("a", driver=True), second), here=here)))
    first = [finding for finding in found if finding.host == "a"]
    assert [finding.state for finding in first] == ["ok", "ok"]
    states = {finding.subject: finding for finding in found if finding.host == "b" and finding.subject != "GPUs"}
    assert states["clock"].state == "problem" and "+5.0 s" in states["clock"].text
    assert states["shared storage"].state == "note" and "travel" in states["shared storage"].text
    assert states["packages"].text == "others than here: torch 1.0"
    assert any("Ray offers 2, NVML finds" in finding.text for finding in found)


def test_a_cluster_of_other_versions(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster("a:1", (node("a", driver=True), node("b", python="3.12.0")), here=machine.facts({}))
    cluster = replace(cluster, nodes=(*cluster.nodes, replace(node("c"), facts=None)))
    monkeypatch.setattr(doctor, "look", lambda *_: cluster)
    found = [finding for finding in examine(output=tmp_path, address="auto") if finding.state == "problem"]
    assert [finding.text.partition(":")[0] for finding in found] == ["b", "c"]


def test_a_cluster_that_does_not_answer(quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Cluster:
        raise UserError("nothing listens")

    monkeypatch.setattr(doctor, "look", refuse)
    answer = CliRunner().invoke(app, ["doctor", "--address", "a:1", "--output", str(tmp_path)])
    assert answer.exit_code == 1 and "cluster: nothing listens" in answer.stdout


def test_help_is_light() -> None:
    code = "import sys, harness.cli.doctor; sys.exit({'torch', 'ray', 'mlflow'} & set(sys.modules) != set())"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
