"""A model as ``LlavaForConditionalGeneration`` of transformers, which vLLM, SGLang, mlx-vlm and others load too.

It is the other direction of :mod:`mobillama_v.interop.llava_hf`, with the same names. A shared feed-forward network is
written in every layer. The folder gets its name after transformers has loaded it and given the logits of the model that
it was made from.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobillama_v.chat_templates import get_template
from mobillama_v.config import DecoderConfig, ModelConfig
from mobillama_v.errors import CheckpointError, ConfigError
from mobillama_v.interop.formats import Exporter, Piece, decoder_type
from mobillama_v.interop.transformers_parts import decoder_pieces
from mobillama_v.interop.vit_names import hugging_face_config, tower_pieces
from mobillama_v.model.vision import TowerConfig, ViTShape
from mobillama_v.model.vision.plain_vit import CLIP, SIGLIP

if TYPE_CHECKING:
    from torch import Tensor

    from mobillama_v.model.vlm import VisionLanguageModel

_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_IMAGE, _SHARED = "<image>", "language_model.feed_forward."
_TOLERANCE = 1e-4  # of the largest logit, both in fp32
_PIL = {"lanczos": 1, "bilinear": 2, "bicubic": 3}


class LlavaHFExporter(Exporter):
    """CLIP or SigLIP, the two-layer projector, and a Llama, Qwen2 or Qwen3."""

    help = """Write a model as LlavaForConditionalGeneration of transformers.

    The image tower must be a CLIP or SigLIP, and the projector mlp2x_gelu.
    """
    suffix = ""
    types = tuple(_TYPES)
    default_type = "f16"

    def check(self, spec: ModelConfig, kind: str) -> None:
        """See that the class can hold the model, as far as its configuration says.

        Raises:
            ConfigError: it cannot, or an unknown type.
        """
        if kind not in _TYPES:
            raise ConfigError(f"the type {kind!r} is unknown; choose f32, f16 or bf16.")
        if spec.projector.type != "mlp2x_gelu":
            raise ConfigError(f"llava-hf has no projector {spec.projector.type}; only mlp2x_gelu can be exported.")
        decoder_type(spec.decoder)
        if spec.tower.final_norm:
            raise ConfigError("llava-hf takes features without the tower's final norm, and this model with it.")
        if spec.template == "smolvlm":
            raise ConfigError("llava-hf has no tokens around a picture, which the template smolvlm needs.")

    def write(
        self, path: Path, network: VisionLanguageModel, spec: ModelConfig, *, kind: str, folder: Path
    ) -> tuple[str, ...]:
        """Weights, configuration, tokenizer and processor.

        Raises:
            ConfigError: the tower is none that the class can hold.
            CheckpointError: transformers' logits are others than the model's.
        """
        import torch

        dtype = getattr(torch, _TYPES[kind])
        network.to(dtype).float()  # what is compared are the numbers that are written
        tower = plain_tower(network)
        state = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("visual.proj")}
        layers = spec.decoder.num_hidden_layers
        for name in [each for each in state if each.startswith(_SHARED)]:
            tensor = state.pop(name)
            part = name.removeprefix(_SHARED)
            state |= {f"language_model.layers.{i}.mlp.{part}": tensor.clone() for i in range(layers)}
        tokenizer, image_id = _tokenizer(folder / "tokenizer.json", spec.decoder)
        model = _model(spec, tower, image_id, state)
        model.to(dtype).save_pretrained(path)
        _processor(spec, tower, tokenizer).save_pretrained(path)
        _compare(path, network, image_id)
        return ("The shared feed-forward network is written once a layer.",) * (spec.decoder.ffn_sharing == "all")


def plain_tower(network: VisionLanguageModel) -> TowerConfig:
    """The tower of a model with its shape, also where it has a name in open_clip.

    Raises:
        ConfigError: it is neither a CLIP nor a SigLIP.
    """
    from open_clip.transformer import QuickGELU, VisionTransformer
    from torch import nn

    spec, visual = network.spec.tower, network.vision_tower.visual
    if spec.model in (CLIP, SIGLIP):
        return spec
    if type(visual) is not VisionTransformer or isinstance(visual.ln_pre, nn.Identity) or visual.attn_pool is not None:
        raise ConfigError(f"tower {spec.model} is neither a CLIP nor a SigLIP; it cannot be exported.")
    block = visual.transformer.resblocks[0]
    vit = ViTShape(
        width=visual.conv1.out_channels,
        layers=len(visual.transformer.resblocks),
        heads=block.attn.num_heads,
        mlp=block.mlp.c_fc.out_features,
        patch=visual.conv1.kernel_size[0],
        activation="quick_gelu" if isinstance(block.mlp.gelu, QuickGELU) else "gelu",
    )
    return replace(spec, model=CLIP, pretrained=None, vit=vit)


def text_config(decoder: DecoderConfig, vocabulary: int) -> dict[str, Any]:
    """transformers' configuration of a decoder with so many tokens."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": decoder.rope_theta}
    if decoder.llama3_rope is not None:
        rope |= {"rope_type": "llama3", **vars(decoder.llama3_rope)}
    same = [
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        *("max_position_embeddings", "rms_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id"),
    ]
    rest = {"vocab_size": vocabulary, "rope_parameters": rope, "tie_word_embeddings": False}
    return (
        {"model_type": decoder_type(decoder), "head_dim": decoder.head_dim}
        | rest
        | {name: getattr(decoder, name) for name in same}
    )


