"""Checkpoints in every published layout, tiny: what is read answers as transformers' Llama does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mobillama_v import MobiLlamaConfig, MobiLlamaForCausalLM
from mobillama_v.errors import CheckpointError, ConfigError
from mobillama_v.interop.formats import ImportedDecoder, import_decoder

LAYERS, HEADS, HIDDEN = 4, 4, 32
NETWORK = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")
CONFIG = {
    "vocab_size": 61,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}


def llama(**changes: Any) -> Any:
    """transformers' Llama, random and tiny."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG | changes, initializer_range=0.3)).eval()
    return model


def shared_llama() -> Any:
    """The same with one network in all layers, as the authors build theirs."""
    model = llama()
    for layer in model.model.layers:
        layer.mlp = model.model.layers[0].mlp
    return model


def tensors(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def write(folder: Path, state: dict[str, Tensor], *, kind: str = "safetensors", **changes: Any) -> Path:
    """A checkpoint of one file, or with ``bin`` two shards of pickles and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_scaling": None} | changes
    (folder / "config.json").write_text(json.dumps(config))
    if kind == "safetensors":
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = sorted(state)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for shard, chosen in shards.items():
        torch.save({name: state[name] for name in chosen}, folder / shard)
    index = {"weight_map": {name: shard for shard, chosen in shards.items() for name in chosen}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def logits(found: ImportedDecoder, ids: Tensor) -> Tensor:
    import dataclasses

    model = MobiLlamaForCausalLM(MobiLlamaConfig(**dataclasses.asdict(found.spec))).eval()
    model.load_state_dict({f"model.{n}": t for n, t in found.decoder.items()} | {"lm_head.weight": found.head})
    with torch.no_grad():
        return model(input_ids=ids).logits


def assert_same(found: ImportedDecoder, model: Any) -> None:
    ids = torch.randint(0, 61, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(logits(found, ids), model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def buffers() -> dict[str, Tensor]:
    width = HIDDEN // HEADS // 2
    values = 10000.0 ** -(torch.arange(width) / width)
    return {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": values.clone() for i in range(LAYERS)}


def test_the_authors_shards_with_every_copy_and_a_wrong_config(tmp_path: Path) -> None:
    model = shared_llama()
    state = tensors(model) | buffers()
    assert sum(name.endswith("gate_proj.weight") for name in state) == LAYERS
    folder = write(tmp_path, state, kind="bin", num_key_value_heads=1, num_hidden_layers=2)
    found = import_decoder(folder)
    assert (found.spec.ffn_sharing, found.spec.num_hidden_layers, found.spec.num_key_value_heads) == (
        "all",
        LAYERS,
        HEADS,
    )
    notes = " ".join(found.notes)
    assert "num_key_value_heads 1; the tensors have 4" in notes
    assert "num_hidden_layers 2; the tensors have 4" in notes
    assert "4 rotary_emb.inv_freq buffers" in notes
    assert_same(found, model)


@pytest.mark.parametrize("name", ["model.layers.0.mlp", "model.mlp", "model.feed_forward"])
def test_one_copy_of_the_network(name: str, tmp_path: Path) -> None:
    model = shared_llama()
    state = {n: t for n, t in tensors(model).items() if ".mlp." not in n}
    network = model.model.layers[0].mlp.state_dict()
    state |= {f"{name}.{inner}": tensor.clone() for inner, tensor in network.items()}
    found = import_decoder(write(tmp_path, state))
    assert found.spec.ffn_sharing == "all"
    assert_same(found, model)
    with pytest.raises(CheckpointError, match="none per layer"):
        import_decoder(tmp_path, ffn="per-layer")


@pytest.mark.parametrize("name", ["model.mlp", "model.feed_forward"])  # one sorts behind the layers, one before them
def test_a_network_that_is_there_twice_is_refused(name: str, tmp_path: Path) -> None:
    state = tensors(shared_llama())
    state |= {f"{name}.{inner}": torch.zeros_like(state[f"model.layers.0.mlp.{inner}"]) for inner in NETWORK}
    with pytest.raises(CheckpointError, match="of layer 0 twice"):
        import_decoder(write(tmp_path, state))


def test_token_ids_are_the_configurations(tmp_path: Path) -> None:
    def ids(**config: Any) -> tuple[int, int, int]:
        spec = import_decoder(write(tmp_path, tensors(shared_llama()), **config)).spec
        return spec.bos_token_id, spec.eos_token_id, spec.pad_token_id

    assert ids(bos_token_id=0, eos_token_id=[7, 8], pad_token_id=-1) == (0, 7, 0)
    assert ids(bos_token_id=None, eos_token_id=None, pad_token_id=None) == ids() == (1, 2, 0)


def test_a_llama_with_grouped_heads_and_a_tied_head(tmp_path: Path) -> None:
    model = llama(num_key_value_heads=2, tie_word_embeddings=True, rope_theta=50000.0)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    found = import_decoder(tmp_path, ffn="per-layer")
    assert (found.spec.ffn_sharing, found.spec.num_key_value_heads, found.spec.rope_theta) == ("none", 2, 50000.0)
    assert_same(found, model)


def test_a_qwen2_with_its_biases(tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(3)
    model = Qwen2ForCausalLM(Qwen2Config(**CONFIG | {"num_key_value_heads": 2}, initializer_range=0.3)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    found = import_decoder(tmp_path, ffn="per-layer")
    assert found.spec.qkv_bias
    assert_same(found, model)


@pytest.mark.parametrize("width", [8, 24])
def test_a_qwen3_with_its_norms(width: int, tmp_path: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(3)
    config = Qwen3Config(**CONFIG | {"num_key_value_heads": 2}, head_dim=width, initializer_range=0.3)
    model = Qwen3ForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("_norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(tmp_path)
    found = import_decoder(tmp_path, ffn="per-layer")
    assert found.spec.qk_norm and found.spec.head_dim == width
    assert_same(found, model)


def test_a_llama_whose_heads_have_a_width_of_their_own(tmp_path: Path) -> None:
    model = llama(head_dim=16)
    model.save_pretrained(tmp_path)
    found = import_decoder(tmp_path, ffn="per-layer")
    assert found.spec.attention_head_dim == 16
    assert_same(found, model)


def test_a_llama_3_with_its_scaled_rotation(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 16, "rope_theta": 500.0}
    model = llama(rope_parameters=rope)
    model.save_pretrained(tmp_path)
    found = import_decoder(tmp_path, ffn="per-layer")
    assert found.spec.llama3_rope is not None and found.spec.rope_theta == 500.0
    assert_same(found, model)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]["high_freq_factor"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"rope_scaling in .*config\.json.*high_freq_factor"):
        import_decoder(tmp_path, ffn="per-layer")


def test_a_llama_averaged_is_the_mean_and_says_how_far_it_is(tmp_path: Path) -> None:
    model = llama()
    state = tensors(model)
    write(tmp_path, state)
    with pytest.raises(CheckpointError, match=r"9 tensors differ .*layers\.1\.mlp\.gate_proj\.weight.*--ffn average"):
        import_decoder(tmp_path)
    found = import_decoder(tmp_path, ffn="average")
    for name in ("gate_proj", "up_proj", "down_proj"):
        mean = torch.stack([state[f"model.layers.{i}.mlp.{name}.weight"] for i in range(LAYERS)]).mean(0)
        torch.testing.assert_close(found.decoder[f"feed_forward.{name}.weight"], mean)
    assert [each.layer for each in found.averaged] == list(range(LAYERS))
    # Independent layers: the mean of n is sqrt(1 - 1/n) of their size away from each.
    assert all(each.weights == pytest.approx((1 - 1 / LAYERS) ** 0.5, rel=0.1) for each in found.averaged)
    assert all(0.5 < each.outputs < 2 for each in found.averaged)
    same = import_decoder(write(tmp_path / "same", tensors(shared_llama())), ffn="average")
    assert same.averaged == ()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: s["model.layers.2.mlp.up_proj.weight"].add_(1e-3), r"1 tensors differ .*layers\.2\.mlp\.up_proj"),
        (lambda s: s.pop("model.layers.2.mlp.up_proj.weight"), r"lacks model\.layers\.2\.mlp\.up_proj\.weight"),
        (lambda s: s.pop("model.layers.1.self_attn.q_proj.weight"), r"lacks layers\.1\.self_attn\.q_proj\.weight"),
        (lambda s: s.pop("model.embed_tokens.weight"), r"lacks model\.embed_tokens\.weight"),
        (lambda s: s.pop("lm_head.weight"), r"lacks lm_head\.weight"),
        (
            lambda s: [s.update({n.replace("mlp", "ffn"): s.pop(n)}) for n in list(s) if ".mlp." in n],
            r"lacks model\.layers\.0\.mlp\.gate_proj\.weight",
        ),
        (
            lambda s: s.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(2)}),
            r"unknown layers\.0.*q_proj\.bias",
        ),
        (lambda s: s.update({"model.norm.weight": torch.zeros(3)}), r"norm\.weight is \[3\] and must be \[32\]"),
        (
            lambda s: s.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
            r"inv_freq does not belong to rope_theta 10000",
        ),
        (
            lambda s: s.update({"model.rotary_emb.inv_freq": 10000.0 ** -(torch.arange(8) / 8)}),
            r"heads of width 16, and 4 heads .* make 8",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: Any, problem: str, tmp_path: Path) -> None:
    state = tensors(shared_llama())
    change(state)
    with pytest.raises(CheckpointError, match=problem):
        import_decoder(write(tmp_path, state))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_type": "gpt2"}, "of type 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window True"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_scaling {'rope_type': 'yarn'}"),
        ({"attention_bias": True}, "attention_bias True"),
        ({"num_attention_heads": 5}, "5 attention heads for width 32"),
        ({"head_dim": 16}, "head_dim 16"),
    ],
)
def test_configurations_that_are_no_llamas_are_refused(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=problem):
        import_decoder(write(tmp_path, tensors(shared_llama()), **changes))


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_no_code_of_a_checkpoint_runs(tmp_path: Path) -> None:
    folder = write(tmp_path / "c", tensors(shared_llama()))
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Malicious(tmp_path / "made")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="more than tensors"):
        import_decoder(folder)
    assert not (tmp_path / "made").exists()
