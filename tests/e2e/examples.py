"""The configurations in examples/, with a site's own words in the place of those to be changed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Mapping

from helpers import PROJECT

EXAMPLES = PROJECT / "examples"


def adapted(name: str, words: Mapping[str, str], folder: Path) -> Path:
    """Write the example to this folder, as an administrator would change it: its capitals."""
    text = (EXAMPLES / name).read_text()
    names = re.findall(r"^([A-Z]+) = ", text, re.MULTILINE)
    assert sorted(names) == sorted(words), f"{name} asks for {names}"
    for word, value in words.items():
        text = re.sub(rf"^{word} = .*$", f"{word} = {value!r}", text, flags=re.MULTILINE)
    path = folder / name
    path.write_text(text)
    return path
