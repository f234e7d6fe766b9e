"""Results as everybody may see them: without paths, users and hosts of the machines they came from.

Versions and hardware stay, of a fixed list; what a third party's trial recorded beside them does not. Errors and
reasons stay, with every absolute path cut down to its file's name. Logs are free text of anything, and stay at home.
"""

from __future__ import annotations

import getpass
import re
import socket
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.result import Result
from harness.store import Entry, SuiteResults
from reports.provenance import ENVIRONMENT

KEPT = (*ENVIRONMENT, "peft", "gpu_share")
"""Fields of a result's environment that are told."""
CUT = "\N{HORIZONTAL ELLIPSIS}"
COMMON = {"root", "user", "users", "admin", "ubuntu", "localhost", "runner", "docker", "harness", "host"}
"""Names of users and hosts that tell nothing of anybody, and may be words of a sentence."""
SHORTEST = 3
"""Characters of a user's or host's name that is looked for: shorter ones are parts of words."""
ATTEMPT = ("attempt", "started", "ended", "status", "error", "resumed")

_START = r"(?:file:/+|~[\w.-]*[/\\]|[A-Za-z]:\\|\\\\|/(?!/))"
_QUOTED = re.compile(rf"""(?P<quote>["'`])(?P<path>{_START}[^"'`\n]+)(?P=quote)""")
_BARE = re.compile(rf"""(?<![\w/.<\\~…-])(?P<path>{_START}[^\s"'`<>|;,()\[\]{{}}:]+)""")
_FILE = re.compile(
    r"[\w.+-]*\.(?:py|so|ya?ml|jsonl?|txt|log|out|md|html|csv|db|parquet|npy|npz|h5|hdf5|pkl|pth?|ckpt|bin|safetensors"
    r"|ply|off|obj|xyz|dat)",
    re.IGNORECASE,
)
"""Ends of paths that are told: names of files, by their kind; others may be those of a user's folder."""

Scrub = Callable[[str], str]


def public(results: SuiteResults) -> SuiteResults:
    """The suite's results for a public site; what trials left, but for logs, is still read where it lies."""
    driver = {results.driver.host} if results.driver is not None else set()
    roots = _roots(results.output)
    scrub, shorten = scrubber({*_names_here(), *driver}, roots), scrubber((), roots)
    return replace(
        results,
        name=shorten(results.name),
        description=scrub(results.description),
        digest=shorten(results.digest),
        entries=tuple(_entry(entry, scrub, shorten) for entry in results.entries),
        command=(),
        driver=None,
        notices=tuple(map(scrub, results.notices)),
        site=True,
    )


def scrubber(names: Collection[str], roots: Collection[Path]) -> Scrub:
    """What takes absolute paths and those names out of a text; `roots` are folders known to be this machine's own."""
    telling = sorted({name for name in names if len(name) >= SHORTEST and name.lower() not in COMMON}, key=len)
    named = re.compile(
        rf"(?<!\w)(?:{'|'.join(map(re.escape, reversed(telling)))})(?:\.\w[\w.-]*)?(?!\w)", re.IGNORECASE
    )
    known = sorted({str(root) for root in roots if len(root.parts) > 1}, key=len, reverse=True)

    @lru_cache(maxsize=100_000)  # trials say the same again and again
    def scrub(text: str) -> str:
        text = text.encode("utf-8", "replace").decode()
        for root in known:
            text = re.sub(rf"{re.escape(root)}(?=[/\s\"'`:;,)\]]|$)", "/_", text)
        text = _QUOTED.sub(lambda found: f"{found['quote']}{_file_of(found['path'])}{found['quote']}", text)
        text = _BARE.sub(lambda found: _file_of(found["path"]), text)
        return named.sub(CUT, text) if telling else text

    return scrub


def _file_of(path: str) -> str:
    """`…/name.py` of an absolute path; `…` where it does not end in a file."""
    last = path.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return f"{CUT}/{last}" if _FILE.fullmatch(last) else CUT


def _names_here() -> set[str]:
    found = {socket.gethostname(), socket.gethostname().partition(".")[0], Path.home().name}
    try:
        found.add(getpass.getuser())
    except (OSError, KeyError):  # a user without a name
        return found
    return found


def _roots(output: Path | None) -> set[Path]:
    known = {Path.home(), Path.cwd(), Path(tempfile.gettempdir()), *([output] if output is not None else [])}
    return {root for path in known for root in (path.absolute(), path.resolve())}


def _entry(entry: Entry, scrub: Scrub, shorten: Scrub) -> Entry:
    """Labels and settings are names that a user chose, and may be a user's: of these, paths go alone."""
    return replace(
        entry,
        method=shorten(entry.method),
        backbone=shorten(entry.backbone),
        dataset=shorten(entry.dataset),
        result=_result(entry.result, scrub, shorten) if entry.result is not None else None,
    )


def _result(result: Result, scrub: Scrub, shorten: Scrub) -> Result:
    environment = {key: result.environment[key] for key in KEPT if key in result.environment}
    if result.environment.get("gpu_busy"):
        environment["gpu_busy"] = True  # who was there is nobody's business
    attempts = [{key: attempt[key] for key in ATTEMPT if key in attempt} for attempt in result.attempts]
    return result.model_copy(
        update={
            "spec": _all(result.spec, shorten),
            "environment": _all(environment, scrub),
            "digests": _all(result.digests, shorten),
            "attempts": _all(attempts, scrub),
            "error": scrub(result.error) if result.error is not None else None,
            "reasons": _all(result.reasons, scrub),
        }
    )


def _all(value: Any, scrub: Scrub) -> Any:
    """Every text in it, keys too."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, Mapping):
        return {scrub(str(key)): _all(item, scrub) for key, item in value.items()}
    return [_all(item, scrub) for item in value] if isinstance(value, list | tuple) else value
