"""Any tuner of Hugging Face's peft library that works on linear layers: DoRA, rsLoRA, IA3, OFT, VeRA and more.

The library (https://github.com/huggingface/peft) puts its layers around the chosen linear layers of every block;
which tuner, and its settings, are the library's own names. The default is DoRA, Liu et al., ICML 2024,
arXiv 2402.09353, equation 5: W' = m (W + B A) / |W + B A|, with a length per output and rows of unit length.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import torch
from pydantic import Field, JsonValue, TypeAdapter, ValidationError, model_validator
from torch import nn

from harness.errors import UserError, did_you_mean
from harness.method import Adapted, Method, Task
from harness.models.backbone import Backbone
from harness.models.encoder import Encoder, Renames

# peft is imported where it is used: it is an extra, and importing it takes seconds.

Target = Literal["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
TARGETS: tuple[Target, ...] = get_args(Target)

MISSING = "needs the package peft: pip install 'pointpeft-harness[peft]'"

DEFAULT_CONFIGS: dict[str, dict[str, JsonValue]] = {"lora": {"r": 32, "lora_alpha": 32, "use_dora": True}}
"""What a tuner gets when no config is given; the library's own defaults where none is here."""

READS_WEIGHTS = "it reads the weights while it is built, and parameters are counted before there are any"
REFUSED = {
    "dora": "it is tuner lora with config {use_dora: true}",
    "rslora": "it is tuner lora with config {use_rslora: true}",
    "adalora": "it moves ranks between layers while it trains, by calls that are no part of a training step here",
    "adaption_prompt": "it is for the attention of Llama",
    "adamss": READS_WEIGHTS,
    "boft": "what it builds depends on whether a compiler is there",
    "frod": READS_WEIGHTS,
    "shira": READS_WEIGHTS,
    "ln_tuning": "it is for norms, not for linear layers; see bitfit and ssf",
    "osf": "its layers hold functions that cannot be copied or sent to another process",
    "poly": "it needs a task's number beside every input",
    "shadow": "it needs a language model",
    "trainable_tokens": "it is for embeddings of words",
    "xlora": "it mixes LoRAs that were trained before",
    **dict.fromkeys(
        ("cartridge", "cpt", "multitask_prompt_tuning", "p_tuning", "prefix_tuning", "prompt_tuning"),
        "it makes prompts for language models; see vpt and prefix_tuning",
    ),
}
"""Tuners of the library, or names of them, that do not work here, and why."""

SET_HERE = {
    "peft_type": "it follows from `tuner`",
    "target_modules": "use `targets`",
    **dict.fromkeys(
        ("exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters", "feedforward_modules"),
        "it follows from `targets`",
    ),
    **dict.fromkeys(("modules_to_save", "trainable_token_indices"), "what else trains is the method's to say"),
    **dict.fromkeys(("task_type", "inference_mode", "auto_mapping", "peft_version"), "it says nothing here"),
    **dict.fromkeys(("base_model_name_or_path", "revision"), "weights are the backbone's"),
    **dict.fromkeys(
        ("megatron_config", "megatron_core", "layer_replication", "alora_invocation_tokens", "ensure_weight_tying"),
        "it is for language models",
    ),
    **dict.fromkeys(("use_qalora", "qalora_group_size"), "it is for quantised weights"),
}
"""Keys of the library's configs that cannot be set, and why."""

BEGINNINGS_ELSEWHERE = ("eva", "corda", "loftq")
"""Values of `init_lora_weights` that want data or quantised weights first, and change nothing without."""

SHARE_TENSORS = ("lily",)
"""Tuners whose layers share tensors, beside those of which the library says so (`uses_shared_state`)."""


