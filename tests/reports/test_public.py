"""What a published site says of the machines its results came from: versions and hardware, no paths, users or hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.holder import Holder
from harness.result import Result
from harness.store import Entry
from reports.public import public, scrubber
from tests.reports.synthetic import changed, synthetic

HOME = "/home"
"""Of the people whose folders the texts name."""
SCRUB = scrubber({"alice", "gpu-node-17", "root", "x"}, {Path("/srv/secret lab/results")})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{HOME}/alice/results/trials/ab/log.txt is full", "…/log.txt is full"),
        ('File "/usr/lib/python3.11/site-packages/torch/nn.py", line 3', 'File "…/nn.py", line 3'),
        (f"open('{HOME}/jane doe/my data/clouds.npz')", "open('…/clouds.npz')"),
        (f"path={HOME}/alice/w.pth, error:/data/x/y.h5", "path=…/w.pth, error:…/y.h5"),
        (f"file://{HOME}/alice/page.html", "…/page.html"),
        ("~/weights/act.pth and ~alice/w.pth", "…/act.pth and …/w.pth"),
        (r"C:\Users\alice\w.pth and \\server\share\w.pth", "…/w.pth and …/w.pth"),
        (f"in {HOME}/alice.smith and /Users/bob", "in … and …"),
        (r"/scratch/bob.jones C:\Users\bob.jones /root /tmp", "… … … …"),
        ("gpu-node-17.cluster.example.org:6379 is lost.", "…:6379 is lost."),
        ("in /srv/secret lab/results/trials/a.json", "in …/a.json"),
        ("in /srv/secret lab/results", "in …"),
        ("Alice on gpu-node-17: lost", "… on …: lost"),
        ("malice, root mean square, x", "malice, root mean square, x"),
        (
            "https://github.com/a/b.git, clouds/s, 3 / 4, n/a, and/or",
            "https://github.com/a/b.git, clouds/s, 3 / 4, n/a, and/or",
        ),
        ("blocks.0.attn/qkv ../data ./data </script>", "blocks.0.attn/qkv ../data ./data </script>"),
        ("\ud800", "?"),
        ("", ""),
    ],
)
def test_paths_and_names_go_and_the_rest_stays(text: str, told: str) -> None:
    assert SCRUB(text) == told


def test_labels_that_are_a_users_name_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "lora")
    found = public(synthetic(seeds=(0,), description="by lora"))
    assert "lora" in {entry.method for entry in found.entries} and found.description == "by …"
    assert found.entries[4].result is not None and found.entries[4].result.spec["method"]["name"] == "lora"


def test_without_names_nothing_is_looked_for() -> None:
    assert scrubber((), ())("all of it") == "all of it"


def test_the_environment_is_a_list_of_what_is_known() -> None:
    def told(entry: Entry) -> Result | None:
        assert entry.result is not None
        own = {"user": "alice", "hostname": "gpu-node-17", "gpu_busy": "pid 7 of alice", "cwd": f"{HOME}/alice"}
        return entry.result.model_copy(update={"environment": entry.result.environment | own})

    before = changed(synthetic(seeds=(0,)), told)
    after = public(before)
    first, result = before.entries[0].result, after.entries[0].result
    assert first is not None and result is not None
    assert result.environment.keys() == {*synthetic().entries[0].result.environment, "gpu_busy"}  # type: ignore[union-attr]
    assert result.environment["gpu_busy"] is True and result.on_a_shared_gpu
    assert "user" in first.environment, "the results themselves stay as they are"


def test_equal_results_stay_equal_and_numbers_stay() -> None:
    before, after = synthetic(), public(synthetic())
    for a, b in zip(before.entries, after.entries, strict=True):
        assert a.result is not None and b.result is not None
        assert (a.result.metrics, a.result.spec, a.result.time) == (b.result.metrics, b.result.spec, b.result.time)
        assert (a.id, a.method, a.dataset) == (b.id, b.method, b.dataset)


def test_hosts_of_the_run_are_known_and_its_command_goes() -> None:
    from dataclasses import replace

    driver = Holder(host="gpu-node-17", namespace="", pid=1, created="")
    results = replace(synthetic(seeds=(0,), description="Ran on gpu-node-17"), driver=driver, command=("x.yaml",))
    found = public(results)
    assert found.description == "Ran on …" and found.driver is None and found.command == ()
