"""Code with one thing changed, to show that a check can fail.

    with running(Mutant("methods.lora", "zeros", "ones", "...")):
        ...  # the harness and its methods run the changed module

The change is made in a module's source: the text to replace must occur exactly once, so a mutant that the code has
outgrown fails loudly instead of passing for ever.
"""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import pytest

from harness import registry

OURS = ("harness", "methods", "tests")
KINDS: tuple[registry.Kind, ...] = ("methods", "backbones")


@dataclass(frozen=True)
class Mutant:
    """One change, and why it must not go unnoticed. With `before` and `after` empty, the module as it is."""

    module: str
    before: str
    after: str
    why: str

    def __str__(self) -> str:
        return f"{self.module.rpartition('.')[2]}: {self.why}"

    def source(self) -> str:
        """The changed source. Raises AssertionError unless the text to replace occurs exactly once."""
        text = inspect.getsource(import_module(self.module))
        if not self.before:
            return text
        found = text.count(self.before)
        assert found == 1, f"{self.module} has {self.before!r} {found} times; bring this mutant up to date"
        return text.replace(self.before, self.after)


def unchanged(module: str) -> Mutant:
    """The module as it is, by the same way as a mutant: what passes then fails for the change alone."""
    return Mutant(module, "", "", "unchanged")


@contextmanager
def running(mutant: Mutant) -> Iterator[ModuleType]:
    """The changed module in place of the original, wherever our code has hold of the original or its parts."""
    original = import_module(mutant.module)
    for kind in KINDS:  # what is first imported while the mutant runs would keep its parts for ever
        for name in registry.installed(kind):
            registry.get(kind, name)
    changed = ModuleType(mutant.module)
    changed.__file__ = original.__file__
    code = compile(mutant.source(), f"<{mutant}>", "exec")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, mutant.module, changed)
        exec(code, changed.__dict__)
        replacement = {
            id(part): changed.__dict__[name]
            for name, part in vars(original).items()
            if getattr(part, "__module__", None) == mutant.module
        } | {id(original): changed}
        for name, module in list(sys.modules.items()):
            if module is not changed and name.partition(".")[0] in OURS:
                for key, value in list(vars(module).items()):
                    if id(value) in replacement:
                        patch.setattr(module, key, replacement[id(value)])
        registry._load.cache_clear()
        try:
            yield changed
        finally:
            registry._load.cache_clear()
