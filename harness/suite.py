"""suite.yaml -> Suite -> resolved trials: every problem at once, each with file, line and field.

The format is documented in docs/suite.md. Expansion reads declarations only: no data or weights are opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from harness import registry
from harness.baselines import BASELINES
from harness.data.dataset import Declaration
from harness.errors import Problem, SuiteError, UserError, did_you_mean
from harness.method import misfits
from harness.models.weights import find_weights
from harness.settings import sharing_problems
from harness.suite_file import (
    FACETS,
    SECTIONS,
    Reference,
    SuiteFile,
    When,
    indices,
    matches,
)
from harness.tasks import TASKS, task_of
from harness.trial import Trial
from harness.yaml_source import Source, YamlPath, parse_settings, read_yaml

SETTABLE = (*SECTIONS, "method", "backbone")
MAX_TRIALS = 100_000


class Suite(BaseModel):
    """A suite with its trials resolved, in the order of the file."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    name: str
    description: str
    digest: str
    """SHA-256 of the identities of all trials and their labels; the report's footer carries it."""
    text: str
    """The file as it was read."""
    trials: tuple[Trial, ...]

    def only(self, selections: Sequence[str]) -> tuple[Trial, ...]:
        """Trials picked by `key=value[,value]` selections; keys are method, dataset, backbone, seed, fold."""
        chosen = self.trials
        for selection in selections:
            key, _, values = selection.partition("=")
            wanted = [value.strip() for value in values.split(",") if value.strip()]
            if key not in (*FACETS, "seed", "fold") or not wanted:
                raise UserError(
                    f"--only {selection}: expected KEY=VALUE[,VALUE] with KEY one of "
                    "method, dataset, backbone, seed, fold"
                )
            known = {str(label) for trial in self.trials if (label := trial.label(key)) is not None}
            for value in wanted:
                if value not in known:
                    raise UserError(
                        f"--only {selection}: no {key} '{value}' in this suite; {did_you_mean(value, known)}"
                    )
            chosen = tuple(trial for trial in chosen if str(trial.label(key)) in wanted)
        if not chosen:
            raise UserError(f"--only {' --only '.join(selections)} leaves no trial")
        return chosen


def _folds(file: SuiteFile, dataset: Declaration) -> Sequence[int | None]:
    """The folds of a dataset that a suite asks for; None, once, where the dataset has none."""
    if not dataset.folds:
        return [None]
    return indices(file.folds if file.folds is not None else dataset.folds)


def shipped_suites() -> dict[str, Path]:
    """Suites inside the package, by name."""
    import suites

    folder = Path(next(iter(suites.__path__)))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_suite(name_or_path: str) -> Path:
    """A path as it is, or the shipped suite of that name. Raises UserError when there is neither."""
    path = Path(name_or_path)
    if path.exists() or path.suffix in (".yaml", ".yml") or "/" in name_or_path:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a suite file")
        if not path.exists():
            there = [str(found) for found in path.parent.glob("*.y*ml")]
            near = did_you_mean(str(path), there)
            hint = near if near.startswith("did") else "`harness init` writes a suite"
            raise UserError(f"{path}: no such file; {hint}; shipped suites go by name: {', '.join(shipped_suites())}")
        return path
    shipped = shipped_suites()
    if name_or_path not in shipped:
        files = [found for suffix in (".yaml", ".yml") if (found := path.with_suffix(suffix)).is_file()]
        hint = f"did you mean '{files[0]}'?" if files else did_you_mean(name_or_path, shipped)
        raise UserError(f"no shipped suite '{name_or_path}': {hint}; or give the path of a file")
    return shipped[name_or_path]


def load_suite(name_or_path: str, settings: Sequence[str] = ()) -> Suite:
    """Read and resolve a suite; `settings` are `--set key=value` changes. Raises SuiteError with all problems."""
    source = read_yaml(find_suite(name_or_path))
    if "pretrain" in source.data:
        raise UserError(f"{source.file}: is a pre-training, which compares nothing: harness pretrain {name_or_path}")
    return _Resolver(source, parse_settings(settings, example="train.epochs=5")).resolve()


