import copy

import pytest
import torch
from torch import nn

from mobillama_v.train.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_orthogonalizing_keeps_directions_and_levels_their_sizes(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(shape[0], 24))
    right, _ = torch.linalg.qr(torch.randn(shape[1], 24))
    sizes = torch.logspace(0, -1.5, 24)  # a condition number of 30
    found = orthogonalize(left * sizes @ right.T)
    assert found.shape == shape
    inner = left.T @ found @ right  # diagonal where the directions are kept
    assert inner.diagonal().min() > 0.5 and inner.diagonal().max() < 1.3
    torch.testing.assert_close(inner - inner.diagonal().diag(), torch.zeros(24, 24), atol=1e-4, rtol=0)
    torch.testing.assert_close(orthogonalize(torch.zeros(shape)), torch.zeros(shape))


def model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 12), nn.GELU(), nn.LayerNorm(12), nn.Linear(12, 8))


def groups(net: nn.Sequential, *, hidden: bool) -> list[dict[str, object]]:
    matrices = [net[1].weight, net[4].weight]
    rest = [p for p in net.parameters() if all(p is not matrix for matrix in matrices)]
    return [
        {"params": matrices, "lr": 0.01, "weight_decay": 0.1, "hidden": hidden},
        {"params": rest, "lr": 0.02, "weight_decay": 0.0, "hidden": False},
    ]


def learn(net: nn.Sequential, optimizer: torch.optim.Optimizer, *, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        tokens = torch.randint(16, (5,), generator=torch.Generator().manual_seed(step))
        net(tokens).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def state(net: nn.Sequential) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def test_without_hidden_matrices_it_is_adamw() -> None:
    one, other = model(), model()
    learn(one, Muon(groups(one, hidden=False), betas=(0.9, 0.95)), steps=3)
    learn(other, torch.optim.AdamW(groups(other, hidden=False), betas=(0.9, 0.95), fused=True), steps=3)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_a_hidden_step_has_adamws_size_and_decays_the_matrix() -> None:
    net = model()
    before = state(net)
    learn(net, Muon(groups(net, hidden=True), betas=(0.9, 0.95)), steps=1)
    for name in ("1.weight", "4.weight"):
        step = net.state_dict()[name] - before[name] * (1 - 0.01 * 0.1)
        rank = min(5, *step.shape)  # five tokens give a gradient of rank five at most
        expected = 0.01 * 0.2 * (rank / min(step.shape)) ** 0.5
        assert expected * 0.6 < step.square().mean().sqrt() < expected * 1.3


def test_saved_and_loaded_it_goes_on_as_if_it_had_not_been() -> None:
    whole, stopped = model(), model()
    learn(whole, Muon(groups(whole, hidden=True), betas=(0.9, 0.95)), steps=4)
    first = Muon(groups(stopped, hidden=True), betas=(0.9, 0.95))
    learn(stopped, first, steps=2)
    resumed = copy.deepcopy(stopped)
    second = Muon(groups(resumed, hidden=True), betas=(0.9, 0.95))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    learn(resumed, second, steps=2, start=2)
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())
