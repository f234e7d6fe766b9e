"""MLflow as a server with a database behind it: real servers on this machine, and several runs that start at once."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import doctor, mlflow_runs
from harness.errors import UserError
from harness.result import Metrics, Result
from harness.store import Store
from harness.tracking import sync

pytestmark = pytest.mark.slow
USER, PASSWORD = "reader", "a long password 123"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Server:
    """`mlflow server` on a free port of the loopback."""

    def __init__(self, folder: Path, database: str, *options: str, **environment: str) -> None:
        self.uri = f"http://127.0.0.1:{free_port()}"
        self.log = folder / "server.log"
        artifacts = ["--artifacts-destination", str(folder / "artifacts")]
        where = ["--host", "127.0.0.1", "--port", self.uri.rpartition(":")[2], "--workers", "1"]
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, *artifacts, *where]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *options],
                stdout=log,
                stderr=log,
                env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"} | environment,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        import psutil

        for process in (*psutil.Process(self.process.pid).children(recursive=True), self.process):
            process.kill()
        self.process.wait()


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that shares two cores with its clients may take its time."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A database of a PostgreSQL server of our own, on a free port of the loopback."""
    binaries = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
    if binaries is None or importlib.util.find_spec("psycopg2") is None:
        pytest.skip("needs PostgreSQL's server (apt install postgresql) and psycopg2 (pip install psycopg2-binary)")
    folder = Path(tempfile.mkdtemp(prefix="harness-pg-"))
    user: dict[str, Any] = {}
    if os.getuid() == 0:  # PostgreSQL does not run as root
        account = pwd.getpwnam("postgres")
        os.chown(folder, account.pw_uid, account.pw_gid)
        user = {"user": account.pw_uid, "group": account.pw_gid, "cwd": "/"}
    data, port = str(folder / "data"), str(free_port())
    subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "harness", "-A", "trust"], check=True, capture_output=True, **user
    )
    options = ["-p", port, "-h", "127.0.0.1", "-k", str(folder), "-c", "fsync=off"]
    server = subprocess.Popen(
        [binaries / "postgres", "-D", data, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user
    )
    for _ in range(300):
        ready = [binaries / "pg_isready", "-h", "127.0.0.1", "-p", port, "-q"]
        if subprocess.run(ready, check=False).returncode == 0:
            break
        time.sleep(0.1)
    create = [binaries / "createdb", "-h", "127.0.0.1", "-p", port, "-U", "harness", "mlflow"]
    subprocess.run(create, check=True, capture_output=True)
    yield f"postgresql+psycopg2://harness@127.0.0.1:{port}/mlflow"
    server.terminate()
    server.wait()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    sqlite = f"sqlite:///{folder / 'server.db'}"
    database = sqlite if request.param == "sqlite" else request.getfixturevalue("postgres")
    made = Server(folder, database)
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in mlflow_runs.QUIET.items():
        monkeypatch.setenv(key, value)


def output(folder: Path, suite: str, identities: list[str]) -> Store:
    """Finished trials of a suite, each with a log and an adapter."""
    store = Store(folder)
    store.prepare()
    labels = {"method": "lora", "backbone": "point_mae", "dataset": "sweethome12", "reference": False}
    rows = [labels | {"id": identity, "seed": seed} for seed, identity in enumerate(identities)]
    store.write_suite(name=suite, description="", digest="d", text="format: 1\n", trials=rows)
    for identity in identities:
        writer = store.trial(identity).claim({"a": 1})
        writer.log_metrics({"epoch": 0, "train/loss": 1.0})
        writer.write_file("log.txt", "log")
        writer.write_file(Path("adapter") / "adapter_model.safetensors", b"weights")
        result = Result(id=identity, spec={"long": "x" * 7000}, status="done", metrics=Metrics(accuracy=0.5))
        writer.finish(result)
    return store


def identities(letter: str) -> list[str]:
    return [f"{letter * 15}{index}" for index in range(4)]


def test_runs_that_start_at_once_on_several_machines(server: Server, tmp_path: Path) -> None:
    """Four output folders share no lock; all want an experiment of the same name that is not there yet."""
    letters = "abcd"
    stores = [output(tmp_path / letter, "together", identities(letter)) for letter in letters]
    code = "import sys; from pathlib import Path; from harness.store import Store; from harness.tracking import sync\n"
    code += "sync(store=Store(Path(sys.argv[1])), suite='together', uri=sys.argv[2])"
    ran = [
        subprocess.Popen([sys.executable, "-c", code, str(store.output), server.uri], stderr=subprocess.PIPE, text=True)
        for store in stores
    ]
    for process in ran:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
    client = mlflow_runs.connect(server.uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "together"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    shown = sorted(run.data.tags["harness.trial"] for run in runs if "harness.trial" in run.data.tags)
    assert shown == sorted(identity for letter in letters for identity in identities(letter))
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_artifacts_are_optional(server: Server, tmp_path: Path) -> None:
    store = output(tmp_path, "bare", identities("e"))
    assert sync(store=store, suite="bare", uri=server.uri, files=False).updated == 4
    client = mlflow_runs.connect(server.uri)
    experiment = client.get_experiment_by_name("bare").experiment_id

    def files() -> list[list[str]]:
        runs = client.search_runs([experiment], max_results=100)
        trials = [run for run in runs if "harness.trial" in run.data.tags]
        assert all(run.data.metrics["metrics/accuracy"] == 0.5 for run in trials)
        return [[file.path for file in client.list_artifacts(run.info.run_id)] for run in trials]

    assert files() == [[]] * 4
    assert sync(store=store, suite="bare", uri=server.uri, files=False).updated == 0
    assert sync(store=store, suite="bare", uri=server.uri).updated == 4, "asked for later, they are added"
    assert all({"adapter", "log.txt", "result.json"} <= set(found) for found in files())
    assert sync(store=store, suite="bare", uri=server.uri, files=False).updated == 0, "and stay"


def test_the_doctor_asks_the_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    found = doctor._mlflow(tmp_path)
    assert found.state == "ok" and "answers" in found.text


@pytest.mark.skipif(importlib.util.find_spec("flask_wtf") is None, reason="needs `pip install mlflow[auth]`")
def test_a_server_that_asks_who_you_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "auth.ini"
    database = f"sqlite:///{tmp_path / 'users.db'}"
    lines = ["[mlflow]", "default_permission = EDIT", f"database_uri = {database}"]
    lines += [f"admin_username = {USER}", f"admin_password = {PASSWORD}"]
    lines += ["authorization_function = mlflow.server.auth:authenticate_request_basic_auth"]
    settings.write_text("\n".join(lines))
    secret = {"MLFLOW_FLASK_SERVER_SECRET_KEY": "x" * 32, "MLFLOW_AUTH_CONFIG_PATH": str(settings)}
    server = Server(tmp_path, f"sqlite:///{tmp_path / 'server.db'}", "--app-name", "basic-auth", **secret)
    try:
        store = output(tmp_path / "results", "asked", identities("f"))
        with pytest.raises(UserError, match="MLFLOW_TRACKING_USERNAME"):
            sync(store=store, suite="asked", uri=server.uri)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        assert sync(store=store, suite="asked", uri=server.uri).done == 4
    finally:
        server.stop()
