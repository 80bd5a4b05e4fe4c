"""Lets mkdocstrings read docstrings in the style of Hugging Face: Markdown in types, bracketed names as links."""

import re
from typing import Any

import griffe


TYPE = re.compile(r"^(\s*[*\w, ]+ )\((.+?)\):", flags=re.MULTILINE)
PROMPT = re.compile(r"(?:\A|(?<=\n\n))(>>> .+?)(?=\n\n|\Z)", flags=re.DOTALL)
NAME = re.compile(r"\[`(~?)([\w.]+)`\]")


class HuggingFaceDocstrings(griffe.Extension):
    """Rewrites each docstring, before it is parsed, in the Google style that griffe knows."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            text = PROMPT.sub(r"```python\n\1\n```", TYPE.sub(_plain_type, obj.docstring.value))
            obj.docstring.value = NAME.sub(lambda match: _link(match, obj), text)


def _plain_type(match: re.Match) -> str:
    """``(`"a"`, `"b"` or `None`, *optional*):`` as ``(typing.Literal["a", "b"] | None, optional):``."""
    kind, optional, _ = NAME.sub(r"\2", match[2]).replace("`", "").partition(", *optional*")
    if "(" not in kind:  # a shape has commas of its own
        choices = re.split(r", | or ", kind)
        texts = ", ".join(choice for choice in choices if choice.startswith('"'))
        others = [choice for choice in choices if not choice.startswith('"')]
        kind = " | ".join([f"typing.Literal[{texts}]", *others] if texts else others)
    return f"{match[1]}({kind}{', optional' if optional else ''}):"


def _link(match: re.Match, obj: griffe.Object) -> str:
    """A link to the name as the module sees it; only the name if no page describes it."""
    name = match[2]
    try:
        target = obj.resolve(name)
    except griffe.NameResolutionError:
        target = name if name.startswith("hf_it3.") else f"hf_it3.{name}"
    shown = name.rpartition(".")[2] if match[1] else name
    return f'<autoref identifier="{target}" optional><code>{shown}</code></autoref>'
