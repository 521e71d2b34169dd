"""How the scales and zeros of a site lie in memory. Kernels are specialised to it, and a spec does not say it: two
sites of one spec may differ here, and each needs a binary of its own."""

from __future__ import annotations

from torch.fx import Node

from ..recognize.site import Site
from ..recognize.sizes import hint

# Shape and strides of one scale or zero, as the operator is given it; None where there is none.
ScaleLayout = tuple[tuple[int, ...], tuple[int, ...]] | None
# By the names of the launch's arguments.
ScaleLayouts = tuple[tuple[str, ScaleLayout], ...]


def scale_layouts(site: Site) -> ScaleLayouts:
    """With the hints of sizes that are symbolic."""
    given = {"k_scale": site.key_scale, "v_scale": site.value_scale, "k_zero": site.key_zero, "v_zero": site.value_zero}
    return tuple((name, _layout(node)) for name, node in given.items())


def _layout(node: Node | None) -> ScaleLayout:
    if node is None:
        return None
    value = node.meta["val"]
    return tuple(hint(size, 1) for size in value.shape), tuple(hint(stride, 1) for stride in value.stride())
