"""`harness weights fetch NAME`: a known file from where its authors publish it, only when asked for, and checked.

Nothing is downloaded that could not be held to a digest, known or given. The file lies in a temporary folder until it
is the one, and is imported from there.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from harness import __version__
from harness.errors import UserError, did_you_mean
from harness.importing.cards import ImportedCard
from harness.importing.encoders import check_name
from harness.importing.files import import_file
from harness.importing.known import MODELS
from harness.importing.reading import LARGEST
from harness.models.manifest import Manifest
from harness.models.weights import WEIGHTS, OfficialFile

SCHEMES = ("https",)
SILENCE = 30.0
"""Seconds without an answer after which a server is given up."""
PIECE = 2**20


def fetch(
    name: str,
    *,
    url: str | None = None,
    sha256: str | None = None,
    force: bool = False,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Manifest | ImportedCard:
    """Download a known file, check it, import it under its name.

    `url` overrules the authors' link; `sha256` is the digest where none is known. `progress` is called with the bytes
    that have come and, where the server says so, those that will. Raises UserError, and then has kept nothing.
    """
    official = _official(name)
    link, digest = _link(name, official, url), _digest(name, official, sha256)
    check_name(name, force=force)
    with tempfile.TemporaryDirectory(prefix="harness-fetch-") as folder:
        path = Path(folder) / (official.file or "checkpoint.pth")
        try:
            found = _download(link, path, progress)
        except (URLError, HTTPException, OSError) as error:
            raise UserError(f"{link}: {_reason(error)}; {_by_hand(name, official)}") from None
        if found != digest:
            raise UserError(
                f"{link}: what came has SHA-256 {found}, not {digest}: it is another file, or did not come whole; "
                "nothing was kept"
            )
        return import_file(path, name=name, force=force)


def _official(name: str) -> OfficialFile:
    known = {key: weights.official for key, weights in WEIGHTS.items() if weights.official is not None}
    known |= {key: model.official for key, model in MODELS.items()}
    if name not in known:
        raise UserError(f"no published file is known as '{name}'; {did_you_mean(name, known)}")
    return known[name]


def _by_hand(name: str, official: OfficialFile) -> str:
    return f"by hand: get {official.file or 'the checkpoint'} at {official.page}, then: {official.command(name)}"


def _link(name: str, official: OfficialFile, url: str | None) -> str:
    """Raises UserError when there is none, or it is not of a kind that is taken."""
    link = url or official.url
    if link is None:
        raise UserError(f"'{name}': the authors give no direct link; {_by_hand(name, official)}; or say --url")
    _check_scheme(link)
    return link


def _check_scheme(link: str) -> None:
    if urlsplit(link).scheme not in SCHEMES:
        raise UserError(f"{link}: is not https")


def _digest(name: str, official: OfficialFile, given: str | None) -> str:
    """The digest to hold a download to. Raises UserError when there is none, or another one is known."""
    if given is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", given):
        raise UserError(f"--sha256 {given}: is no SHA-256, which has 64 hexadecimal digits")
    if official.sha256 is not None and given not in (None, official.sha256):
        raise UserError(f"--sha256 {given}: '{name}' is known by {official.sha256}")
    digest = official.sha256 or given
    if digest is None:
        raise UserError(
            f"'{name}': the digest of the authors' file is not known here, so a download could not be checked; "
            f"{_by_hand(name, official)}; or tell the digest that you trust with --sha256"
        )
    return digest.lower()


class _StayOnHttps(HTTPRedirectHandler):
    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """Follow a server elsewhere, but to no other scheme."""
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(link: str, path: Path, progress: Callable[[int, int | None], None]) -> str:
    """Write what a server sends; returns its SHA-256. Raises UserError when it is too large."""
    request = Request(link, headers={"User-Agent": f"pointpeft-harness/{__version__}"})
    digest, done = hashlib.sha256(), 0
    with build_opener(_StayOnHttps).open(request, timeout=SILENCE) as answer, path.open("wb") as file:
        said = answer.headers.get("Content-Length", "")
        total = int(said) if said.isdecimal() else None
        while piece := answer.read(PIECE):
            done += len(piece)
            if max(done, total or 0) > LARGEST:
                raise UserError(f"{link}: has more than {LARGEST:,} bytes, which are not read")
            digest.update(piece)
            file.write(piece)
            progress(done, total)
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"the server answers {error.code} {error.reason}"
    why = error.reason if isinstance(error, URLError) else error
    return f"cannot be reached ({why}), perhaps because this machine is offline"
