"""The head learns new answers and keeps what it said elsewhere."""

from __future__ import annotations

import torch

from nano.head import States, refit


def test_a_refitted_head_learns_and_keeps() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4000, 16, generator=generator)
    head, other = (torch.randn(12, 16, generator=generator) for _ in range(2))
    kept = hidden[:, 0] > 0  # what is learnt and what is kept are told apart by the states alone
    targets = torch.where(kept, (hidden @ head.T).argmax(-1), (hidden @ (head + 0.3 * other).T).argmax(-1))
    seen = States(hidden.half(), targets, kept)
    before = head.clone()
    fitted = refit(head, seen, epochs=400, seed=1)
    torch.testing.assert_close(head, before, rtol=0, atol=0)
    torch.testing.assert_close(refit(head, seen, epochs=400, seed=1), fitted, rtol=0, atol=0)

    def right(weight: torch.Tensor, rows: torch.Tensor) -> float:
        return float(((hidden[rows] @ weight.T).argmax(-1) == targets[rows]).float().mean())

    assert right(fitted, ~kept) > right(head, ~kept) + 0.02
    alone = States(hidden[~kept].half(), targets[~kept], kept[~kept])
    free = refit(head, alone, epochs=400, seed=1)
    said = (hidden[kept] @ head.T).log_softmax(-1)

    def moved(weight: torch.Tensor) -> float:
        now = (hidden[kept] @ weight.T).log_softmax(-1)
        return float(torch.nn.functional.kl_div(now, said, reduction="batchmean", log_target=True))

    assert moved(fitted) < 0.5 * moved(free)
