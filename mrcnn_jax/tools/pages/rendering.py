"""Rendering of the templates in `templates/` of each tool, with all text escaped.

A page is one file that loads nothing and runs at most one script, which its content security policy allows by its hash.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup


def render(template: str, **context: Any) -> str:
    """Return a page. `template` names the tool and the file: "report/page.html.jinja"."""
    return _environment().get_template(template).render(context)


def macros(template: str) -> Any:
    """Return a template whose macros are functions that return escaped markup."""
    return _environment().get_template(template).module


def counted(count: int, noun: str) -> str:
    """Return the count with the noun in singular or plural, such as `1 image` or `2,000 images`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_score(value: float) -> str:
    """Format an average precision or recall like pycocotools, and -1 as undefined."""
    return "\N{EN DASH}" if value < 0 else f"{value:.3f}"


def count_within(sizes: Iterable[int], byte_budget: int) -> int:
    """Return how many of the first items have a total size of at most `byte_budget`."""
    return sum(1 for _ in itertools.takewhile(lambda total: total <= byte_budget, itertools.accumulate(sizes)))


@functools.cache
def _environment() -> jinja2.Environment:
    folders = Path(__file__).parents[1].glob("*/templates")
    loader = jinja2.PrefixLoader({folder.parent.name: jinja2.FileSystemLoader(folder) for folder in folders})
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["source"] = lambda name: Markup(loader.get_source(environment, name)[0])
    environment.filters |= {"counted": counted, "score": format_score, "thousands": "{:,}".format, "sha256": _sha256}
    return environment


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
