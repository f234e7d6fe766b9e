"""Joining a cluster: what is refused and how, what nodes are asked, and trials that travel; without Ray."""

from __future__ import annotations

import fcntl
import json
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from harness import cluster, machine, worker
from harness.cluster import Cluster, Node, fits
from harness.errors import UserError
from harness.launch import Errand, trial_environment
from harness.result import Metrics, Result
from harness.schedule import slots_of
from harness.shared import marked
from harness.store import Store
from harness.travel import Guests, Keeper, Parcel, pack, unpack
from harness.trial_folder import CannotWrite, LeaseLost, TrialFolder

TEMPLATES = Path(__file__).parents[2] / "docs" / "cluster"


@cache
def here() -> dict[str, Any]:
    return machine.facts({})


def node(host: str = "a", *, cpus: float = 8, gpus: float = 0, **facts: Any) -> Node:
    return Node(host, host, cpus, gpus, driver=False, facts=here() | facts)


def cluster_of(*nodes: Node) -> Cluster:
    return Cluster("10.0.0.1:6379", nodes, here=here())


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


# Addresses


@pytest.mark.parametrize("address", ["nonsense", "host", "host:", "host:0", "host:99999", "ray://host:10001", "a b:1"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UserError, match="write auto, or HOST:PORT"):
        cluster.look(address, {})


def test_nothing_listens() -> None:
    with pytest.raises(UserError, match="Connection refused"):
        cluster.look(f"127.0.0.1:{closed_port()}", {})


def test_the_command_says_so_in_one_line(tmp_path: Path) -> None:
    code = "from harness.cli import main; main()"
    address = f"127.0.0.1:{closed_port()}"
    arguments = ["run", "quickstart", "--only", "seed=0", "--output", str(tmp_path / "results"), "--address", address]
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr.splitlines() == [
        f"error: --address {address}: no Ray cluster that this process may join: Connection refused"
    ]
    assert not list((tmp_path / "results").glob(".*")), "the mark is gone"


def test_something_else_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and says nothing: the process that asks is given up."""
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", -28.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        with pytest.raises(UserError, match="did not answer in time"):
            cluster.look(f"127.0.0.1:{server.getsockname()[1]}", {})
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Unauthenticated: RPC error: InvalidAuthToken: missing", "RAY_AUTH_TOKEN"),
        (
            "RuntimeError: Version mismatch: The cluster was started with:\n    Ray: 2.50.0\n    Python: 3.12.1\n"
            "This process on node 10.0.0.1 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n",
            "Ray 2.50.0, Python 3.12.1, Ray 2.60.0, Python 3.11.7",
        ),
        ("ValueError: Can't find a `node_ip_address.json` file", "no node of it"),
        ("SomeError: of another kind", "SomeError: of another kind"),
    ],
)
def test_what_ray_says_becomes_what_to_mend(said: str, told: str) -> None:
    assert told in cluster._reason(said)


# Nodes


def test_equal_nodes_can_run_trials() -> None:
    assert cluster_of(node("a"), node("b")).differences() == []


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"python": "3.12.0"}, "b: Python 3.12.0, here 3.11"),
        ({"harness": None}, "b: the harness is not installed"),
        ({"harness": "9.9"}, "b: the harness 9.9, here 0.1.0"),
        ({"code": "0" * 12}, "b: the harness's source is another one than here"),
        ({"packages": {"ray": "2.50.0"}}, "b: ray 2.50.0, here 2."),
        ({"plugins": {}}, "b: pointpeft-harness is missing, here 0.1.0"),
        ({"plugins": machine.plugins() | {"theirs": "3"}}, "b: theirs 3, here missing"),
    ],
)
def test_unlike_nodes_are_named(facts: dict[str, Any], told: str) -> None:
    (found,) = cluster_of(node("a"), node("b", **facts)).differences()
    assert found.startswith(told)


def test_all_that_is_wrong_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = (node("a", python="3.12.0"), replace(node("b"), facts=None))
    monkeypatch.setattr(cluster, "look", lambda *_: cluster_of(*nodes))
    with pytest.raises(UserError) as caught:
        cluster.join("auto", {})
    assert len([line for line in str(caught.value).splitlines() if line.startswith("- ")]) == 2
    nodes = (node("a"), node("b", missing=["dataset 'x' is not there"]))
    with pytest.raises(UserError, match="b: dataset 'x' is not there"):
        cluster.join("auto", {"data": "/data"})


def test_a_node_that_dies_between_two_questions_gave_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray.exceptions import ActorDiedError, RayError

    def get(call: str, timeout: float | None = None) -> Any:
        if call == "clock":
            raise gone
        return {"host": "a"}

    def remote(function: Any) -> Any:
        asked = SimpleNamespace(remote=lambda *_: function.__name__)
        return SimpleNamespace(options=lambda **_: asked)

    gone = ActorDiedError()
    assert isinstance(gone, RayError)
    node = {"NodeID": "0" * 56, "NodeManagerHostname": "a", "Alive": True, "Resources": {"CPU": 2.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "wait", lambda calls, **_: (calls, []))
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "n"))
    (found,) = cluster._ask({})
    assert found["facts"] is None and (found["ahead"], found["error"]) == (0.0, 0.0)


def test_facts_are_json_and_need_nothing_of_the_harness() -> None:
    facts = machine.facts({"folders": {"results": "/"}})
    assert json.loads(json.dumps(facts)) == facts
    code = "import sys; sys.modules['harness.errors'] = None; import harness.machine"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_data_is_said_by_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_DATA", "to be restored")
    question = {"data": str(tmp_path), "datasets": ["sweethome12", "modelnet40"], "weights": []}
    (sentence,) = machine.missing(question)
    assert "modelnet40" in sentence
    (problem,) = machine.missing(question | {"datasets": ["nosuch"]})
    assert "nosuch" in problem


def test_slots() -> None:
    small = {"CPU": 1.0}
    assert fits({"CPU": 2.0, "GPU": 1.0}, cpus=8, gpus=3) == 3
    two = cluster_of(node("a", cpus=8, gpus=2), node("b", cpus=4))
    assert two.slots(small) == 12
    assert slots_of([small, {"CPU": 1.0, "GPU": 1.0}], two) == 12
    with pytest.raises(UserError, match="needs 1 CPU, 4 GPU on one node"):
        slots_of([small, {"CPU": 1.0, "GPU": 4.0}], two)


# GPUs


def test_a_trial_without_gpus_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    environment = trial_environment(threads=1, gpus="", data=Path("/data"))
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["ACCELERATE_USE_CPU"] == "true"
    assert trial_environment(threads=1, gpus="2", data=Path("/data"))["CUDA_VISIBLE_DEVICES"] == "2"


@pytest.mark.parametrize(("reserved", "seen"), [({"CPU": 1.0}, ""), ({"CPU": 1.0, "GPU": 1.0}, "2")])
def test_a_slot_hands_on_only_reserved_gpus(
    reserved: dict[str, float], seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray 2.60 leaves CUDA_VISIBLE_DEVICES as it is for what reserves no GPU."""
    import ray
    from ray import tune

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    told: list[str] = []
    launcher = SimpleNamespace(run=SimpleNamespace(remote=lambda errand, *, gpus, **_: told.append(gpus)))
    monkeypatch.setattr(ray, "get_actor", lambda name: launcher)
    monkeypatch.setattr(ray, "get", lambda call: "")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "n"))
    resources = SimpleNamespace(bundles=[reserved])
    monkeypatch.setattr(tune, "get_context", lambda: SimpleNamespace(get_trial_resources=lambda: resources))
    monkeypatch.setattr(tune, "report", lambda result: None)
    where = {"generation": 0, "output": Path("/o"), "data": Path("/d"), "git": None}
    worker.work({"index": 0}, errands=["errand"], **where)  # type: ignore[list-item, arg-type]
    assert told == [seen]


