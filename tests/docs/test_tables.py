"""Tables of the documentation leave nothing out: keys, datasets, methods, suites, columns, files."""

import re

import pytest

from harness import registry
from harness.reporter import as_reporter
from harness.suite import shipped_suites
from harness.suite_file import SECTIONS
from reports.columns import COLUMNS
from tests.docs.pages import ROOT

DOCS = ROOT / "docs"


def words(page: str) -> set[str]:
    return set(re.findall(r"[\w.]+", (DOCS / page).read_text()))


@pytest.mark.parametrize("section", SECTIONS)
def test_keys_of_a_suite(section: str) -> None:
    told = words("suite.md")
    fields = SECTIONS[section].model_fields
    assert not {field for field in fields if not {field, f"{section}.{field}"} & told}


def test_datasets() -> None:
    text = (DOCS / "datasets.md").read_text()
    short = {name: f"_{name.rpartition('_')[2]}" for name in registry.installed("datasets") if "_fewshot_" in name}
    missing = {
        name for name in registry.installed("datasets") if not {f"`{name}`", f"`{short.get(name)}`"} & quoted(text)
    }
    assert not missing


def quoted(text: str) -> set[str]:
    return set(re.findall(r"`[^`\n]+`", text))


def test_methods() -> None:
    headings = " ".join(re.findall(r"(?m)^\*\*(.+?)\.\*\*", (DOCS / "methods.md").read_text()))
    assert not set(registry.installed("methods")) - set(re.findall(r"\w+", headings))


def test_suites() -> None:
    told = set().union(*(words(page.name) for page in DOCS.glob("*.md") if page.name != "log.md"))
    assert not {name.removesuffix(".yaml") for name in shipped_suites()} - told


def test_columns_and_files_of_a_report() -> None:
    text = (DOCS / "reports.md").read_text()
    rows = {title for row in re.findall(r"(?m)^\| ([A-Z][^|]+) \|", text) for title in row.split(", ")}
    assert not {column.title for column in COLUMNS if column.shown != "never"} - rows
    files = {as_reporter(name, registry.get("reporters", name)).file for name in registry.installed("reporters")}
    assert not {file for file in files if f"`{file}" not in text}


@pytest.mark.parametrize("folder", ["harness", "reports"])
def test_files_of_the_house(folder: str) -> None:
    text = (DOCS / "architecture.md").read_text()
    files = [path for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"]
    assert not {path.name for path in files if f"{path.name}`" not in text}


def test_every_page_leads_from_the_front_page_or_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text()
    assert not {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if f": {page.relative_to(DOCS)}" not in menu}
