"""Whether every link of a built site leads somewhere, and no page loads anything from elsewhere."""

import os
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}


class Page(HTMLParser):
    """The links, what is loaded, and the anchors of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in LOADED and LOADED[tag] in found:
            self.loads.append(found[LOADED[tag]])


def faults(site: Path) -> tuple[list[str], int, int]:
    """What is wrong, each with its page; how many links and files within the site were looked at; how many pages."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}

    def wrong(path: Path, page: Page) -> Iterator[str]:
        for target in page.loads:
            if urlsplit(target).netloc:
                yield f"is loaded from elsewhere: {target}"
        for target in page.links + page.loads:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            there = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            there = there / "index.html" if there.is_dir() else there
            if not there.is_file() or not there.is_relative_to(site):
                yield f"leads nowhere: {target}"
            elif there in pages and unquote(parts.fragment) not in pages[there].anchors:
                yield f"has no such place: {target}"

    said = [f"{path.relative_to(site)}: {fault}" for path, page in pages.items() for fault in wrong(path, page)]
    inner = sum(not urlsplit(link).scheme for page in pages.values() for link in page.links + page.loads)
    return said, inner, len(pages)
