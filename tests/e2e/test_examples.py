"""The configurations in examples/ and on the pages: JupyterHub knows every name in them.

That they start sessions is seen where hubs are: test_slurm.py and test_one_machine.py run on them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import Any

import pytest
from e2e.examples import EXAMPLES

from conftest import TEST_ROOT
from helpers import PROJECT, cannot

pytestmark = pytest.mark.e2e

HUB_PYTHON = TEST_ROOT / "hub-venv" / "bin" / "python"
SPAWNERS = {
    "slurm_config.py": "SlurmSpawner",
    "gridengine_config.py": "GridengineSpawner",
    "one_machine_config.py": "LocalProcessSpawner",
}
NOT_INSTALLED = {"ProfilesSpawner.profiles"}
"""Settings on the pages, of packages that are not here."""
MISSPELT = "c.SlurmSpawner.req_partitoin = 'x'\nc.SlurmSpanwer.cmd = []\n"

# Prints what each file sets, and what of it no class has: JupyterHub itself says nothing of a
# misspelt setting of a Spawner's.
LOAD = """
import json, sys
import batchspawner, jupyterhub.app, jupyterhub.spawner
def look(path):
    hub = jupyterhub.app.JupyterHub()
    hub.load_config_file(path)
    made, unknown = {}, []
    for section, settings in hub.config.items():
        modules = (jupyterhub.app, jupyterhub.spawner, batchspawner)
        kind = next((vars(each)[section] for each in modules if section in vars(each)), None)
        for name, value in settings.items():
            made[f"{section}.{name}"] = value
            if kind is None or name not in kind.class_traits(config=True):
                unknown.append(f"{section}.{name}")
    hub.update_config(hub.config)
    return {"made": made, "unknown": unknown, "spawner": hub.spawner_class.__name__}
print(json.dumps({path: look(path) for path in sys.argv[1:]}, default=str))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What JupyterHub makes of each example, as it is and with what is commented out in it."""
    if not HUB_PYTHON.exists():
        cannot("no JupyterHub; tests/setup.sh installs it")
    folder = tmp_path_factory.mktemp("examples")
    for name in SPAWNERS:
        text = (EXAMPLES / name).read_text()
        (folder / name).write_text(text)
        (folder / f"all of {name}").write_text(text.replace("\n# c.Spawner", "\nc.Spawner"))
    (folder / "misspelt.py").write_text(MISSPELT)
    for name, block in blocks().items():
        (folder / name).write_text(block)
    command = [str(HUB_PYTHON), "-c", LOAD, *sorted(os.listdir(folder))]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


def blocks() -> dict[str, str]:
    """The configurations on the pages, each as a file; "…" stands for more words. A page's other
    programs (frameworks) set nothing of JupyterHub's."""
    found = {}
    for page in [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]:
        texts = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
        settings = [text for text in texts if re.search(r"^ *c\.", text, re.MULTILINE)]
        for number, text in enumerate(settings):
            found[f"{page.stem} {number}.py"] = text.replace("…", "'more'")
    return found


@pytest.mark.parametrize("name", blocks())
def test_jupyterhub_knows_each_name_on_the_pages(loaded: dict[str, Any], name: str) -> None:
    found = loaded[name]
    assert found["made"]
    assert set(found["unknown"]) <= NOT_INSTALLED


@pytest.mark.parametrize("prefix", ["", "all of "])
@pytest.mark.parametrize("name", SPAWNERS)
def test_jupyterhub_knows_each_name(loaded: dict[str, Any], name: str, prefix: str) -> None:
    found = loaded[prefix + name]
    assert found["unknown"] == []
    assert found["spawner"] == SPAWNERS[name]
    archive, server = found["made"]["Spawner.cmd"]
    assert archive.endswith("/batchspawner-portwrap.pyz")
    assert server == "jupyterhub-singleuser"
    asked = bool(prefix) and name == "slurm_config.py"
    assert ("Spawner.environment" in found["made"]) == asked


def test_a_misspelt_name_is_seen(loaded: dict[str, Any]) -> None:
    """The control of the test above."""
    wanted = ["SlurmSpawner.req_partitoin", "SlurmSpanwer.cmd"]
    assert loaded["misspelt.py"]["unknown"] == wanted


def test_every_example_is_among_them() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SPAWNERS)
