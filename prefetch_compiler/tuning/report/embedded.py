"""Figures as the page holds them: JSON in script elements, each by a name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.io.json import to_json_plotly


@dataclass
class Figures:
    """The page's figures as JSON, each by the name that its place in the page has."""

    json: list[tuple[str, Markup]] = field(default_factory=list)

    def add(self, figure: go.Figure | None) -> dict[str, Any] | None:
        """The place of ``figure`` in the page: its name, and its height in pixels."""
        if figure is None:
            return None
        data = plain(figure)
        name = f"figure-{len(self.json)}"
        self.json.append((name, script_json(data)))
        return {"name": name, "height": int(data["layout"].get("height", 400))}


def script_json(data: Any) -> Markup:
    """JSON that may stand in a script element: no text in it can end the element or begin another."""
    text = str(to_json_plotly(data))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # escaped above


def plain(figure: go.Figure) -> Any:
    """The figure as plain data, without Plotly's own colours: the page brings them."""
    data = figure.to_plotly_json()
    data["layout"].pop("template", None)
    return data
