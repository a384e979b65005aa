"""HTML and SVG from parts that cannot break it: whatever a name holds, it stays text.

Content is markup already, made by these functions; attributes and what `text` takes are not.
"""

from __future__ import annotations

from html import escape

from alpharl_hub.drawing.words import spell_out

Attribute = str | int | float


def text(words: str) -> str:
    """Return anybody's words as content."""
    return escape(spell_out(words))


def element(name: str, content: str = "", **attributes: Attribute) -> str:
    """Return an element with its end tag.

    The attribute `class_` stands for class, and aria_label for aria-label; numbers are written
    with at most two decimals, which is finer than any screen.
    """
    pairs = "".join(
        f' {_attribute_name(key)}="{_attribute_value(value)}"' for key, value in attributes.items()
    )
    return f"<{name}{pairs}>{content}</{name}>"


def short(value: float) -> str:
    """Return a coordinate with at most two decimals, the same for 0 and -0."""
    return f"{round(value, 2) + 0.0:.2f}".rstrip("0").rstrip(".")


def _attribute_name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _attribute_value(value: Attribute) -> str:
    return short(value) if isinstance(value, float) else text(str(value))
