"""Puts values into model cards: whatever they contain stays text on one line, in Markdown, HTML and YAML alike."""

import html
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined


# What Markdown takes for markup inside a line; underscores only where they do not stand inside a word.
_MARKUP = re.compile(r"[\\`*~|\[\]$]|(?<![^\W_])_|_(?![^\W_])")
# A heading, list or quotation, where a value begins a line.
_AT_START = re.compile(r"^([#+\->=]+)(?=\s|$)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class Markdown(str):
    """Text that is Markdown already, which [`render`] leaves as it is."""


def one_line(value: Any) -> str:
    """Turns a value into text without line breaks and control characters, as YAML and titles can hold it.

    Characters that turn the direction of writing go as well: they can make a line read as another.
    """
    if callable(value):
        value = getattr(value, "__qualname__", type(value).__name__)
    return _CONTROL.sub("", " ".join(str(value).split()))


def escape(value: Any) -> str:
    """Escapes a value so that it reads as it is anywhere in a line of Markdown, a table cell included."""
    if isinstance(value, Markdown):
        return value
    text = html.escape(_MARKUP.sub(r"\\\g<0>", one_line(value)), quote=False)
    return _AT_START.sub(lambda found: "".join(f"\\{mark}" for mark in found[1]), text)


def code(value: Any) -> Markdown:
    """Sets a value in a monospaced font, for a cell of a table."""
    text = one_line(value)
    # The fence is longer than any run of backticks inside.
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    padding = " " if "`" in text else ""
    return Markdown(f"{fence}{padding}{text}{padding}{fence}".replace("|", "\\|"))


def literal(value: Any) -> Markdown:
    """Quotes a string for the code of an example."""
    return Markdown(json.dumps(one_line(value), ensure_ascii=False))


def link_target(value: Any) -> Markdown:
    """Quotes a file name or address for a link."""
    return Markdown(quote(one_line(value), safe="/:"))


def render(template: Path, **values: Any) -> str:
    """Fills in a template of Markdown; every value is escaped but for [`Markdown`].

    Raises:
        UndefinedError: if the template names a value that is missing.
    """
    environment = Environment(finalize=escape, undefined=StrictUndefined, autoescape=False)
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)