# The shared folder


def test_who_shares_a_folder(tmp_path: Path) -> None:
    (tmp_path / ".shared-left").write_text("by a run that was killed")
    with marked(tmp_path) as mark, marked(tmp_path) as second:
        assert mark.here() and second.here()
        assert machine.sees(str(tmp_path / "elsewhere" / mark.path.name), mark.content) == "No such file or directory"
        assert machine.sees(str(mark.path), "other") == "another folder of the same path"
    assert not list(tmp_path.iterdir())
    mark.path.write_text(mark.content)
    assert "does not share locks" in machine.sees(str(mark.path), mark.content)


def test_a_folder_that_takes_no_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written or locked"), marked(tmp_path / "file"):
        pass


# Trials that travel


def elsewhere(folder: Path) -> TrialFolder:
    """A trial that has run two of three epochs in a folder of its node."""
    found = Store(folder).trial("abc")
    writer = found.claim({"a": 1}, earlier=[{"attempt": 1, "status": "lost"}])
    writer.begin(epochs=3, resumed=None)
    for epoch in (0, 1):
        writer.log_metrics({"epoch": epoch})
    writer.write_file("checkpoint.safetensors", b"two epochs")
    writer.write_file("log.txt", "log")
    writer.progress(2)
    return found


def test_what_is_new_travels_once(tmp_path: Path) -> None:
    away, sent = elsewhere(tmp_path / "away"), {}  # type: ignore[var-annotated]
    first = pack(away, sent, whole=False)
    assert set(first.files) == {"log.txt", "metrics.jsonl", "checkpoint.safetensors"}
    assert (first.done, first.epochs) == (2, 3)
    (away.path / "log.txt").write_text("a longer log")
    assert set(pack(away, sent, whole=False).files) == {"log.txt"}


