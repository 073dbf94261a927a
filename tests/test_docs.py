"""Everything shown is executed: every Python snippet of the README and docs/, in order, a file at a time."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
EVERY_PAGE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [path for path in EVERY_PAGE if FENCE.search(path.read_text())]
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
# Words that belong to where the project is built, never into it.
FOREIGN = re.compile(r"(/work/|\.library|/root/|/tmp/|pypi-more)")


def test_the_readme_has_snippets():
    assert PAGES[0].name == "README.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_run(page, tmp_path):
    script = tmp_path / "snippets.py"
    script.write_text("\n".join(FENCE.findall(page.read_text(encoding="utf-8"))), encoding="utf-8")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    missing = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    assert not missing
    assert not FOREIGN.search(text)


def test_the_documented_commands_exist():
    text = "\n".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    commands = set(re.findall(r"^(?:\$ )?gmsa ((?:train|eval|data) [a-z]+|[a-z-]+)", text, re.MULTILINE))
    assert {"index", "ask", "train keft", "eval qa"} <= commands
    for command in sorted(commands):
        done = subprocess.run(
            [sys.executable, "-m", "gmsa_rag.cli", *command.split(), "--help"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"gmsa {command}: {done.stderr}"
