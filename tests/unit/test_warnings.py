"""The suite takes warnings that our modules give, or are given for what they call, for errors."""

from __future__ import annotations

import warnings

import pytest


@pytest.mark.parametrize("module", ["prefetch_compiler.backend", "prefetch_compiler.templates.split_kv_decode"])
@pytest.mark.parametrize("category", [UserWarning, DeprecationWarning, FutureWarning])
def test_a_warning_of_ours_is_an_error(module: str, category: type[Warning]) -> None:
    with pytest.raises(category, match="as it is"):
        warnings.warn_explicit("as it is", category, "module.py", 1, module=module)


def test_a_warning_of_another_package_is_none_of_ours() -> None:
    with pytest.warns(UserWarning, match="as it is"):
        warnings.warn_explicit("as it is", UserWarning, "module.py", 1, module="another_package.module")
