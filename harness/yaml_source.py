"""Reading YAML from strangers: plain data only, with the line of every value, and one clear message per problem."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.errors import Problem, SuiteError, UserError

MAX_BYTES = 1_000_000
MAX_NODES = 100_000
YamlPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Source:
    """A YAML mapping and where each of its values stands."""

    file: str
    text: str
    data: dict[str, Any]
    lines: dict[YamlPath, int]

    def line(self, path: YamlPath) -> int | None:
        """Line of the value at `path`, or of the nearest thing around it that the file holds."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)


def parse_settings(settings: Iterable[str], *, example: str) -> dict[str, Any]:
    """KEY=VALUE from the command line, values in YAML. Raises UserError."""
    parsed: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UserError(f"--set {setting}: expected KEY=VALUE, for example {example}")
        try:
            parsed[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"--set {setting}: '{text}' is not a value that YAML can read") from None
    return parsed


def read_yaml(path: Path) -> Source:
    """Read a YAML mapping. Raises SuiteError for whatever a file can get wrong."""
    name = str(path)

    def refuse(message: str, line: int | None = None) -> SuiteError:
        return SuiteError([Problem(name, line, "", message)])

    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise refuse("no such file") from None
    except OSError as error:
        raise refuse(f"cannot be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise refuse(f"{len(raw):,} bytes; a suite has at most {MAX_BYTES:,}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise refuse("not UTF-8 text; save the file as UTF-8", line) from None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise refuse(f"not valid YAML: {error.problem}", mark.line + 1 if mark else None) from None
    except yaml.YAMLError as error:
        raise refuse(f"not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise refuse("nested too deeply") from None
    if node is None:
        raise refuse("the file is empty; `harness init` writes a suite to start from")
    if not isinstance(node, yaml.MappingNode):
        raise refuse("expected a mapping of keys to values at the top", node.start_mark.line + 1)
    reader = _Reader(name, loader)
    try:
        data = reader.value(node, ())
    except RecursionError:
        raise refuse("nested too deeply, or an alias that contains itself") from None
    if reader.problems:
        raise SuiteError(reader.problems)
    return Source(name, text, data, reader.lines)


class _Reader:
    """Walks the YAML nodes, noting lines, duplicate keys and foreign tags."""

    def __init__(self, file: str, loader: yaml.SafeLoader) -> None:
        self.file, self.loader = file, loader
        self.lines: dict[YamlPath, int] = {}
        self.problems: list[Problem] = []
        self.nodes = 0

    def _note(self, node: yaml.Node, path: YamlPath, message: str) -> None:
        field = ".".join(map(str, path))
        self.problems.append(Problem(self.file, node.start_mark.line + 1, field, message))

    def value(self, node: yaml.Node, path: YamlPath) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise SuiteError([Problem(self.file, None, "", f"more than {MAX_NODES:,} values (aliases counted)")])
        self.lines.setdefault(path, node.start_mark.line + 1)
        if node.tag not in yaml.SafeLoader.yaml_constructors:
            self._note(node, path, f"the tag {node.tag} is not allowed; only plain values are")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        try:
            return self.loader.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError) as error:
            self._note(node, path, f"cannot be read: {str(error).splitlines()[0]}")
            return None

    def _mapping(self, node: yaml.MappingNode, path: YamlPath) -> dict[str, Any]:
        found: dict[str, Any] = {}
        own = {id(key) for key, _ in node.value}  # as opposed to keys merged in by `<<`
        seen: set[str] = set()
        self.loader.flatten_mapping(node)
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None:
                self._note(key_node, path, "a key must be a plain name")
                continue
            if id(key_node) in own and key in seen:
                self._note(key_node, (*path, key), "given twice; keep one of them")
            if id(key_node) in own:
                seen.add(key)
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            found[key] = self.value(value_node, (*path, key))
        return found
