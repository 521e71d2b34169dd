"""The floor: the bytes that a decode step cannot avoid reading, over the rate at which the device reads memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from .case import Case


@dataclass(frozen=True)
class StepBytes:
    """Bytes of one decode step.

    Attributes:
        parameter_bytes: every parameter of the model.
        weight_bytes: the parameters a step reads: without the embedding table, of which it reads one row per sequence,
            unless the output layer shares it.
        kv_bytes: valid keys and values, over batch and layers.
        capacity_bytes: keys and values at full capacity, what masked SDPA reads.
    """

    parameter_bytes: int
    weight_bytes: int
    kv_bytes: int
    capacity_bytes: int

    @property
    def all_bytes(self) -> int:
        """All parameters and valid KV."""
        return self.parameter_bytes + self.kv_bytes

    @property
    def must_read_bytes(self) -> int:
        """Weights that the step reads and valid KV."""
        return self.weight_bytes + self.kv_bytes

    def to_dict(self) -> dict[str, int]:
        return {**asdict(self), "all_bytes": self.all_bytes, "must_read_bytes": self.must_read_bytes}


def floor_us(byte_count: int, bytes_per_us: float) -> float:
    """Microseconds to read ``byte_count`` at the ceiling."""
    return byte_count / bytes_per_us


def step_bytes(model: Any, case: Case) -> StepBytes:
    """Count from parameters and configuration; works on a model on the meta device.

    Every layer is taken to hold a full-attention cache: :class:`StepState` refuses others.
    """
    parameters = {id(parameter): parameter for parameter in model.parameters()}
    parameter_bytes = sum(_bytes(parameter) for parameter in parameters.values())
    per_key = _kv_bytes_per_key(model.config.get_text_config(decoder=True), model.dtype)
    return StepBytes(
        parameter_bytes=parameter_bytes,
        weight_bytes=parameter_bytes - _unread_embedding_bytes(model, case.batch),
        kv_bytes=case.batch * case.held * per_key,
        capacity_bytes=case.batch * case.capacity * per_key,
    )


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _unread_embedding_bytes(model: Any, batch: int) -> int:
    table = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    if head is not None and head.weight is table:
        return 0
    row_bytes: int = table.shape[1] * table.element_size()
    return _bytes(table) - batch * row_bytes


def _kv_bytes_per_key(config: Any, dtype: torch.dtype) -> int:
    """Bytes of K and V that one position of one sequence takes, over all layers."""
    query_heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or query_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // query_heads
    return int(config.num_hidden_layers * kv_heads * 2 * head_dim * dtype.itemsize)
