"""A hook of mkdocs: what the documents link to elsewhere in the repository becomes part of the site.

On a code host `[the tree](../mrcnn_jax/config/schema.py)` leads to the file. Here the file gets a page of its own, in
`repository/`: Markdown as it is, anything else as code, pictures as they are. So links need no address of a host, and
they show the version that the site was built from. A link to what is not there fails the build, as does a page that
would fetch anything from elsewhere.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
# Links and pictures of Markdown, not those in code; without addresses of other sites and of the page itself.
_LINK = re.compile(
    r"(?P<code>^```.*?^```|`[^`\n]*`)|(?P<open>\]\()(?P<path>[^)\s#:]+)(?P<rest>(?:#[^)\s]*)?\))", re.S | re.M
)
_PICTURES = {".gif", ".jpg", ".png", ".svg"}
_FETCHED = re.compile(r"<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that the documents link to, and those that these link to."""
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        source = waiting.pop()
        for target in _targets(source):
            if target not in seen and not target.startswith("docs/"):
                seen.add(target)
                files.append(_page(target, config))
                waiting += [target] if target.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Let the links of a page lead to the pages of the site."""
    here = page.file.src_uri
    source = here.removeprefix("repository/") if here.startswith("repository/") else f"docs/{here}"

    def lead(link: re.Match[str]) -> str:
        if link["code"]:
            return link[0]
        place = posixpath.relpath(_place(_resolve(source, link["path"])), posixpath.dirname(here) or ".")
        return f"{link['open']}{place}{link['rest']}"

    return _LINK.sub(lead, markdown)


def on_post_page(output: str, page: Page, **_: object) -> None:
    """Raise PluginError for a page that needs the network."""
    for found in _FETCHED.findall(output):
        if 'rel="canonical"' not in found:
            raise PluginError(f"{page.file.src_uri} would fetch {found}")


def _targets(source: str) -> Iterator[str]:
    """The files of the repository that a document links to."""
    for link in _LINK.finditer((ROOT / source).read_text()):
        if not link["code"]:
            yield _resolve(source, link["path"])


def _resolve(source: str, link: str) -> str:
    """Path in the repository of what a document links to. Raises PluginError if it is no file there."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), unquote(link)))
    if not (ROOT / path).is_file():
        raise PluginError(f"{source} links to {link}: no such file")
    return path


def _place(path: str) -> str:
    """Where in the sources of the site a file of the repository is."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    kept = path.endswith(".md") or os.path.splitext(path)[1] in _PICTURES
    return f"repository/{path}" if kept else f"repository/{path}.md"


def _page(path: str, config: MkDocsConfig) -> File:
    """A file of the repository as a file of the site, outside its navigation."""
    place = _place(path)
    if place == f"repository/{path}":
        return File.generated(config, place, abs_src_path=str(ROOT / path), inclusion=InclusionLevel.NOT_IN_NAV)
    language = {".py": "python", ".toml": "toml"}.get(os.path.splitext(path)[1], "")
    fence = f"# {path}\n\n```{language}\n{(ROOT / path).read_text()}\n```\n"
    return File.generated(config, place, content=fence, inclusion=InclusionLevel.NOT_IN_NAV)
