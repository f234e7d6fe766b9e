"""`--copy-to URL`: finished trials are copied as they come, and fetched where they are missing. No network."""

import json
import shutil
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest

from harness import remote
from harness.errors import UserError
from harness.remote import Copier, Remote
from harness.result import Metrics, Result, Status
from harness.store import Store
from harness.trial_folder import TrialFolder

pytestmark = pytest.mark.faults


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path}/copy" if request.param == "file" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "POLL_SECONDS", 0.02)


def store_in(folder: Path) -> Store:
    store = Store(folder)
    store.prepare()
    return store


def ended(store: Store, identity: str, status: Status = "done", *, replaces: str | None = None) -> TrialFolder:
    """A trial that ended so, with what trials leave."""
    folder = store.trial(identity)
    writer = folder.claim({"a": 1}, replaces=replaces)
    writer.log_metrics({"epoch": 0})
    if status == "done":
        writer.write_file("adapter/adapter_model.safetensors", identity.encode())
    writer.finish(Result(id=identity, spec={"a": 1}, status=status, metrics=Metrics(accuracy=0.5)))
    return folder


def content(folder: TrialFolder) -> dict[str, bytes]:
    names = {path.relative_to(folder.path).as_posix(): path for path in folder.path.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in names.items() if name not in (".lock", "spec.json")}


def test_what_is_finished_comes_back_on_a_new_disk(url: str, tmp_path: Path) -> None:
    store = store_in(tmp_path / "old")
    early = ended(store, "early")
    copier = Copier(Remote(url, store), suite="small", identities=["early", "late", "lost", "never"])
    late = ended(store, "late", "failed")
    ended(store, "lost", "lost")
    (store.suite_folder("small") / "report").mkdir(parents=True)
    (store.suite_folder("small") / "report" / "leaderboard.md").write_text("a report")
    assert copier.finish() == ""

    new = store_in(tmp_path / "new")
    there = Remote(url, new)
    assert there.fetch(["early", "late", "lost", "never"]) == 2
    assert content(new.trial("early")) == content(early) and "adapter/adapter_model.safetensors" in content(early)
    assert content(new.trial("late")) == content(late)
    assert new.trial("lost").result() is None
    assert there.fetch(["early", "late", "lost", "never"]) == 0
    assert there.files.cat_file(f"{there.home}/small/report/leaderboard.md") == b"a report"