def words(error: Mapping[str, Any], known: Iterable[str]) -> str:
    """pydantic's message in the suite's words."""
    if error["type"] == "extra_forbidden":
        return f"unknown key; {did_you_mean(str(error['loc'][-1]), known)}"
    if error["type"] == "missing":
        return "is required"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "string_pattern_mismatch":
        message = "may hold letters, digits, '.', '_' and '-' only, 1 to 64 of them"
    given = error.get("input")
    shown = repr(given)
    return message if isinstance(given, dict | list) or len(shown) > 60 else f"{message}, got {shown}"


def _unsettable(key: str) -> str | None:
    """Why no override and no --set can change this key, or None; whether its section has the field is seen later."""
    section, dot, field = key.partition(".")
    if section not in SETTABLE or not dot:
        return f"unknown key; {did_you_mean(section, SETTABLE)} as in train.epochs"
    if field == section:
        return f"a {section} cannot become another one; give that one a label of its own under {section}s"
    return None


class _Resolver:
    """Turns a source into trials, collecting problems with the place each came from."""

    def __init__(self, source: Source, settings: dict[str, Any]) -> None:
        self.source, self.settings = source, settings
        self.problems: list[Problem] = []

    def resolve(self) -> Suite:
        data = dict(self.source.data)
        top = {key: value for key, value in self.settings.items() if "." not in key}
        for key, value in top.items():
            if key in FACETS or key in SECTIONS or key not in SuiteFile.model_fields:
                hint = did_you_mean(key, ["seeds", "train.epochs", "method.rank"])
                self.problems.append(Problem(f"--set {key}", None, "", f"cannot be set; {hint}"))
            else:
                data[key] = value
        file = self._model(SuiteFile, data, ())
        if file is None or self.problems:
            self._names(data)
            self._check_sections(data)
            raise SuiteError(self.problems)
        self._check_names(file)
        if self.problems:
            self._check_sections(data)
        trials = self._trials(file) if not self.problems else []
        if self.problems:
            raise SuiteError(self.problems)
        identities = sorted(f"{t.identity} {t.method_label} {t.backbone_label} {t.seed}" for t in trials)
        return Suite(
            name=file.name,
            description=file.description,
            digest=hashlib.sha256("\n".join(identities).encode()).hexdigest()[:16],
            text=self.source.text,
            trials=tuple(trials),
        )

    # Problems and where they stand

    def _problem(self, path: YamlPath, field: str, message: str) -> None:
        self.problems.append(Problem(self.source.file, self.source.line(path), field, message))

    def _model(
        self,
        model: type[BaseModel],
        values: Any,
        path: YamlPath,
        origin: Mapping[str, YamlPath] | None = None,
    ) -> Any:
        """Validate values found at `path`; `origin` says which of them came from elsewhere (overrides)."""
        try:
            return model.model_validate(values)
        except ValidationError as error:
            for item in error.errors():
                location = tuple(
                    part
                    for part in item["loc"]
                    if not str(part).startswith(("constrained", "function", "list[", "dict["))
                )
                location = tuple(p for p in location if p not in ("int", "str", "[key]"))
                place = (*path, *location)
                if origin and location and str(location[0]) in origin:
                    place = origin[str(location[0])]
                known = model.model_fields
                field = ".".join(map(str, (*path, *location) if not origin or place[: len(path)] == path else place))
                if place and place[0] == "--set":
                    self.problems.append(Problem(f"--set {place[1]}", None, "", words(item, known)))
                else:
                    self._problem(place, field, words(item, known))
            return None

    # Names

    def _names(self, data: Mapping[str, Any]) -> None:
        """Name what plug-ins are unknown even when the file's shape is wrong, so that nobody mends in rounds."""
        for index, name in enumerate(data.get("datasets") or [] if isinstance(data.get("datasets"), list) else []):
            if isinstance(name, str) and name not in registry.names("datasets"):
                self._problem(("datasets", index), f"datasets.{index}", registry.explain_unknown("datasets", name))
            elif isinstance(name, str) and (task := registry.get("datasets", name).task) not in TASKS:
                hint = f"suites train on {', '.join(TASKS)}; `harness data list` shows what each dataset is for"
                self._problem(("datasets", index), f"datasets.{index}", f"'{name}' is for {task}; {hint}")
        for kind in ("methods", "backbones"):
            entries = data.get(kind)
            for label, settings in entries.items() if isinstance(entries, dict) else ():
                if settings is None or isinstance(settings, dict):
                    self._plugin(kind, str(label), settings or {})

    def _plugin(self, kind: Any, label: str, settings: Mapping[str, Any]) -> str | None:
        key = kind.removesuffix("s")
        name = settings.get(key, label)
        if not isinstance(name, str) or name not in registry.names(kind):
            place = (kind, label, key) if key in settings else (kind, label)
            self._problem(place, ".".join(place), registry.explain_unknown(kind, str(name)))
            return None
        return name

    def _check_names(self, file: SuiteFile) -> None:
        self._names(self.source.data | {"datasets": file.datasets})
        if file.name in ("trials", "mlartifacts"):
            self._problem(("name",), "name", f"'{file.name}' is a folder of the harness itself; choose another")
        for label, reference in file.references.items():
            path = ("references", label)
            if (reference.baseline is None) == (reference.method is None):
                self._problem(path, ".".join(path), "needs either `baseline` or `method`")
            elif reference.baseline is not None and reference.baseline not in BASELINES:
                self._problem(
                    path,
                    ".".join(path),
                    f"unknown baseline '{reference.baseline}'; {did_you_mean(reference.baseline, BASELINES)}",
                )
            elif reference.method is not None and reference.method not in file.methods:
                self._problem(
                    path,
                    ".".join(path),
                    f"no method '{reference.method}' in this suite; {did_you_mean(reference.method, file.methods)}",
                )
            if label in file.methods:
                self._problem(path, ".".join(path), "a method has this label already")
        self._check_folds(file)
        for field in ("datasets", "seeds", "folds"):
            values = getattr(file, field)
            if isinstance(values, list):
                for index, value in enumerate(values):
                    if value in values[:index]:
                        self._problem((field, index), f"{field}.{index}", f"'{value}' is listed twice")
        labels = {"method": list(file.methods), "dataset": file.datasets, "backbone": list(file.backbones)}
        conditions: list[tuple[YamlPath, When]] = [
            (("exclude", index), when) for index, when in enumerate(file.exclude)
        ]
        conditions += [(("overrides", index, "when"), override.when) for index, override in enumerate(file.overrides)]
        for condition, when in conditions:
            for facet, wanted in when.items():
                for value in [wanted] if isinstance(wanted, str) else wanted:
                    if value not in labels[facet]:
                        hint = did_you_mean(value, labels[facet])
                        place: YamlPath = (*condition, facet)
                        self._problem(place, ".".join(map(str, place)), f"no {facet} '{value}' in this suite; {hint}")
        for index, override in enumerate(file.overrides):
            for key in override.set:
                place = ("overrides", index, "set", key)
                if (problem := _unsettable(key)) is not None:
                    self._problem(place, f"overrides.{index}.set", f"'{key}': {problem}")
        for key in self.settings:
            if "." in key and (problem := _unsettable(key)) is not None:
                self.problems.append(Problem(f"--set {key}", None, "", problem))

    def _check_folds(self, file: SuiteFile) -> None:
        if file.folds is None:
            return
        found = {name: registry.get("datasets", name) for name in file.datasets if name in registry.names("datasets")}
        having = {name: found.folds for name, found in found.items() if found.folds}
        if not having:
            self._problem(("folds",), "folds", "no dataset of this suite comes in folds; remove it")
        for name, count in having.items():
            if (highest := max(indices(file.folds))) >= count:
                self._problem(("folds",), "folds", f"{name} has the folds 0 to {count - 1}, and no fold {highest}")

    def _check_sections(self, data: Mapping[str, Any]) -> None:
        """Check every section as it stands when trials cannot be resolved, so that nobody mends in rounds."""
        for section, model in SECTIONS.items():
            if isinstance(data.get(section), dict):
                self._model(model, data[section], (section,))
        kinds: tuple[registry.Kind, ...] = ("methods", "backbones")
        for kind in kinds:
            entries = data.get(kind)
            for label, settings in entries.items() if isinstance(entries, dict) else ():
                values = dict(settings) if isinstance(settings, dict) else {}
                name = values.pop(kind.removesuffix("s"), label)
                if name in registry.names(kind):
                    self._model(registry.get(kind, name), values, (kind, label))

    # Trials

    def _trials(self, file: SuiteFile) -> list[Trial]:
        seeds = indices(file.seeds)
        folds = {dataset: _folds(file, registry.get("datasets", dataset)) for dataset in file.datasets}
        size = sum(map(len, folds.values())) * len(file.backbones) * len(file.methods) * len(seeds)
        if size > MAX_TRIALS:
            self._problem((), "", f"{size:,} trials; at most {MAX_TRIALS:,} fit one suite")
            return []
        trials: list[Trial] = []
        for dataset, backbone, method in product(file.datasets, file.backbones, file.methods):
            labels = {"method": method, "dataset": dataset, "backbone": backbone}
            if any(matches(when, labels) for when in file.exclude):
                continue
            first = self._trial(file, labels)
            if first is not None:
                trials += [first.at_fold(fold).with_seed(seed) for fold in folds[dataset] for seed in seeds]
        if not trials and not self.problems:
            self._problem(("exclude",), "exclude", "leaves no trial")
        if not self.problems:
            self._refuse_twins(trials)
            for label, reference in file.references.items():
                trials += self._reference_trials(label, reference, trials)
        return trials

    def _settings_for(
        self, file: SuiteFile, labels: Mapping[str, str]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, YamlPath]]]:
        """Each section's values for one combination, and where those came from that an override changed."""
        values = {section: dict(getattr(file, section)) for section in SECTIONS}
        values["method"] = dict(file.methods[labels["method"]] or {})
        values["backbone"] = dict(file.backbones[labels["backbone"]] or {})
        origins: dict[str, dict[str, YamlPath]] = {section: {} for section in values}
        layers: list[tuple[dict[str, Any], YamlPath]] = [
            (override.set, ("overrides", index, "set"))
            for index, override in enumerate(file.overrides)
            if matches(override.when, labels)
        ]
        layers.append(({k: v for k, v in self.settings.items() if "." in k}, ("--set",)))
        for changes, place in layers:
            for key, value in changes.items():
                section, _, field = key.partition(".")
                values[section][field] = value
                origins[section][field] = (*place, key)
        return values, origins

    def _trial(self, file: SuiteFile, labels: Mapping[str, str]) -> Trial | None:
        method, dataset, backbone = labels["method"], labels["dataset"], labels["backbone"]
        values, origins = self._settings_for(file, labels)
        before = len(self.problems)
        sections = {name: self._model(model, values[name], (name,), origins[name]) for name, model in SECTIONS.items()}
        method_name = str(values["method"].pop("method", method))
        backbone_name = str(values["backbone"].pop("backbone", backbone))
        settings = self._model(
            registry.get("methods", method_name), values["method"], ("methods", method), origins["method"]
        )
        encoder = self._model(
            registry.get("backbones", backbone_name),
            values["backbone"],
            ("backbones", backbone),
            origins["backbone"],
        )
        if encoder is not None and encoder.weights != "random":
            self._check_weights(encoder, backbone_name, ("backbones", backbone, "weights"))
        if len(self.problems) > before or settings is None or encoder is None:
            return None
        declaration = registry.get("datasets", dataset)
        points = sections["data"].points or encoder.default_points
        if points > declaration.points:
            self._problem(
                ("data", "points"),
                f"{dataset} x {backbone}",
                f"{points} points asked, {dataset} holds {declaration.points} per cloud; set data.points",
            )
        for message in encoder.problems(points):
            self._problem(("backbones", backbone), f"backbones.{backbone}", f"{message} ({dataset})")
        for message in misfits(settings.on(encoder), encoder):
            self._problem(("methods", method), f"methods.{method}", f"{message} (on {backbone})")
        for field, message in sharing_problems(sections["train"], sections["resources"]):
            self._problem(tuple(field.split(".")), field, f"{message} ({method} on {dataset})")
        if sections["protocol"].selection == "validation" and not sections["protocol"].validation_fraction:
            self._problem(
                ("protocol", "selection"),
                "protocol.selection",
                "validation needs protocol.validation_fraction above 0",
            )
        if len(self.problems) > before:
            return None
        trial = Trial(
            method_label=method,
            backbone_label=backbone,
            method_name=method_name,
            method=settings,
            backbone_name=backbone_name,
            backbone=encoder,
            dataset=declaration,
            train=sections["train"],
            protocol=sections["protocol"],
            data=sections["data"].model_copy(update={"points": points}),
            resources=sections["resources"],
            keep=file.keep,
        )
        for field, message in task_of(declaration).problems(trial):
            path = ("backbones", backbone) if field == "backbone" else tuple(field.split("."))
            self._problem(path, ".".join(path), f"{message} ({dataset})")
        return trial if len(self.problems) == before else None

    def _check_weights(self, encoder: Any, backbone_name: str, path: tuple[str, ...]) -> None:
        try:
            declared = find_weights(encoder.weights)
        except UserError as error:
            self._problem(path, ".".join(path), str(error))
            return
        if declared.backbone != backbone_name or declared.misfit(encoder):
            why = declared.misfit(encoder) or f"they are of {declared.backbone}"
            self._problem(path, ".".join(path), f"weights '{encoder.weights}' do not fit: {why}")

    def _reference_trials(self, label: str, reference: Reference, trials: Sequence[Trial]) -> list[Trial]:
        """A method on other weights: its trials with those. A baseline: one trial per dataset and points."""
        found: dict[str, Trial] = {}
        for trial in trials:
            if reference.baseline is not None:
                if not task_of(trial.dataset).baselines:
                    why = f"baselines are for classification, and {trial.dataset.name} is for {trial.dataset.task}"
                    self._problem(("references", label), f"references.{label}", why)
                    break
                twin = replace(trial, method_label=label, baseline=reference.baseline, seed=0, reference=True)
            elif trial.method_label == reference.method and not trial.reference:
                backbone = trial.backbone.model_copy(update={"weights": reference.weights})
                if reference.weights != "random":
                    self._check_weights(backbone, trial.backbone_name, ("references", label, "weights"))
                twin = replace(trial, method_label=label, backbone=backbone, reference=True)
            else:
                continue
            found.setdefault(twin.identity, twin)
        return list(found.values())

    def _refuse_twins(self, trials: Sequence[Trial]) -> None:
        first: dict[str, Trial] = {}
        for trial in trials:
            twin = first.setdefault(trial.identity, trial)
            if twin is not trial:
                self._problem(
                    ("methods", trial.method_label),
                    f"methods.{trial.method_label}",
                    f"is the same trial as {twin.method_label} on {twin.backbone_label}, {twin.dataset.name} "
                    f"(seed {twin.seed}); change a setting or remove one",
                )
