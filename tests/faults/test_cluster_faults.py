"""Two nodes of a Ray cluster on one machine, and faults made for real.

The second node calls itself another host, so that its processes are judged as those of one, and shares the results
folder or does not see it.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.faults]
TOKEN = "0" * 64
SECOND = "second-host"


COVER = f'''echo {SECOND} > /proc/sys/kernel/hostname || exit 1
if [ -n "$0" ]; then mount -t tmpfs tmpfs "$0" || exit 1; fi
exec "$@"'''
"""Gives a command another host name, and lays an empty file system over a folder."""


UNDISTURBED: dict[str, Any] = {}
"""Results of the suite of `test_a_node_dies` without a fault, by identity: run once for all its faults."""


class TwoNodes:
    """A head and a second node, one CPU each, started with `ray start`; that one does not see the folder `hidden`."""

    def __init__(self, scene: Any, folder: Path, *, hidden: Path | None) -> None:
        self.scene, self.shares = scene, hidden is None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        name, _, mark = scene.mark.partition("=")
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
        }
        self.mark = {name: mark}
        port = self.address.rpartition(":")[2]
        self.logs = folder
        ray = Path("/tmp") / f"hr{os.getpid()}"  # sockets' paths must be short
        self.temporary = ray
        self.head = self._start("head", "--head", "--port", port, "--include-dashboard=false", "--temp-dir", str(ray))
        as_second = ["unshare", "--uts", "--mount", "--propagation", "private", "sh", "-c", COVER, str(hidden or "")]
        self.second = self._start("second", "--address", self.address, wrapped=as_second)

    def _start(self, name: str, *arguments: str, wrapped: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """`ray start`, by way of the command `wrapped`."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus", "1", *arguments]
        command = [*wrapped, *command, "--disable-usage-stats", "--object-store-memory", "80000000"]
        log = self.logs / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=file,
                env=os.environ | self.environment | self.mark,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        return process

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process: subprocess.Popen[str] = self.scene.start("--address", self.address, *arguments, **self.environment)
        return process

    def kill_second(self) -> None:
        """kill -9 of the second node: its `ray start`, its raylet and all that these started, all at once."""
        victims = [*psutil.Process(self.second.pid).children(recursive=True), psutil.Process(self.second.pid)]
        for victim in victims:
            victim.send_signal(signal.SIGKILL)

    def kill_raylet(self) -> None:
        """kill -9 of the second node's raylet, and of nothing else."""
        children = psutil.Process(self.second.pid).children(recursive=True)
        (raylet,) = (child for child in children if child.name() == "raylet")
        raylet.send_signal(signal.SIGKILL)

    def trial_of_second(self) -> dict[str, Any]:
        """The lease of a trial in mid-training that the second node holds, or the keeper for it."""
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            for lease in self.scene.leases():
                if self._of_second(lease) and 2 <= lease["done"] < lease["epochs"] - 3:
                    found: dict[str, Any] = lease
                    return found
            time.sleep(0.05)
        raise AssertionError("no trial ran on the second node")

    def _of_second(self, lease: dict[str, Any]) -> bool:
        if self.shares:
            return bool(lease["host"] == SECOND)
        try:
            return "Host" in " ".join(psutil.Process(lease["pid"]).cmdline())
        except psutil.Error:
            return False


@pytest.fixture
def hidden(tmp_path: Path) -> Path:
    """A folder for results that the second node does not see."""
    folder = tmp_path / "hidden"
    folder.mkdir()
    can = ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    if shutil.which("unshare") is None or subprocess.run(can, capture_output=True).returncode != 0:
        pytest.skip("a folder can only be hidden from a node by root")
    return folder


@pytest.fixture(params=["shares the folder", "has a folder of its own"])
def cluster(request: pytest.FixtureRequest, scene: Any, tmp_path: Path, hidden: Path) -> Iterator[TwoNodes]:
    shares = request.param == "shares the folder"
    scene.output = (tmp_path if shares else hidden) / "results"
    made = TwoNodes(scene, tmp_path, hidden=None if shares else hidden)
    yield made
    for process in scene.processes():
        process.kill()
    shutil.rmtree(made.temporary, ignore_errors=True)


@pytest.mark.parametrize("victim", ["node", "raylet"])
def test_a_node_dies(victim: str, scene: Any, cluster: TwoNodes) -> None:
    """Its trial goes on elsewhere, from its checkpoint, to the same end; what was finished is not run again."""
    scene.write(
        (scene.folder / "suite.yaml").read_text().replace("train.epochs: 20", "train.epochs: 60").replace("60s", "600s")
    )
    code, summary, err = scene.end(cluster.start("--only", "method=linear_probe"))
    assert (code, summary.get("done")) == (0, 2), err
    assert ("without this results folder" in err) is not cluster.shares
    scene.remember_finished()
    process = cluster.start()
    lease = cluster.trial_of_second()
    {"node": cluster.kill_second, "raylet": cluster.kill_raylet}[victim]()
    killed = time.monotonic()
    code, summary, err = scene.end(process, patience=900)
    assert (code, summary["done"]) == (0, 4), err
    suffered = scene.results()[lease["folder"].name]
    assert [attempt["status"] for attempt in suffered["attempts"]] == ["lost", "done"]
    assert suffered["attempts"][1]["resumed"] >= 1
    print(f"resumed from epoch {suffered['attempts'][1]['resumed']}, killed after {lease['done']}")
    print(f"all done {time.monotonic() - killed:.0f} s after the fault")
    scene.assert_complete()
    if not UNDISTURBED:
        UNDISTURBED.update(scene.undisturbed("--only", "method=lora"))
    undisturbed = UNDISTURBED[suffered["id"]]
    assert (suffered["metrics"], suffered["digests"]) == (undisturbed["metrics"], undisturbed["digests"])


def put_back(away: Path, place: Path) -> None:
    """As a mount does: at once, over whatever trials make there meanwhile, which nobody sees any more.

    That may be whole results: a trial whose folder has gone begins anew in another one.
    """
    for remade in range(100):
        if place.exists():
            place.rename(away.with_name(f"remade{remade}"))
        try:
            away.rename(place)
        except OSError as error:
            assert error.errno in (errno.ENOTEMPTY, errno.EEXIST), error  # a trial was quicker
        else:
            return
    raise AssertionError(f"{place} is made anew every time")


def test_the_shared_folder_is_away_for_a_while(scene: Any, tmp_path: Path) -> None:
    """The run stops with the reason, or waits; after the folder is back the same command ends with all done."""
    scene.finish_some()
    process = scene.start()
    scene.trains(driver=process)
    away = scene.output.with_name("away")
    scene.output.rename(away)
    time.sleep(5)
    put_back(away, scene.output)
    code, _, err = scene.end(process)
    print(f"exit code {code}, {err.splitlines()[-1:]}")
    scene.assert_untouched()
    code, summary, err = scene.run()
    assert (code, summary["done"]) == (0, 4), err
    scene.assert_complete()