class HFPeft(Method):
    """A tuner of the peft library on chosen linear layers of every block; class token and position train too."""

    peft_names: ClassVar[Renames] = (
        (r"\.default(?=\.|$)", ""),
        (r"\.lora_magnitude_vector\.weight$", ".lora_magnitude_vector"),
    )

    tuner: str = "lora"
    """The library's name, in lower case: lora, ia3, oft, vera, ..."""
    config: dict[str, JsonValue] = DEFAULT_CONFIGS["lora"]
    """The tuner's settings by the library's names. Not given, `lora` is DoRA of rank 32, others have its defaults."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = ("attn.qkv",)

    @model_validator(mode="before")
    @classmethod
    def _fill_config(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "config" in given:
            return given
        tuner = str(given.get("tuner", cls.model_fields["tuner"].default))
        return given | {"config": copy.deepcopy(DEFAULT_CONFIGS.get(tuner, {}))}

    def problems(self, backbone: Backbone) -> list[str]:
        """The library is missing, does not know the names, or does not take the values on this backbone."""
        if find_spec("peft") is None:
            return [MISSING]
        _, found = read_config(self.tuner, self.config)
        if found:
            return found
        try:  # on shapes alone: sizes that do not divide are known then
            with torch.random.fork_rng(devices=()), warnings.catch_warnings(action="ignore"), torch.device("meta"):
                self.adapt(backbone.build(drop_path=0.0), Task(classes=2, train_items=1))
        except Exception as error:  # whatever the library raises
            return [f"peft refuses tuner '{self.tuner}' with this config: {' '.join(str(error).split())}"]
        return []

    def adapt(self, encoder: Encoder, task: Task) -> Adapted:
        """Let the library put its layers around each target, and declare what it added and unfroze."""
        names = {id(module): name for name, module in encoder.named_modules()}
        tuner, config = self._library(
            {target: [names[id(block.get_submodule(target))] for block in encoder.plain_blocks] for target in TARGETS}
        )
        own = {id(parameter) for parameter in encoder.parameters()}
        with torch.device("cpu"):  # what is drawn is drawn here, and goes where the encoder is
            tuner(encoder, config, adapter_name="default")
        trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        added = [parameter for parameter in trained if id(parameter) not in own]
        return Adapted(
            encoder,
            added=added,
            unfrozen=[*encoder.class_parameters, *(p for p in trained if id(p) in own)],  # `bias: all`
            no_decay=[p for p in added if p.numel() == max(p.shape)],  # vectors, also where they lie in a matrix
        )

    def merged(self, encoder: nn.Module) -> Encoder | None:
        """The encoder with the tuner's part in its weights, where the library can compute it into them."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        assert isinstance(encoder, Encoder)
        for owner in list(encoder.modules()):
            for name, layer in list(owner.named_children()):
                if isinstance(layer, BaseTunerLayer):
                    try:
                        layer.merge()
                    except Exception:  # whatever the library raises where it cannot
                        return None
                    owner.register_module(name, layer.get_base_layer())
        return encoder

    def peft_config(self) -> dict[str, Any] | None:
        """The library's own; None for tuners whose layers share tensors: its files hold them otherwise than ours."""
        tuner, config = self._library({target: [target] for target in TARGETS})
        if tuner.uses_shared_state or self.tuner in SHARE_TENSORS:
            return None
        described = {key: value for key, value in config.to_dict().items() if key in plain_keys(self.tuner)}
        return {key: sorted(value) if isinstance(value, set) else value for key, value in described.items()}

    def _library(self, places: dict[Target, list[str]]) -> tuple[Any, Any]:
        """The library's class of the tuner, and its config for the layers at those places.

        Raises UserError where the library is not installed, or does not take these settings.
        """
        if find_spec("peft") is None:
            raise UserError(f"hf_peft {MISSING}")
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

        values, found = read_config(self.tuner, self.config)
        if found:
            raise UserError("\n".join(f"hf_peft: {problem}" for problem in found))
        values["target_modules"] = [place for target in dict.fromkeys(self.targets) for place in places[target]]
        if "feedforward_modules" in plain_keys(self.tuner):
            # (IA)^3 scales the hidden layer where it enters the second linear layer, and other layers' outputs.
            values["feedforward_modules"] = places["mlp.fc2"] if "mlp.fc2" in self.targets else []
        config = layer_tuners()[self.tuner](**values)
        return PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type], config


def read_config(tuner: str, config: Mapping[str, JsonValue]) -> tuple[dict[str, Any], list[str]]:
    """The values for the library's config class, read by its annotations, and what is wrong with them."""
    if tuner in REFUSED:
        return {}, [f"tuner '{tuner}' cannot be had: {REFUSED[tuner]}"]
    known = layer_tuners()
    if tuner not in known:
        return {}, [f"unknown tuner '{tuner}'; {did_you_mean(tuner, known)}"]
    types = plain_keys(tuner)
    values, found = {}, []
    for key, value in config.items():
        if key in SET_HERE:
            found.append(f"config.{key} cannot be set: {SET_HERE[key]}")
        elif key not in types:
            hint = did_you_mean(key, types.keys() - SET_HERE.keys())
            found.append(f"the config of {tuner} has no '{key}' that a suite could hold; {hint}")
        elif key == "init_lora_weights" and value in BEGINNINGS_ELSEWHERE:
            found.append(f"config.{key}: '{value}' wants data or quantised weights first, and there are none here")
        else:
            try:
                values[key] = TypeAdapter(types[key]).validate_python(copy.deepcopy(value))
            except ValidationError as error:
                found.append(f"config.{key}: {error.errors()[0]['msg']}, got {value!r}")
    return values, found


def layer_tuners() -> dict[str, Any]:
    """The library's config classes, by name of the tuner, of those that work here."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    known = {kind.value.lower(): PEFT_TYPE_TO_CONFIG_MAPPING[kind] for kind in PEFT_TYPE_TO_TUNER_MAPPING}
    return {name: config for name, config in known.items() if name not in REFUSED}


@cache
def plain_keys(tuner: str) -> dict[str, Any]:
    """Types of a config's keys, of those that a suite can hold: without the library's own classes."""
    hints = get_type_hints(layer_tuners()[tuner])
    return {key: annotation for key, annotation in hints.items() if _plain(annotation)}


def _plain(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return True
    return not is_dataclass(annotation) and all(_plain(part) for part in get_args(annotation))