def test_a_second_run_copies_only_what_is_missing(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_in(tmp_path / "old")
    ended(store, "one")
    assert Copier(Remote(url, store), suite="small", identities=["one"]).finish() == ""
    ended(store, "two")
    put: list[str] = []
    monkeypatch.setattr(Remote, "put", lambda self, folder: put.append(folder.identity))
    assert Copier(Remote(url, store), suite="small", identities=["one", "two"]).finish() == ""
    assert put == ["two"]


def test_a_result_that_was_replaced_is_replaced_there(url: str, tmp_path: Path) -> None:
    """With all that lay beside it."""
    store = store_in(tmp_path / "old")
    folder = ended(store, "one")
    there = Remote(url, store)
    there.put(folder)
    shutil.rmtree(folder.path / "adapter")
    ended(store, "one", "failed", replaces=folder.stamp())
    assert Copier(there, suite="small", identities=["one"]).finish() == ""
    new = store_in(tmp_path / "new")
    assert Remote(url, new).fetch(["one"]) == 1
    assert content(new.trial("one")).keys() == {"result.json", "metrics.jsonl"}
    result = new.trial("one").result()
    assert result is not None and result.status == "failed"


def test_what_is_here_stays(url: str, tmp_path: Path) -> None:
    """A final result, and a trial that somebody works on; what was cut off gives way to what was finished."""
    old, new = store_in(tmp_path / "old"), store_in(tmp_path / "new")
    names = ["here", "running", "cut off"]
    for name in names:
        Remote(url, old).put(ended(old, name))
    kept = content(ended(new, "here", "failed"))
    new.trial("running").claim({})
    ended(new, "cut off", "interrupted")
    assert Remote(url, new).fetch(names) == 1
    assert content(new.trial("here")) == kept
    assert new.trial("running").result() is None and new.trial("running").lease() is not None
    result = new.trial("cut off").result()
    assert result is not None and result.status == "done"


@pytest.mark.parametrize("damage", ["cut", "of another trial", "not finished"])
def test_a_damaged_copy_is_no_result(damage: str, url: str, tmp_path: Path) -> None:
    old, new = store_in(tmp_path / "old"), store_in(tmp_path / "new")
    there = Remote(url, old)
    there.put(ended(old, "one"))
    path = f"{there.home}/trials/one/result.json"
    found = there.files.cat_file(path)
    changed = {"cut": found[:50], "of another trial": found.replace(b'"one"', b'"two"'), "not finished": found}
    there.files.pipe_file(path, changed[damage].replace(b'"status": "done"', b'"status": "lost"', damage[0] == "n"))
    assert Remote(url, new).fetch(["one"]) == 0
    assert not list(new.trial("one").path.glob("*"))


def test_a_storage_that_fails_for_a_while(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_in(tmp_path / "old")
    ended(store, "one")
    there = Remote(url, store)
    failed = threading.Event()

    def away(path: str, value: bytes) -> None:
        failed.set()
        raise ConnectionError("the storage is away\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(there.files, "pipe_file", away)
        copier = Copier(there, suite="small", identities=["one"])
        assert failed.wait(30)
    assert copier.finish() == ""
    assert there.fetch(["one"]) == 0 and there.sizes()["one"].keys() >= {"result.json"}


def test_a_storage_that_fails_for_good_is_said(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_in(tmp_path / "old")
    ended(store, "one")
    there = Remote(url, store)

    def away(path: str, value: bytes) -> None:
        raise ConnectionError("the storage is away\nand more")

    monkeypatch.setattr(there.files, "pipe_file", away)
    said = Copier(there, suite="small", identities=["one"]).finish()
    assert said == f"not all results are at {url} (the storage is away); the same command copies what is missing"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nosuch://bucket", "no storage is known by that name"),
        ("s3://bucket/folder", "s3fs"),
        ("sftp://user:secret@host/folder", "no password"),
        ("file:///proc/folder", "cannot be written"),
        ("{output}", "is the results folder itself"),
        ("file://{output}/", "is the results folder itself"),
    ],
)
def test_what_cannot_be_copied_to(url: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as if it were not installed
    store = store_in(tmp_path / "results")
    with pytest.raises(UserError, match=told) as caught:
        Remote(url.format(output=store.output), store)
    assert "secret" not in str(caught.value)


SUITE = """\
format: 1
name: small
seeds: 1
datasets: [sweethome12]
backbones: {point_mae: {preset: tiny, depth: 1, groups: 8, group_size: 8}}
methods: {linear_probe: {}}
train: {epochs: 1, batch_size: 16, warmup_epochs: 0, drop_path: 0}
"""


@pytest.mark.slow
def test_a_run_on_a_new_disk_runs_nothing_again(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)
    command = [sys.executable, "-c", "from harness.cli import main; main()", "run", "suite.yaml", "--no-mlflow"]
    for said in ("0 done before, 1 to run", "fetched 1 finished from file://"):
        ran = subprocess.run(
            [*command, "--json", "--copy-to", f"file://{tmp_path}/copy"], cwd=tmp_path, capture_output=True, text=True
        )
        assert ran.returncode == 0 and said in ran.stderr, ran.stderr
        assert (json.loads(ran.stdout)["done"], json.loads(ran.stdout)["copy"]) == (1, None)
        (result,) = tmp_path.glob("results/trials/*/result.json")
        (copied,) = tmp_path.glob("copy/trials/*/result.json")
        assert result.read_bytes() == copied.read_bytes()
        assert (tmp_path / "copy" / "small" / "report" / "leaderboard.md").is_file()
        shutil.rmtree(tmp_path / "results")
