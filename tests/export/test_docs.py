"""Every Python snippet in the README and the docs runs, every local link leads somewhere, every command exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sana_export.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SNIPPETS = [
    pytest.param(code, id=f"{page.name}-{i}")
    for page in PAGES
    for i, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_a_snippet_runs_beside_a_bundle(code, built, tmp_path):
    (tmp_path / "bundle").symlink_to(built("sana").path)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_local_links_lead_to_files(page):
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
    local = [target for target in targets if "://" not in target]
    assert not [target for target in local if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_scripts_that_are_named_exist(page):
    text = page.read_text()
    named = set(re.findall(r"sana-export ([a-z]+)\b", text)) - {"or"}
    scripts = set(re.findall(r"\b((?:bench|tests|docs)/[\w/]+\.py)", text))
    assert named <= set(COMMANDS)
    assert not [script for script in scripts if not (ROOT / script).exists()]
