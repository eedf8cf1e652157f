"""The loss of a step: every supervised token weighs the same, whichever pass and whichever process has it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from mobillama_v.hf.modeling import supervised_loss
from mobillama_v.prompt import IGNORE_INDEX
from mobillama_v.train.loss import scaled_loss, supervised_tokens

WORKER = """
import json, os, sys
import torch
import torch.distributed as dist
sys.path.insert(0, {folder!r})
import test_loss
dist.init_process_group("gloo")
rank = dist.get_rank()
batches = test_loss.batches()[2 * rank : 2 * rank + 2]
count, losses, grad = test_loss.learn(batches)
dist.all_reduce(grad)  # as DDP does: the mean over processes
grad /= dist.get_world_size()
if rank == 0:
    print(json.dumps({{"count": count, "grad": grad.tolist()}}))
dist.destroy_process_group()
"""


def batches() -> list[dict[str, Tensor]]:
    """Four forward passes of 1, 0, 5 and 9 supervised tokens: a mean of means would be another one."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for supervised in (1, 0, 5, 9):
        labels = torch.randint(0, 7, (2, 6), generator=generator)
        hidden = torch.randn(2, 6, 4, generator=generator)
        labels[:, 0] = IGNORE_INDEX
        left = labels != IGNORE_INDEX
        left[left.clone()] = torch.arange(int(left.sum())) >= supervised
        labels[left] = IGNORE_INDEX
        made.append({"labels": labels, "hidden": hidden})
    return made


def head() -> nn.Linear:
    layer = nn.Linear(4, 7, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(28.0).view(7, 4).sin())
    return layer


def learn(some: list[dict[str, Tensor]]) -> tuple[int, list[float], Tensor]:
    """The divisor, the losses and the summed gradient of a step of these passes, as the trainer makes them."""
    layer, count = head(), supervised_tokens(some, torch.device("cpu"))
    losses = [scaled_loss(supervised_loss(each["hidden"], layer, each["labels"], count)) for each in some]
    torch.stack(losses).sum().backward()
    assert layer.weight.grad is not None
    return int(count), [float(loss.detach()) for loss in losses], layer.weight.grad


def whole() -> Tensor:
    """The gradient of the mean over all supervised tokens, taken at once."""
    layer = head()
    hidden = torch.cat([each["hidden"][:, :-1].flatten(0, 1) for each in batches()])
    targets = torch.cat([each["labels"][:, 1:].flatten() for each in batches()])
    nn.functional.cross_entropy(layer(hidden), targets, ignore_index=IGNORE_INDEX).backward()
    assert layer.weight.grad is not None
    return layer.weight.grad


def test_passes_of_unequal_counts_are_one_mean() -> None:
    count, losses, grad = learn(batches())
    assert count == 15 and losses[1] == 0
    torch.testing.assert_close(grad, whole())


@pytest.mark.slow
def test_two_processes_divide_by_the_tokens_of_both() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    code = WORKER.format(folder=os.path.dirname(__file__))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    found, _ = [each.communicate(timeout=300)[0] for each in ranks]
    assert [each.returncode for each in ranks] == [0, 0]
    result = json.loads(found)
    assert result["count"] == 15
    torch.testing.assert_close(torch.tensor(result["grad"]), whole())


def test_a_step_without_supervised_tokens_divides_by_no_zero() -> None:
    nothing = {"labels": torch.full((1, 3), IGNORE_INDEX)}
    assert supervised_tokens([nothing], torch.device("cpu")) == 1
