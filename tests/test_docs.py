"""What README and docs point to is there, and the commands they show are commands."""

import re
import shlex
from pathlib import Path

import pytest

from galiplib.cli import parser

ROOT = Path(__file__).parents[1]
PAGES = [page for folder in (".", "docs", "data", "outputs", "benchmarks") for page in (ROOT / folder).glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    links += [ROOT / path for path in re.findall(r"`((?:galiplib|tests|benchmarks|docs)/[\w/.]+\.\w+)`", text)]
    assert not [str(link) for link in links if not (page.parent / link).exists()]


def commands():
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            if found := re.match(r"(?:\.venv/bin/)?galip (.+)", line):
                yield pytest.param(shlex.split(found[1], comments=True), id=found[1][:50])


@pytest.mark.parametrize("words", commands())
def test_commands_are_understood(words):
    assert parser().parse_args(words)
