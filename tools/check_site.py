"""Read the built site as a crawler would: links resolve, nothing loads from another host, images have alt.

Usage: python -m tools.check_site [FOLDER]
"""

import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tools.repository import ROOT

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
NOT_LOADED = {"canonical", "search", "next", "prev", "index", "author"}


@dataclass
class Page(HTMLParser):
    """What a page refers to, and what it can be referred to by."""

    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=lambda: {"", "top"})
    without_alt: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record one tag."""
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.anchors.add(values["id"])
        if tag == "a" and "name" in values:
            self.anchors.add(values["name"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADED and LOADED[tag] in values and values.get("rel") not in NOT_LOADED:
            self.loads.append(values[LOADED[tag]])
        if tag == "img" and not values.get("alt", "").strip():
            self.without_alt.append(values.get("src", "")[:60])


def problems(site: Path) -> list[str]:
    """All faults of the site under ``site``, one line each."""
    pages = {path: _read(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name}: image without alt text: {source}" for source in page.without_alt]
        found += [f"{name}: loads from another host: {url}" for url in page.loads if _is_remote(url)]
        for url in {url for url in [*page.links, *page.loads] if not _is_remote(url)}:
            fault = _fault(url, path, pages, site)
            if fault:
                found.append(f"{name}: {fault}: {url}")
    return found


def _read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def _is_remote(url: str) -> bool:
    return bool(urlsplit(url).netloc) or urlsplit(url).scheme in ("mailto", "data", "javascript")


def _fault(url: str, path: Path, pages: dict[Path, Page], site: Path) -> str | None:
    parts = urlsplit(url)
    target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
    if parts.path.startswith("/"):
        target = site / unquote(parts.path.lstrip("/"))
    if target.is_dir():
        target = target / "index.html"
    if not target.exists():
        return "dead link"
    if parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
        return "dead anchor"
    return None


if __name__ == "__main__":
    faults = problems(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "_build" / "html").resolve())
    print(*faults, f"{len(faults)} problems", sep="\n")
    sys.exit(bool(faults))
