"""A running Ray cluster: whether it answers, what its nodes are, and whether they can run our trials.

Ray's client waits for minutes where nothing listens, and ends the process where it is refused. So a cluster is first
asked by a process of its own (`python -m harness.cluster`), which is given up after a while.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harness import machine
from harness.errors import UserError

CONNECT_SECONDS = 5.0
"""For the first sign of the head node."""
ANSWER_SECONDS = 60.0
"""For all nodes to have told what they are."""
QUIET_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",  # what it keeps back to compare is printed when Ray is left, into our own output
}
QUIET = QUIET_RAY | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}


@dataclass(frozen=True)
class Node:
    """One machine of a cluster."""

    id: str
    host: str
    cpus: float
    gpus: float
    driver: bool
    """Whether this process runs on it."""
    facts: dict[str, Any] | None
    """harness.machine.facts; None when it did not answer."""
    ahead: float = 0.0
    """Seconds that its clock is ahead of ours."""
    error: float = 0.0
    """By how much this may be wrong: half the time that asking took."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that answered."""

    address: str
    """HOST:PORT of its head."""
    nodes: tuple[Node, ...]
    here: dict[str, Any] = field(default_factory=dict)
    """Facts of this machine."""

    @property
    def gpus(self) -> int:
        """GPUs of the machine that has most."""
        return int(max((node.gpus for node in self.nodes), default=0))

    def described(self) -> str:
        """A line for people."""
        cpus, gpus = (sum(values) for values in zip(*((n.cpus, n.gpus) for n in self.nodes), strict=True))
        alone = f"; without this results folder: {', '.join(sorted(self.unshared()))}" if self.unshared() else ""
        return f"cluster {self.address}: {len(self.nodes)} nodes, {cpus:g} CPUs, {gpus:g} GPUs{alone}"

    def differences(self) -> list[str]:
        """What keeps nodes from running this process's trials: other versions, other code, no answer."""
        found = []
        for node in self.nodes:
            if node.facts is None:
                found.append(f"{node.host}: did not answer within {ANSWER_SECONDS:g} s")
                continue
            if node.facts["harness"] is None:
                found.append(f"{node.host}: the harness is not installed in Ray's Python there")
                continue
            for word, key in (("Python", "python"), ("the harness", "harness")):
                if node.facts[key] != self.here[key]:
                    found.append(f"{node.host}: {word} {node.facts[key]}, here {self.here[key]}")
            if node.facts["code"] != self.here["code"]:
                found.append(f"{node.host}: the harness's source is another one than here")
            found += _other_versions(node, node.facts["packages"], self.here["packages"], only=("ray",))
            found += _other_versions(node, node.facts["plugins"], self.here["plugins"])
        return found

    def missing(self) -> list[str]:
        """Data and weights that nodes have not."""
        return [f"{node.host}: {text}" for node in self.nodes for text in (node.facts or {}).get("missing", ())]

    def unshared(self) -> dict[str, str]:
        """Hosts that do not share the results folder, and why."""
        return {node.host: node.facts["results"] for node in self.nodes if node.facts and node.facts["results"]}

    def slots(self, bundle: dict[str, float]) -> int:
        """How many trials of such resources fit at once."""
        return sum(fits(bundle, cpus=node.cpus, gpus=node.gpus) for node in self.nodes)


