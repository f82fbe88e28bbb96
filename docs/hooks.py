"""For mkdocs: the project's other pages, and what the pages link to, become parts of the site.

The pages link to each other as the files of the repository do, so that they can be read there.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any

from mkdocs.structure.files import File, Files

PROJECT = Path(__file__).resolve().parent.parent
DOCS = "docs"
OTHERS = (
    "*.md",
    "LICENSE",
    "bench/*.md",
    "bench/*.svg",
    "examples/*.py",
    "examples/*.service",
    "portwrap/launch/story.py",
)
LINK = re.compile(r"(\]\()([^):#]+)((?:#[^)]*)?\))")


def on_files(files: Files, config: Any) -> Files:
    """Add what is not below docs/, under its path in the repository."""
    for pattern in OTHERS:
        for path in sorted(PROJECT.glob(pattern)):
            name = path.relative_to(PROJECT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point the links to where the files are in the site."""
    name = page.file.src_uri
    source = name if (PROJECT / name).exists() else f"{DOCS}/{name}"

    def moved(match: re.Match[str]) -> str:
        target = normpath(join(dirname(source), match.group(2)))
        place = target[len(DOCS) + 1 :] if target.startswith(f"{DOCS}/") else target
        ups = "../" * name.count("/")
        return f"{match.group(1)}{ups}{place}{match.group(3)}"

    return LINK.sub(moved, markdown)
