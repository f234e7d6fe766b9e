"""What MkDocs is told beside mkdocs.yml: the front page is the README, and links that leave these docs are plain text.

On GitHub the pages link to files of the repository; the site has the docs alone. `repo_url` in mkdocs.yml, once there
is a public address, turns such links into links to it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
COPIED = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s:]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Pages that lie beside the docs folder."""
    for source, page in COPIED.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as the repository has them, as the site needs them."""
    here = posixpath.dirname(page.file.src_uri)
    source = "." if page.file.src_uri in COPIED.values() else posixpath.join("docs", here)

    def on_the_site(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        path, mark, anchor = target.partition("#")
        if not path:
            return match[0]
        path = posixpath.normpath(posixpath.join(source, path))  # in the repository
        there = COPIED.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(there):
            return f"{image}[{text}]({posixpath.relpath(there, here or '.')}{mark}{anchor})"
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path})" if config.repo_url else text

    # What GitHub takes for markdown inside <details>, Python's Markdown takes for text unless it is told.
    return LINK.sub(on_the_site, markdown).replace("<details>", "<details markdown>")
