"""The decoder against transformers' Llama, with copied weights."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mobillama_v import MobiLlamaConfig, MobiLlamaForCausalLM
from tiny import DECODER

TOLERANCE = 1e-4  # the project's bound on logits in fp32; the same kernels in the same order measured 0


def reference(**changes) -> LlamaForCausalLM:
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**(DECODER | changes), rms_norm_eps=1e-6)).eval()
    for parameter in model.parameters():  # larger than the initialization, so that every part matters
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def shared_pair() -> tuple[MobiLlamaForCausalLM, LlamaForCausalLM]:
    """A shared-FFN model, and a Llama whose layers all hold that FFN."""
    llama = reference()
    for layer in llama.model.layers[1:]:
        layer.mlp.load_state_dict(llama.model.layers[0].mlp.state_dict())
    state = llama.state_dict()
    folded = {k: v for k, v in state.items() if ".mlp." not in k}
    folded |= {k.replace("layers.0.mlp", "feed_forward"): v for k, v in state.items() if "layers.0.mlp" in k}
    ours = MobiLlamaForCausalLM(MobiLlamaConfig(**DECODER)).eval()
    ours.load_state_dict(folded, strict=True)
    return ours, llama


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_per_layer_ffn_is_llama(kv_heads: int) -> None:
    llama = reference(num_key_value_heads=kv_heads)
    config = MobiLlamaConfig(**(DECODER | {"num_key_value_heads": kv_heads}), ffn_sharing="none")
    ours = MobiLlamaForCausalLM(config).eval()
    ours.load_state_dict(llama.state_dict(), strict=True)
    ids = torch.randint(0, DECODER["vocab_size"], (2, 23))
    assert (ours(ids).logits - llama(ids).logits).abs().max() < TOLERANCE


def test_shared_ffn_is_llama_with_equal_layers() -> None:
    ours, llama = shared_pair()
    ids = torch.randint(0, DECODER["vocab_size"], (2, 23))
    assert (ours(ids).logits - llama(ids).logits).abs().max() < TOLERANCE


def test_shared_gradient_is_the_sum_over_its_uses() -> None:
    ours, llama = shared_pair()
    ids = torch.randint(0, DECODER["vocab_size"], (2, 23))
    ours(ids, labels=ids).loss.backward()
    llama(ids, labels=ids).loss.backward()
    summed = sum(layer.mlp.up_proj.weight.grad for layer in llama.model.layers)
    torch.testing.assert_close(ours.model.feed_forward.up_proj.weight.grad, summed, rtol=1e-4, atol=1e-6)


def test_gradient_checkpointing_changes_nothing() -> None:
    ours, _ = shared_pair()
    ids = torch.randint(0, DECODER["vocab_size"], (2, 23))
    ours.train()
    ours(ids, labels=ids).loss.backward()
    plain = {name: p.grad.clone() for name, p in ours.named_parameters()}
    ours.zero_grad()
    ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert ours.model.gradient_checkpointing
    ours(ids, labels=ids).loss.backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name], msg=name)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_single_rows(side: str) -> None:
    ours, _ = shared_pair()
    lengths = [5, 17, 11]
    rows = [torch.randint(0, DECODER["vocab_size"], (n,)) for n in lengths]
    ids, mask = torch.zeros(3, 17, dtype=torch.long), torch.zeros(3, 17, dtype=torch.long)
    places = [slice(0, n) if side == "right" else slice(17 - n, 17) for n in lengths]
    for i, (row, place) in enumerate(zip(rows, places, strict=True)):
        ids[i, place], mask[i, place] = row, 1
    batch = ours(ids, attention_mask=mask).logits
    for i, (row, place) in enumerate(zip(rows, places, strict=True)):
        torch.testing.assert_close(batch[i, place], ours(row[None]).logits[0], rtol=1e-4, atol=1e-4)


def test_generate_is_llamas() -> None:
    ours, llama = shared_pair()
    ids = torch.randint(0, DECODER["vocab_size"], (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = llama.generate(ids, attention_mask=mask, **options)
    for extra in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        torch.testing.assert_close(ours.generate(ids, attention_mask=mask, **options, **extra), expected)


def test_ffn_is_held_once(tmp_path) -> None:
    from safetensors import safe_open

    ours, _ = shared_pair()
    assert sum("feed_forward" in name for name in ours.state_dict()) == 3
    assert len({id(p) for p in ours.parameters()}) == len(list(ours.named_parameters(remove_duplicate=False)))
    ours.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = list(file.keys())
    assert sum("feed_forward" in name for name in names) == 3 and not any(".mlp." in name for name in names)
    again = MobiLlamaForCausalLM.from_pretrained(tmp_path)
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)
