"""Downloads, from a server on this machine: held to a digest, and nothing kept of what is not the file."""

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from harness.cli import main
from harness.errors import UserError
from harness.importing import fetching
from harness.importing.fetching import fetch
from harness.models import weights as known
from harness.models.manifest import Manifest, imported_names
from harness.models.weights import WEIGHTS, OfficialFile
from tests.harness.importing.checkpoints import LAYOUTS, randomised, write

pytestmark = pytest.mark.usefixtures("in_process")
NAME = "point_mae_shapenet"


@pytest.fixture
def content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A checkpoint of the known weights, which are small here, and whose digest is known."""
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "data"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(fetching, "SCHEMES", ("http", "https"))
    layout = LAYOUTS["Point-MAE, pre-training"]
    path = write(tmp_path / "a.pth", layout.state(randomised(layout.settings().build(drop_path=0))))
    found = path.read_bytes()
    official = OfficialFile("a page", "pretrain.pth", sha256=hashlib.sha256(found).hexdigest())
    requires = {"dim": 24, "depth": 2, "heads": 6, "tokenizer_width": 32}
    monkeypatch.setitem(WEIGHTS, NAME, replace(WEIGHTS[NAME], requires=requires, official=official))
    return found


@pytest.fixture
def server(content: bytes) -> Iterator[str]:
    class Files(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            match self.path:
                case "/whole" | "/elsewhere":
                    self.answer(content)
                case "/cut":
                    self.answer(content[:-100], length=len(content))
                case "/other":
                    self.answer(b"another file")
                case "/huge":
                    self.answer(b"x", length=10 * 2**30)
                case "/moved":
                    self.send_response(302)
                    self.send_header("Location", "/elsewhere")
                    self.end_headers()
                case "/file":
                    self.send_response(302)
                    self.send_header("Location", "ftp://127.0.0.1/a.pth")
                    self.end_headers()
                case _:
                    self.send_error(404, "Not Found")

        def answer(self, content: bytes, length: int | None = None) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) if length is None else length))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as running:
        thread = Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def test_a_file_that_is_the_file_is_imported(server: str, content: bytes, tmp_path: Path) -> None:
    heard: list[tuple[int, int | None]] = []
    found = fetch(NAME, url=f"{server}/moved", progress=lambda done, total: heard.append((done, total)))
    assert isinstance(found, Manifest) and found.name == NAME and imported_names() == [NAME]
    assert (found.source.file, found.source.digest) == ("pretrain.pth", hashlib.sha256(content).hexdigest())
    assert heard[-1] == (len(content), len(content))
    assert list((tmp_path / "scratch").iterdir()) == []
    with pytest.raises(UserError, match="is imported already; --force replaces it"):
        fetch(NAME, url=f"{server}/nowhere")
    again = fetch(NAME, url=f"{server}/whole", force=True)
    assert isinstance(again, Manifest) and again.digest == found.digest


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("other", "what came has SHA-256 [0-9a-f]{64}, not [0-9a-f]{64}: it is another file"),
        ("cut", "IncompleteRead|it is another file, or did not come whole"),
        ("huge", "has more than 4,294,967,296 bytes"),
        ("none", "the server answers 404 Not Found; by hand: get pretrain.pth at a page, then: harness weights import"),
        ("file", "ftp://127.0.0.1/a.pth: is not https"),
    ],
)
def test_a_file_that_is_not_leaves_nothing(path: str, words: str, server: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        fetch(NAME, url=f"{server}/{path}")
    assert list((tmp_path / "scratch").iterdir()) == [] and not (tmp_path / "data").exists()


def test_offline(content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["harness", "weights", "fetch", NAME, "--url", "http://127.0.0.1:9/pretrain.pth"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr("sys.argv", command)
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert (
        "cannot be reached ([Errno 111] Connection refused), perhaps because this machine is offline; by hand: get pre"
        in said
    )


def test_what_is_not_even_tried(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_download", lambda *_: pytest.fail("downloaded"))
    some = "0" * 64
    for name, options, words in (
        (NAME, {}, f"'{NAME}': the authors give no direct link; by hand: get pretrain.pth at a page"),
        (NAME, {"url": "https://x/y", "sha256": some}, f"--sha256 {some}: '{NAME}' is known by"),
        (NAME, {"url": "ftp://x/y"}, "ftp://x/y: is not https"),
        (NAME, {"url": "/etc/passwd"}, "/etc/passwd: is not https"),
        ("act_shapenet", {"url": "https://x/y"}, "'act_shapenet': the digest of the authors' file is not known here"),
        ("act_shapenet", {"url": "https://x/y", "sha256": "abc"}, "--sha256 abc: is no SHA-256"),
        ("point_bert_shapenet", {}, "get Point-BERT.pth at https://github.com/lulutang0608/Point-BERT .*--sha256"),
        ("dapt_modelnet40", {}, "get modelnet.pth at https://github.com/LMD0311/DAPT"),
        ("point_mae_tiny_parts", {}, "no published file is known as 'point_mae_tiny_parts'"),
        ("dapt_modelnet", {}, "did you mean 'dapt_modelnet40'"),
    ):
        with pytest.raises(UserError, match=words):
            fetch(name, **options)


def test_a_known_digest_makes_fetch_worth_telling() -> None:
    official = OfficialFile("a page", "a.pth", "https://x/a.pth", sha256="0" * 64)
    assert official.how_to_get("a").endswith("harness weights import a.pth --as a (or: harness weights fetch a)")
    assert "fetch" not in replace(official, sha256=None).how_to_get("a") and known.WEIGHTS[NAME].missing()
