"""What a record's kernels were: a hash over the sources of a template, which changes when any of its modules does."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources

from prefetch_compiler.templates.manifest import TEMPLATES, Template

_PACKAGE = "prefetch_compiler.templates"


@cache
def template_hash(template: Template) -> str:
    """Hex SHA-256 over the names and sources of ``template.modules``; the order of the modules does not matter.

    Sources are read, not imported: Triton need not be there.

    Raises:
        FileNotFoundError: the manifest names a module that is not installed.
    """
    folder = resources.files(_PACKAGE)
    digest = hashlib.sha256()
    for module in sorted(template.modules):
        source = folder.joinpath(f"{module}.py").read_bytes()
        digest.update(f"{module} {len(source)}\n".encode())
        digest.update(source)
    return digest.hexdigest()


def template_hashes() -> dict[str, str]:
    """Of every template, by name."""
    return {template.name: template_hash(template) for template in TEMPLATES}
