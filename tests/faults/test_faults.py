"""Faults, made for real. After each: what was finished is untouched, the rest completes, MLflow has each trial once.

docs/reliability.md is the table of these.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.faults.conftest import SUITE

pytestmark = [pytest.mark.slow, pytest.mark.faults]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


RAYS_HELPERS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""They hold nothing of ours. When their raylet is killed they try for 60 s to tell Ray's control store, dead too."""


def gone_after(scene: Any, seconds: float, *, helpers: float = 90) -> float:
    """Seconds until no process of the run is left but Ray's helpers, which get `helpers` seconds; fails after that."""
    began = time.monotonic()
    ours = None
    while left := scene.processes():
        names = [name_of(process) for process in left]
        if ours is None and set(names) <= set(RAYS_HELPERS):
            ours = time.monotonic() - began
        limit = seconds if ours is None else helpers
        assert time.monotonic() - began < limit, names
        time.sleep(0.05)
    return ours if ours is not None else time.monotonic() - began


def name_of(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:  # it has just ended
        return RAYS_HELPERS[0]


def test_a_killed_trial_goes_on_in_its_actor(scene: Any) -> None:
    scene.finish_some()
    process = scene.start()
    kill(scene.trains(driver=process)["pid"])
    code, summary, err = scene.end(process)
    assert (code, summary["done"]) == (0, 4), err
    attempts = sorted([attempt["status"] for attempt in result["attempts"]] for result in scene.results().values())
    assert attempts == [["done"]] * 3 + [["lost", "done"]]
    (second,) = (r["attempts"][1] for r in scene.results().values() if len(r["attempts"]) == 2)
    assert second["resumed"] >= 1, "and from its checkpoint"
    scene.assert_complete()


def test_a_killed_process_of_several_ends_the_attempt(scene: Any) -> None:
    """Not the first one, which holds the lease: the others would wait for it for ever."""
    scene.write(SUITE.replace("timeout: 60s", "processes: 2, timeout: 120s"))
    scene.finish_some()
    process = scene.start()
    first = psutil.Process(scene.trains(driver=process)["pid"])
    (other,) = (sibling for sibling in first.parent().children() if sibling.pid != first.pid)
    kill(other.pid)
    code, summary, err = scene.end(process)
    assert (code, summary["done"]) == (0, 4), err
    (attempts,) = (r["attempts"] for r in scene.results().values() if len(r["attempts"]) == 2)
    assert [attempt["status"] for attempt in attempts] == ["lost", "done"] and attempts[1]["resumed"] >= 1
    scene.assert_complete()


def test_a_trial_that_always_dies_is_given_up(scene: Any) -> None:
    scene.finish_some()
    process = scene.start("--only", "method=lora", "--only", "seed=0")
    killed: list[int] = []
    while process.poll() is None:
        for lease in scene.leases():
            if lease["epochs"] and lease["pid"] not in killed and not killed.append(lease["pid"]):
                kill(lease["pid"])
        time.sleep(0.02)
    code, _, err = scene.end(process)
    assert code == 1, err
    assert len(killed) == 3
    (result,) = (r for r in scene.results().values() if r["status"] != "done")
    assert [attempt["status"] for attempt in result["attempts"]] == ["lost"] * 3
    code, _, err = scene.run()
    assert code == 0, err
    scene.assert_complete()


def test_a_killed_actor_goes_on_in_a_further_round(scene: Any) -> None:
    scene.finish_some()
    process = scene.start()
    lease = scene.trains(driver=process)
    actor = next(p for p in scene.processes() if "ray::" in " ".join(p.cmdline()) and is_ancestor(p.pid, lease["pid"]))
    kill(actor.pid)
    code, summary, err = scene.end(process)
    assert (code, summary["done"]) == (0, 4), err
    assert ["lost", "done"] in [[a["status"] for a in r["attempts"]] for r in scene.results().values()]
    scene.assert_complete()


def is_ancestor(pid: int, child: int) -> bool:
    import psutil

    try:
        return pid in [parent.pid for parent in psutil.Process(child).parents()]
    except psutil.Error:
        return False


def test_a_killed_driver_takes_everything_along(scene: Any) -> None:
    scene.finish_some()
    process = scene.start()
    scene.trains(driver=process)
    kill(process.pid)
    process.communicate()
    print(f"gone after {gone_after(scene, 5):.1f} s")
    code, summary, err = scene.run()
    assert (code, summary["done"]) == (0, 4), err
    scene.assert_complete()


def test_a_killed_tree_goes_on(scene: Any) -> None:
    scene.finish_some()
    process = scene.start()
    scene.trains(driver=process)
    for victim in scene.processes():
        kill(victim.pid)
    process.communicate()
    gone_after(scene, 5)
    code, summary, err = scene.run()
    assert (code, summary["done"]) == (0, 4), err
    scene.assert_complete()
    assert ["lost", "done"] in [[a["status"] for a in r["attempts"]] for r in scene.results().values()]


def press_ctrl_c(process: subprocess.Popen[str]) -> None:
    """A terminal sends SIGINT to every process of the group."""
    os.killpg(process.pid, signal.SIGINT)


def test_ctrl_c_stops_cleanly(scene: Any) -> None:
    scene.finish_some()
    process = scene.start()
    scene.trains(driver=process)
    press_ctrl_c(process)
    code, summary, err = scene.end(process)
    assert (code, summary["interrupted"]) == (130, True)
    assert "once more stops at once" in err
    gone_after(scene, 5)
    assert "interrupted" in {result["status"] for result in scene.results().values()}
    assert (scene.output / "small" / "report" / "leaderboard.md").is_file()
    code, summary, err = scene.run()
    assert (code, summary["done"]) == (0, 4), err
    assert ["interrupted", "done"] in [[a["status"] for a in r["attempts"]] for r in scene.results().values()]
    scene.assert_complete()


def test_ctrl_c_twice_stops_at_once(scene: Any) -> None:
    scene.finish_some()
    process = scene.start()
    scene.trains(driver=process)
    press_ctrl_c(process)
    time.sleep(0.05)
    press_ctrl_c(process)
    process.communicate(timeout=3)
    assert process.returncode == 130
    gone_after(scene, 5)
    code, summary, err = scene.run()
    assert (code, summary["done"]) == (0, 4), err
    scene.assert_complete()


def test_sigterm_stops_cleanly(scene: Any) -> None:
    scene.finish_some()
    process = scene.start()
    scene.trains(driver=process)
    process.terminate()
    code, summary, _ = scene.end(process)
    assert (code, summary["interrupted"]) == (130, True)
    gone_after(scene, 5)
    code, summary, err = scene.run()
    assert (code, summary["done"]) == (0, 4), err
    scene.assert_complete()


def test_a_hung_trial_ends_by_its_timeout(scene: Any) -> None:
    scene.finish_some()
    process = scene.start("--set", "resources.timeout=15s")
    lease = scene.trains(driver=process)
    os.kill(lease["pid"], signal.SIGSTOP)
    code, summary, err = scene.end(process)
    assert (code, summary["done"]) == (1, 3), err
    assert "timeout" in next(iter(summary["failed"].values()))
    code, summary, err = scene.run()
    assert (code, summary["done"]) == (1, 3), "a timeout is not tried again unasked"
    code, summary, err = scene.run("--retry", "timeout")
    assert (code, summary["done"]) == (0, 4), err
    assert ["timeout", "done"] in [[a["status"] for a in r["attempts"]] for r in scene.results().values()]
    scene.assert_complete()


def test_a_result_cut_by_hand_is_no_result(scene: Any) -> None:
    code, summary, err = scene.run()
    assert (code, summary["done"]) == (0, 4), err
    scene.remember_finished()
    victim = next(iter(scene.untouched))
    del scene.untouched[victim]
    before = json.loads(victim.read_text())
    victim.write_bytes(victim.read_bytes()[:200])
    code, summary, err = scene.run()
    assert (code, summary["done"]) == (0, 4), err
    assert "3 done before, 1 to run" in err
    assert json.loads(victim.read_text())["digests"] == before["digests"]
    scene.assert_complete()


def test_mlflow_down(scene: Any) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    dead = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    code, summary, err = scene.run(**dead)
    assert (code, summary["done"]) == (0, 4), err
    assert "does not answer" in summary["mlflow"] and "harness sync" in summary["mlflow"]
    scene.remember_finished()
    code = "from harness.cli import main; main()"
    synced = subprocess.run(
        [sys.executable, "-c", code, "sync", "small", "--output", str(scene.output)], capture_output=True, text=True
    )
    assert synced.returncode == 0, synced.stderr
    scene.assert_complete()


def test_two_runs_of_one_suite_share_the_work(scene: Any) -> None:
    scene.finish_some()
    both = [scene.start(), scene.start()]
    for process in both:
        code, summary, err = scene.end(process)
        assert (code, summary["done"]) == (0, 4), err
    assert [[a["status"] for a in r["attempts"]] for r in scene.results().values()] == [["done"]] * 4
    scene.assert_complete()


def test_a_run_takes_over_from_a_killed_one_beside_it(scene: Any) -> None:
    scene.finish_some()
    first = scene.start()
    scene.trains(driver=first)
    second = scene.start()
    time.sleep(3)
    kill(first.pid)
    first.communicate()
    code, summary, err = scene.end(second)
    assert (code, summary["done"]) == (0, 4), err
    scene.assert_complete()


@pytest.fixture
def small_disk(scene: Any, tmp_path: Path) -> Iterator[Path]:
    """The scene's results on a file system of 32 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small file system can only be mounted by root")
    scene.output = disk / "results"
    yield disk
    for process in scene.processes():
        process.kill()
    time.sleep(0.5)
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_disk_full(scene: Any, small_disk: Path) -> None:
    scene.finish_some()
    process = scene.start()
    scene.trains(driver=process)
    fill = small_disk / "fill"
    with fill.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(65536))
        except OSError:
            pass
    code, summary, err = scene.end(process)
    assert code == 1, err
    assert "No space left on device" in summary["problem"]
    scene.assert_untouched()
    gone_after(scene, 5)
    fill.unlink()
    code, summary, err = scene.run()
    assert (code, summary["done"]) == (0, 4), err
    scene.assert_complete()


LATE = """
import sys, time
from pathlib import Path
sys.path[:0] = {path!r}
from harness.store import Store
from harness.result import Result
writer = Store(Path({output!r})).trial("abc").claim({{}})
writer.begin(epochs=2, resumed=None)
writer.log_metrics({{"epoch": 0}})
print("ready", flush=True)
time.sleep(0.5)
writer.finish(Result(id="abc", spec={{"late": True}}, status="done"))
"""


def test_a_late_writer_is_refused(tmp_path: Path) -> None:
    """A process that was given up for dead wakes up when another one has finished its trial."""
    from harness.result import Result
    from harness.store import Store
    from harness.trial_folder import Taken

    code = LATE.format(path=sys.path, output=str(tmp_path))
    late = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert late.stdout is not None and late.stdout.readline() == "ready\n"
    os.kill(late.pid, signal.SIGSTOP)
    folder = Store(tmp_path).trial("abc")
    with pytest.raises(Taken):
        folder.claim({})
    running = folder.path / "running.json"  # as if it were on another host, and silent
    running.write_text(running.read_text().replace(socket.gethostname(), "elsewhere"))
    os.utime(running, (0, 0))
    writer = folder.claim({})
    writer.finish(Result(id="abc", spec={}, status="done"))
    before = hashlib.sha256((folder.path / "result.json").read_bytes()).hexdigest()
    os.kill(late.pid, signal.SIGCONT)
    _, err = late.communicate(timeout=30)
    assert late.returncode == 1 and "LeaseLost" in err
    assert hashlib.sha256((folder.path / "result.json").read_bytes()).hexdigest() == before
    result = folder.result()
    assert result is not None and [a["status"] for a in result.attempts] == ["lost", "done"]
