"""The JSON Schema of the suite file, for editors: completion, descriptions, and errors while typing.

It is made from the models that read suites and from the plug-ins that are installed, so it knows what they know. What
only a whole suite can tell (labels that refer to each other, weights that do not fit) stays with `harness validate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from harness import registry
from harness.baselines import BASELINES
from harness.models.weights import all_weights
from harness.suite_file import FACETS, SECTIONS, Override, Reference, SuiteFile

Schema = dict[str, Any]

INTEGER = r"\d[\d_]*(\.0+)?\s*$"
NUMBER = r"(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
TRUTH = r"^([Tt]rue|TRUE|[Ff]alse|FALSE|[Yy]es|YES|[Nn]o|NO|[Oo]n|ON|[Oo]ff|OFF)$"


class _ForEditors(GenerateJsonSchema):
    """pydantic's schema, with what the harness takes as a number or as yes and no although an editor sees text."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012

    def int_schema(self, schema: Any) -> Schema:
        """A whole number, or its text."""
        return _or_text(super().int_schema(schema), INTEGER)

    def float_schema(self, schema: Any) -> Schema:
        """A number, or its text: `1e-4` is one to an editor, and text to the harness's YAML."""
        return _or_text(super().float_schema(schema), NUMBER)

    def bool_schema(self, schema: Any) -> Schema:
        """True or false, or a word for it: `yes` is one to the harness's YAML, and text to an editor."""
        return {**super().bool_schema(schema), "type": ["boolean", "string"], "pattern": TRUTH}

    def field_title_should_be_set(self, schema: Any) -> bool:
        """A field's title would be its name again."""
        return False

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> Schema:
        """A plug-in's field of a type that JSON does not know may hold anything, instead of spoiling the rest."""
        return {}


def _or_text(number: Schema, pattern: str) -> Schema:
    lowest = number.get("minimum", number.get("exclusiveMinimum"))
    sign = r"^\s*[+-]?" if lowest is None or lowest < 0 else r"^\s*\+?"
    return {**number, "type": [number["type"], "string"], "pattern": sign + pattern}


def suite_schema() -> Schema:
    """JSON Schema (draft 2020-12) of suite files, with the plug-ins and imported datasets that are here now.

    Raises UserError for a plug-in that cannot be loaded.
    """
    plugins: dict[str, dict[str, type[BaseModel]]] = {
        kind: {name: registry.get(kind, name) for name in registry.names(kind)} for kind in ("methods", "backbones")
    }
    datasets = {"enum": registry.names("datasets")}
    models: list[type[BaseModel]] = [SuiteFile, Override, Reference, *SECTIONS.values()]
    models += [model for known in plugins.values() for model in known.values()]
    references, whole = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(models)], schema_generator=_ForEditors
    )
    definitions: dict[str, Schema] = whole["$defs"]

    def reference(model: type[BaseModel]) -> Schema:
        return dict(cast(Mapping[Any, Schema], references)[model, "validation"])

    def definition(model: type[BaseModel]) -> Schema:
        return definitions[reference(model)["$ref"].rpartition("/")[2]]

    settable = {
        f"{section}.{field}": value
        for section, model in SECTIONS.items()
        for field, value in definition(model)["properties"].items()
    }
    for model in plugins["backbones"].values():
        own = [name for name, known in plugins["backbones"].items() if known is model]
        _enumerate(definition(model)["properties"]["weights"], _weights_of(own))
    for kind, known in plugins.items():
        key = kind.removesuffix("s")
        settable |= _any_of(key, [definition(model) for model in known.values()])
        for model in known.values():
            settings = definition(model)
            settings["type"] = ["object", "null"]
            settings.setdefault("properties", {})[key] = {"enum": list(known), "description": f"Name of the {key}."}
        definitions[f"any_{key}"] = _labelled(key, {name: reference(model) for name, model in known.items()})

    _enumerate(definition(Reference)["properties"]["weights"], _weights_of(plugins["backbones"]))
    _enumerate(definition(Reference)["properties"]["baseline"], [*BASELINES, None])
    definition(Reference)["oneOf"] = [
        {"required": [key], "properties": {key: {"type": "string"}}} for key in ("baseline", "method")
    ]
    changes = definition(Override)["properties"]
    changes["set"] |= {"properties": settable, "additionalProperties": False}
    labels = changes["when"].pop("additionalProperties")
    changes["when"].pop("propertyNames", None)
    changes["when"] |= {"properties": dict.fromkeys(FACETS, labels), "additionalProperties": False}
    changes["when"]["properties"]["dataset"] = {"anyOf": [datasets, {"type": "array", "items": datasets}]}

    root = definition(SuiteFile)
    del definitions[reference(SuiteFile)["$ref"].rpartition("/")[2]]
    properties = root["properties"]
    label = {"pattern": properties["name"]["pattern"]}
    properties["datasets"]["items"] = datasets
    properties |= {section: reference(model) for section, model in SECTIONS.items()}
    for kind, known in plugins.items():
        key = kind.removesuffix("s")
        any_of_them: Schema = {"$ref": f"#/$defs/any_{key}"}
        by_label = {
            name: {"if": {"type": "object", "required": [key]}, "then": any_of_them, "else": reference(model)}
            for name, model in known.items()
        }
        properties[kind] = {
            "description": properties[kind]["description"],
            "type": "object",
            "minProperties": 1,
            "propertyNames": label,
            "properties": by_label,
            "additionalProperties": any_of_them,
        }
    properties["references"] |= {"propertyNames": label, "additionalProperties": reference(Reference)}
    for field in ("references", "overrides"):
        del properties[field]["default"]  # or an editor would write it down
    properties["references"].pop("patternProperties", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **root,
        "title": "Suite of pointpeft-harness",
        "description": "What to compare; docs/suite.md describes it.",
        "$defs": dict(sorted(definitions.items())),
    }


def _labelled(key: str, known: Mapping[str, Schema]) -> Schema:
    """Settings under a label that is no plug-in's name: `method: lora` says whose they are."""
    return {
        "type": "object",
        "required": [key],
        "properties": {key: {"enum": list(known), "description": f"Name of the {key}; this label is not one."}},
        "allOf": [
            {"if": {"properties": {key: {"const": name}}, "required": [key]}, "then": settings}
            for name, settings in known.items()
        ],
    }


def _any_of(key: str, definitions: Iterable[Schema]) -> dict[str, Schema]:
    """`method.rank` as any of the methods that have a rank takes it."""
    found: dict[str, list[Schema]] = {}
    for definition in definitions:
        for field, value in definition.get("properties", {}).items():
            choices = found.setdefault(f"{key}.{field}", [])
            if value not in choices:
                choices.append(value)
    return {field: choices[0] if len(choices) == 1 else {"anyOf": choices} for field, choices in found.items()}


def _weights_of(backbones: Iterable[str]) -> list[str]:
    wanted = set(backbones)
    return ["random", *(name for name, weights in all_weights().items() if weights.backbone in wanted)]


def _enumerate(field: Schema, values: list[Any]) -> None:
    """Replace a field's type by the values that it may have."""
    for key in ("type", "pattern", "anyOf"):
        field.pop(key, None)
    field["enum"] = values