def test_a_trial_comes_home(tmp_path: Path) -> None:
    away, home = elsewhere(tmp_path / "away"), Store(tmp_path / "home").trial("abc")
    sent: dict[str, tuple[int, int, int]] = {}
    writer = home.claim({"a": 1})
    unpack(pack(away, sent, whole=False), writer)
    lease = home.lease()
    assert lease is not None and (lease.done, lease.epochs) == (2, 3)
    assert (home.path / "checkpoint.safetensors").read_bytes() == b"two epochs"
    lease = away.lease()
    assert lease is not None and lease.attempt == 2
    (away.path / "checkpoint.safetensors").unlink()
    (away.path / "adapter").mkdir()
    (away.path / "adapter" / "head.safetensors").write_bytes(b"head")
    result = Result(id="abc", spec={"a": 1}, status="done", metrics=Metrics(accuracy=0.5))
    (away.path / "result.json").write_text(result.model_dump_json())
    unpack(pack(away, sent, whole=True), writer)
    found = home.result()
    assert found is not None and found.metrics.accuracy == 0.5
    assert [attempt["status"] for attempt in found.attempts] == ["done"]
    assert home.lease() is None
    assert not (home.path / "checkpoint.safetensors").exists()
    assert (home.path / "adapter" / "head.safetensors").read_bytes() == b"head"
    assert len(home.metrics()) == 2


def test_a_keeper_that_lost_the_lease_writes_nothing(tmp_path: Path) -> None:
    away, home = elsewhere(tmp_path / "away"), Store(tmp_path / "home").trial("abc")
    writer = home.claim({"a": 1})
    (home.path / "running.json").unlink()
    parcel = pack(away, {}, whole=False)
    with pytest.raises(LeaseLost):
        unpack(parcel, writer)
    assert not (home.path / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    "name",
    [
        "running.json",
        "./running.json",
        "spec.json",
        "replaced.json",
        ".lock",
        "adapter/.x",
        "../x",
        "/x",
        ".",
        "",
        "a//b",
    ],
)
def test_a_node_writes_over_nothing_that_stays(name: str, tmp_path: Path) -> None:
    home = Store(tmp_path).trial("abc")
    writer = home.claim({})
    before = {path.name: path.read_bytes() for path in home.path.iterdir()}
    with pytest.raises(CannotWrite, match="no name of a file that travels"):
        unpack(Parcel(files={name: b"{}"}), writer)
    assert {path.name: path.read_bytes() for path in home.path.iterdir()} == before


