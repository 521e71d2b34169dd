"""A token beside an attention over other keys, against attention over all of them."""

from __future__ import annotations

import pytest
import torch

from prefetch_compiler.recognize.beside import with_few
from prefetch_compiler.recognize.exact_key import hide

BATCH, HEADS, KV_HEADS, KV_LEN, DIM, AT, SCALE = 2, 4, 2, 9, 8, 4, 0.3

SEEN = {
    "all": [True] * KV_LEN,
    "others": [key != AT for key in range(KV_LEN)],
    "token": [key == AT for key in range(KV_LEN)],
    "nothing": [False] * KV_LEN,
}


@pytest.mark.parametrize("seen", SEEN.values(), ids=SEEN)
@pytest.mark.parametrize("index", [AT, AT - KV_LEN])
def test_token_beside_other_keys(seen: list[bool], index: int) -> None:
    """In float64 until the merge, which is in float32; a row that sees nothing is zero, as SDPA has it."""
    generator = torch.Generator().manual_seed(2)
    q, k, v = (
        torch.randn(BATCH, heads, length, DIM, generator=generator, dtype=torch.float64)
        for heads, length in ((HEADS, 3), (KV_HEADS, KV_LEN), (KV_HEADS, KV_LEN))
    )
    mask, at = torch.tensor(seen)[None, None, None], torch.tensor([index])

    def attend(visible: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        wide = [x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v)]
        scores = (q @ wide[0].mT * SCALE).masked_fill(~visible, float("-inf"))
        return scores.softmax(-1).nan_to_num(0.0) @ wide[1], scores.logsumexp(-1)

    expected, _ = attend(mask)
    out, lse = attend(hide(KV_LEN, at, mask))
    token = [x[:, :, AT : AT + 1] for x in (k, v)]
    actual = with_few(SCALE, out.float(), lse.float(), q.float(), *token, mask[..., at])
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