def fits(bundle: dict[str, float], *, cpus: float, gpus: float) -> int:
    """How many trials that reserve `bundle` fit on one machine."""
    have = {"CPU": cpus, "GPU": gpus}
    return int(min((have.get(name, 0.0) // amount for name, amount in bundle.items() if amount), default=1))


def _other_versions(
    node: Node, there: dict[str, str | None], here: dict[str, str | None], *, only: Sequence[str] | None = None
) -> list[str]:
    names = sorted({*there, *here}) if only is None else only
    differing = [name for name in names if there.get(name) != here.get(name)]
    return [f"{node.host}: {n} {there.get(n) or 'is missing'}, here {here.get(n) or 'missing'}" for n in differing]


def look(address: str, question: dict[str, Any]) -> Cluster:
    """Ask a cluster what its nodes are. `question` is that of harness.machine.facts.

    Raises UserError when there is none at the address, when it refuses, or speaks another version of Ray or Python.
    """
    resolved = _resolve(address)
    command = [sys.executable, "-m", "harness.cluster", resolved]
    try:
        asked = subprocess.run(
            command,
            input=json.dumps(question),
            capture_output=True,
            text=True,
            timeout=ANSWER_SECONDS + 30,
            env=QUIET | os.environ,
        )
    except subprocess.TimeoutExpired:
        raise UserError(_no_answer(resolved, "it did not answer in time")) from None
    line = (asked.stdout.strip().splitlines() or [""])[-1]
    try:
        answer = json.loads(line)
    except ValueError:
        answer = {"problem": (asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"])[-1]}
    if "problem" in answer:
        raise UserError(_no_answer(resolved, _reason(answer["problem"] + "\n" + asked.stderr)))
    nodes = tuple(Node(**node) for node in answer["nodes"])
    return Cluster(resolved, nodes, here=machine.facts({key: question[key] for key in question if key == "folders"}))


def join(address: str, question: dict[str, Any]) -> Cluster:
    """A cluster that can run this process's trials. Raises UserError, with all that is wrong at once."""
    cluster = look(address, question)
    if differences := cluster.differences():
        mend = "install the same versions everywhere (`harness doctor --address …` shows them all):"
        raise UserError(
            "\n".join([f"the cluster at {cluster.address} is not like this machine; {mend}", *_list(differences)])
        )
    if missing := cluster.missing():
        folder = question.get("data")
        mend = f"the data folder must be at the same path on every node ({folder}), shared or copied:"
        raise UserError("\n".join([f"nodes of {cluster.address} lack what this suite needs; {mend}", *_list(missing)]))
    return cluster


def _list(lines: Sequence[str]) -> list[str]:
    return [f"- {line}" for line in lines]


def _resolve(address: str) -> str:
    """HOST:PORT of an address. Raises UserError where nothing listens."""
    if address == "auto":
        for name, value in QUIET.items():  # Ray reads them when it is imported
            os.environ.setdefault(name, value)
        from ray._private.services import canonicalize_bootstrap_address

        try:
            found = canonicalize_bootstrap_address("auto")
        except (ConnectionError, OSError, ValueError):
            found = None
        if not found:
            raise UserError(
                "--address auto: no Ray cluster runs on this machine; start one with `ray start --head`, or give "
                "--address HOST:PORT of the head node (docs/cluster.md)"
            )
        address = str(found)
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", address)
    if match is None or not 0 < int(match[3]) < 65536:
        raise UserError(
            f"--address {address}: write auto, or HOST:PORT of the head node, such as 10.0.0.1:6379 (a ray:// address "
            "is that of the Ray client, which this does not use)"
        )
    try:
        socket.create_connection((match[1] or match[2], int(match[3])), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(_no_answer(address, str(error.strerror or error))) from None
    return address


def _no_answer(address: str, why: str) -> str:
    return f"--address {address}: no Ray cluster that this process may join: {why}"


def _reason(text: str) -> str:
    """What Ray says, in a sentence that tells what to mend."""
    if "InvalidAuthToken" in text or "Unauthenticated" in text:
        return (
            "it asks for another authentication token; set RAY_AUTH_MODE=token and the cluster's RAY_AUTH_TOKEN (or "
            "RAY_AUTH_TOKEN_PATH) here"
        )
    if "ersion mismatch" in text:
        versions = re.findall(r"(Ray|Python): ?(\S+)", text)
        told = ", ".join(" ".join(pair) for pair in versions)
        return f"Ray or Python are of other versions there and here ({told}); install the same ones"
    if "node_ip_address" in text or "raylet" in text.lower():
        return "this machine is no node of it; run this command on one (`ray start --address …` makes it one)"
    return text.strip().splitlines()[0][:300]


def main(address: str) -> None:
    """Ask the nodes: question as JSON on stdin, `{"nodes": …}` or `{"problem": …}` as the last line of stdout."""
    import logging

    import ray
    from ray import cloudpickle

    question = json.loads(sys.stdin.read())
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except BaseException as error:  # what Ray raises where it is refused is no Exception
        print(json.dumps({"problem": f"{type(error).__name__}: {error}"}))  # noqa: T201
        sys.stdout.flush()
        os._exit(1)
    cloudpickle.register_pickle_by_value(machine)
    print(json.dumps({"nodes": _ask(question)}))  # noqa: T201
    sys.stdout.flush()
    os._exit(0)


def _ask(question: dict[str, Any]) -> list[dict[str, Any]]:
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    deadline = time.monotonic() + ANSWER_SECONDS
    alive = [node for node in ray.nodes() if node["Alive"]]

    def on(node: dict[str, Any], function: Any) -> Any:
        affinity = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=affinity)

    calls = [on(node, machine.facts).remote(question) for node in alive]
    done, _ = ray.wait(calls, num_returns=len(calls), timeout=ANSWER_SECONDS)
    here = ray.get_runtime_context().get_node_id()
    found = []
    for node, call in zip(alive, calls, strict=True):
        facts, ahead, error = None, 0.0, 0.0
        if call in done:
            with contextlib.suppress(RayError):  # gone since, or too slow: no answer
                told, before = ray.get(call), time.time()
                there = ray.get(on(node, machine.clock).remote(), timeout=max(1.0, deadline - time.monotonic()))
                error = (time.time() - before) / 2
                facts, ahead = told, there - before - error
        resources = node["Resources"]
        found.append(
            {
                "id": node["NodeID"],
                "host": node["NodeManagerHostname"],
                "cpus": resources.get("CPU", 0.0),
                "gpus": resources.get("GPU", 0.0),
                "driver": node["NodeID"] == here,
                "facts": facts,
                "ahead": ahead,
                "error": error,
            }
        )
    return found


if __name__ == "__main__":
    main(sys.argv[1])