def test_a_dismissed_trial_ends_with_its_next_write(tmp_path: Path) -> None:
    guests = Guests()
    away = elsewhere(tmp_path)
    lease = away.lease()
    assert lease is not None
    guests.folders["abc"] = (away, {})
    assert guests.look("abc") is not None and guests.look("other") is None
    guests.dismiss("abc")
    guests.dismiss("other")
    from harness.trial_folder import TrialWriter

    with pytest.raises(LeaseLost):
        TrialWriter(away, lease.token).progress(3)


def test_a_node_that_lost_the_folder_gives_the_trial_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the checkpoint that travelled before."""
    import ray

    monkeypatch.setattr(ray, "wait", lambda calls, timeout: (calls, []))
    monkeypatch.setattr(ray, "get", lambda call: call)
    home = Store(tmp_path).trial("abc")
    writer = home.claim({})
    writer.write_file("checkpoint.safetensors", b"two epochs")
    launcher = SimpleNamespace(visit=SimpleNamespace(remote=lambda *_, **__: Parcel()))
    errand = Errand("abc", {}, "part segmentation", timeout=1.0, threads=1, processes=1, packed=b"")
    Keeper()._attempt(errand, writer, launcher)
    found = home.result()
    assert found is not None and found.status == "lost" and home.lease() is None
    assert found.task == "part segmentation"
    assert (home.path / "checkpoint.safetensors").exists()


# Templates


@pytest.mark.parametrize("name", ["ray_by_hand.sh", "slurm.sbatch"])
def test_templates_are_shell(name: str) -> None:
    subprocess.run(["bash", "-n", str(TEMPLATES / name)], check=True)
    text = (TEMPLATES / name).read_text()
    assert "RAY_AUTH_MODE=token" in text and "umask 077" in text
    assert "set -euo pipefail" in text


def test_the_slurm_script_asks_for_what_it_uses() -> None:
    text = (TEMPLATES / "slurm.sbatch").read_text()
    asked = dict(line[10:].split("=", 1) for line in text.splitlines() if line.startswith("#SBATCH --") and "=" in line)
    assert asked["ntasks-per-node"] == "1"
    assert asked["signal"].startswith("B:TERM@")
    assert "#SBATCH --requeue" in text
    assert 'harness run "$SUITE" --address' in text


def test_by_hand_refuses_without_a_token(tmp_path: Path) -> None:
    script = [str(TEMPLATES / "ray_by_hand.sh"), "worker", "10.0.0.1"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    ran = subprocess.run(["bash", *script], capture_output=True, text=True, env=environment)
    assert ran.returncode == 2 and "copy" in ran.stderr


def test_the_rayjob_is_whole() -> None:
    job = yaml.safe_load((TEMPLATES / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert "--address auto" in job["spec"]["entrypoint"]
    spec = job["spec"]["rayClusterSpec"]
    assert spec["authOptions"]["mode"] == "token"
    head, (group,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head["rayStartParams"]["num-gpus"] == "0"
    for part in (head, group):
        pod = part["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert container["image"] == head["template"]["spec"]["containers"][0]["image"]
            assert "HARNESS_DATA" in {variable["name"] for variable in container["env"]}
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_locks_are_between_processes(tmp_path: Path) -> None:
    """What `shared` builds on: a lock that is held elsewhere is not had here."""
    with marked(tmp_path) as mark, mark.path.open("r+") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
