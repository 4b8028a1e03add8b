"""A drawing as a part of a page: without what a strict policy refuses, and in the page's own ink.

The `style` attributes of an SVG become presentation attributes, its style elements and links to elsewhere go, and
black, white and the grey of grids become the page's ink, paper and lines, so that a drawing serves a light and a dark
page.
A map, which has a picture in it whose colours mean figures, keeps black and white, and its class is "paper".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
DROPPED = ("metadata", "style", "script", "foreignObject")
PAINT = {
    **dict.fromkeys(("#000", "#000000", "black"), "currentColor"),
    **dict.fromkeys(("#fff", "#ffffff", "white"), "var(--paper)"),
    "#e4e4e4": "var(--line)",
}
ROUND = {"stroke-linejoin": "round", "stroke-linecap": "butt"}  # what the style element of a drawing says
FONT = re.compile(r"(?:(?P<style>italic|oblique) )?(?:(?P<weight>bold|\d{3}) )?(?P<size>[\d.]+px) (?P<family>.+)")


def inline(drawing: str) -> str:
    """Return the <svg> element, as wide as it was drawn; raises ElementTree.ParseError for what is no XML."""
    root = ElementTree.fromstring(drawing)
    is_map = next(root.iter(f"{{{SVG}}}image"), None) is not None
    _clean(root, {} if is_map else PAINT)
    for attribute in ("height", "version"):
        root.attrib.pop(attribute, None)  # viewBox keeps the shape
    root.attrib |= ROUND | {"fill": "currentColor"}  # what has no colour of its own, such as text, is ink too
    root.attrib |= {"class": "paper"} if is_map else {}
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG}}}")  # HTML knows no prefixes
    return ElementTree.tostring(root, encoding="unicode")


def _clean(element: ElementTree.Element, paint: Mapping[str, str]) -> None:
    for child in list(element):
        if not isinstance(child.tag, str) or child.tag.rpartition("}")[2] in DROPPED:
            element.remove(child)
        else:
            _clean(child, paint)
    attributes: dict[str, str] = {}
    for attribute, value in element.attrib.items():
        if attribute == "style":
            attributes |= _declarations(value)
        elif attribute in ("href", f"{{{XLINK}}}href"):
            if value.startswith(("#", "data:image/")):
                attributes["href"] = value
        elif not attribute.startswith(("{", "on")):
            attributes[attribute] = value
    for attribute in {"fill", "stroke"} & set(attributes):
        attributes[attribute] = paint.get(attributes[attribute].lower(), attributes[attribute])
    element.attrib.clear()
    element.attrib.update(attributes)


def _declarations(style: str) -> dict[str, str]:
    """Return the declarations of a style attribute, such as 'fill: none; font: 10px sans', as attributes."""
    found: dict[str, str] = {}
    for declaration in filter(None, (part.strip() for part in style.split(";"))):
        attribute, _, value = (part.strip() for part in declaration.partition(":"))
        font = FONT.fullmatch(value) if attribute == "font" else None
        found |= (
            {f"font-{part}": said for part, said in font.groupdict().items() if said} if font else {attribute: value}
        )
    return found
