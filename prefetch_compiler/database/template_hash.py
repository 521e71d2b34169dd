"""What a record's kernels were: a hash of what a template's kernels do for the record's key and configuration.

A feature that neither has is specialised away first: its parameters have their absent values, and what these
rule out is not hashed. So a template can learn something new, and the records of all keys that do without stay fresh.
What the hash covers otherwise is said in ``kernel_source.program``.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources

from prefetch_compiler.templates.manifest import TEMPLATES, Template

from ..config import KernelConfig
from .kernel_source.modules import PACKAGE, Sources
from .kernel_source.program import Program
from .key import TuningKey

_BY_NAME = {template.name: template for template in TEMPLATES}


@cache
def template_hash(template: Template, present: frozenset[str]) -> str:
    """Hex SHA-256 of the template's kernels as they are with the features ``present`` and without its others.

    Sources are read, not imported: Triton need not be there.

    Raises:
        TemplateSourceError: the manifest, or an import, names what is not installed.
    """
    text = Program(_sources(), template.entries, template.absent_values(present)).text()
    return hashlib.sha256(text.encode("ascii")).hexdigest()


@cache
def _sources() -> Sources:
    return Sources(resources.files(PACKAGE))


def hash_for(template: Template, key: TuningKey, config: KernelConfig | None) -> str:
    """Of the kernels that serve ``key`` under ``config``; without one, of all that it may be served by."""
    return template_hash(template, template.features_of(key, config))


def present_hash(name: str, key: TuningKey, config: KernelConfig) -> str | None:
    """Of the kernels that the template called ``name`` serves ``key`` with here; None where there is none."""
    template = _BY_NAME.get(name)
    return None if template is None else hash_for(template, key, config)


def whole_hashes() -> dict[str, str]:
    """Of every template with all of its features, by name: all sources that the hash of some key covers."""
    return {template.name: template_hash(template, template.feature_names) for template in TEMPLATES}