def _model(spec: ModelConfig, tower: TowerConfig, image_id: int, state: dict[str, Tensor]) -> Any:
    """transformers' model with our numbers."""
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    assert tower.vit is not None
    side, vocabulary = spec.image.size, max(spec.decoder.vocab_size, image_id + 1)
    config = LlavaConfig(
        vision_config=hugging_face_config(tower.model, tower.vit, side),
        text_config=text_config(spec.decoder, vocabulary),
        image_token_index=image_id,
        image_seq_length=spec.tokens_per_image(),
        vision_feature_layer=tower.feature_layer,
        vision_feature_select_strategy="default" if tower.model == CLIP and tower.select == "patch" else "full",
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    theirs: dict[str, Tensor] = {}
    for name, piece in _pieces(spec, tower).items():
        for source, part in zip(piece.sources, state[name].chunk(len(piece.sources)), strict=True):
            theirs[source] = part.contiguous()
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, tensor in theirs.items():
        if name.endswith("position_embedding.weight"):
            theirs[name] = tensor.reshape(shapes[name])
        elif name in ("lm_head.weight", "model.language_model.embed_tokens.weight") and vocabulary > len(tensor):
            # A row for the picture's token. A head's mean row never has the largest logit.
            theirs[name] = torch.cat((tensor, tensor.mean(0, keepdim=True).expand(vocabulary - len(tensor), -1)))
    model.load_state_dict(theirs, assign=True)  # strict
    model.generation_config.eos_token_id = spec.decoder.eos_token_id
    return model.eval()


def _pieces(spec: ModelConfig, tower: TowerConfig) -> dict[str, Piece]:
    """Where each of our tensors goes, by transformers' names in memory."""
    pieces = tower_pieces(tower, spec.image.size, "model.vision_tower.".__add__)
    for name in (f"linear_{i}.{part}" for i in (1, 2) for part in ("weight", "bias")):
        pieces[f"projector.{name}"] = Piece((f"model.multi_modal_projector.{name}",))
    decoder = decoder_pieces(spec.decoder, "model.language_model.".__add__)
    return pieces | decoder | {"lm_head.weight": Piece(("lm_head.weight",))}


def _tokenizer(path: Path, decoder: DecoderConfig) -> tuple[Any, int]:
    """transformers' tokenizer with a token for pictures, and that token's id."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_file(str(path))
    ids = {kind: getattr(decoder, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    names = {f"{kind}_token": tokenizer.id_to_token(index) for kind, index in ids.items()}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    made.add_tokens([AddedToken(_IMAGE, special=True, normalized=False)])
    index = made.convert_tokens_to_ids(_IMAGE)
    assert isinstance(index, int)
    return made, index


def _processor(spec: ModelConfig, tower: TowerConfig, tokenizer: Any) -> Any:
    from transformers import CLIPImageProcessorPil, LlavaProcessor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    assert tower.vit is not None
    image = spec.image
    square = {"height": image.size, "width": image.size}
    options: dict[str, Any] = {"image_mean": list(image.mean), "image_std": list(image.std)}
    options |= {"resample": _PIL[image.resample], "do_center_crop": image.mode == "crop", "crop_size": square}
    options["size"] = {"shortest_edge": image.size} if image.mode == "crop" else square
    padded = image.mode == "pad"
    pictures = LlavaImageProcessorPil(**options, do_pad=True) if padded else CLIPImageProcessorPil(**options)
    clip = tower.model == CLIP
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=tower.vit.patch,
        vision_feature_select_strategy="default" if clip and tower.select == "patch" else "full",
        chat_template=get_template(spec.template).jinja,
        num_additional_image_tokens=int(clip),
    )


def _compare(path: Path, network: VisionLanguageModel, image_id: int) -> None:
    """Load the folder as others do, and compare logits after a picture and some tokens.

    Raises:
        CheckpointError: they differ.
    """
    import torch
    from transformers import LlavaForConditionalGeneration

    from mobillama_v.model.vlm import place_image_features

    decoder, tokens = network.spec.decoder, network.tokens_per_image
    generator = torch.Generator().manual_seed(0)
    length = min(16, decoder.max_position_embeddings - tokens)
    text = torch.randint(0, decoder.vocab_size, (length,), generator=generator)
    ids = torch.cat((torch.full((tokens,), image_id), text))[None]
    pixels = torch.randn(1, 3, network.spec.image.size, network.spec.image.size, generator=generator)
    model = LlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    with torch.inference_mode():
        theirs = model(input_ids=ids, pixel_values=pixels).logits[0, :, : decoder.vocab_size]
        mask = torch.arange(ids.shape[1])[None] < tokens
        embeds = network.language_model.embed_tokens(ids.masked_fill(mask, 0))
        embeds = place_image_features(embeds, mask, network.get_image_features(pixels))
        hidden = network.language_model(embeds, position_ids=torch.arange(ids.shape[1])[None])
        ours = network.lm_head(hidden)[0]
    apart, largest = float((theirs - ours).abs().max()), float(ours.abs().max())
    if not apart <= _TOLERANCE * max(1.0, largest):
        raise CheckpointError(
            f"transformers' logits of the exported model are up to {apart:.3g} from its own, whose largest is "
            f"{largest:.3g}; please report this with the model's config.json."
        )
