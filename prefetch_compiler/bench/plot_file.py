"""Pictures as files of a size that a repository can hold."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

# Lines, text and a few fills need no more, and a third of the bytes.
_PALETTE = 128


def save_png(figure: Any, path: Path, dpi: int, **options: Any) -> Path:
    """``figure`` as a PNG with a palette."""
    from PIL import Image

    drawn = BytesIO()
    figure.savefig(drawn, dpi=dpi, format="png", **options)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(_PALETTE, dither=Image.Dither.NONE).save(path, optimize=True)
    return path
