"""Where the book lives: read the repository's address, or write it to every place that needs it.

Usage: python -m tools.repository https://github.com/<owner>/<name>
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACEHOLDER = "OWNER/REPO"
FILES = ("_config.yml", "pyproject.toml", "CITATION.cff", "*.md", "chapters/*.ipynb")


def repository(root: Path = ROOT) -> str:
    """The repository as owner/name; ``OWNER/REPO`` while it is unknown."""
    urls = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    return urls["Repository"].removeprefix("https://github.com/")


def addresses(slug: str) -> tuple[str, ...]:
    """The forms in which the address of owner/name stands in the project."""
    owner, name = slug.split("/")
    return f"github.com/{owner}/{name}", f"github/{owner}/{name}", f"{owner}.github.io/{name}"


def set_repository(url: str, root: Path = ROOT) -> list[Path]:
    """Write the address to all places; the files that changed."""
    match = re.fullmatch(r"https://github\.com/([\w-]+/[\w.-]+?)(\.git|/)?", url)
    if not match:
        raise ValueError(f"URL must be https://github.com/<owner>/<name>, got {url}")
    changed = []
    for path in sorted(path for pattern in FILES for path in root.glob(pattern)):
        text = new = path.read_text(encoding="utf-8")
        for old_address, address in zip(addresses(repository(root)), addresses(match[1]), strict=True):
            new = re.sub(re.escape(old_address) + r"(?![\w-])", address, new)
        if new != text:
            changed.append((path, new))
    for path, new in changed:
        path.write_text(new, encoding="utf-8")
    return [path for path, _ in changed]


if __name__ == "__main__":
    try:
        for path in set_repository(*sys.argv[1:]):
            print("wrote", path.relative_to(ROOT))
    except (TypeError, ValueError) as error:
        sys.exit(f"error: {error}\nusage: make repository URL=https://github.com/<owner>/<name>")
