"""The models that transformers users meet: the decoder with its head, and the whole vision-language model.

Both are thin shells around :class:`~mobillama_v.model.decoder.Decoder`. With labels, logits are computed only at
supervised positions: image and prompt positions cost nothing in the head.

Shapes: B rows, T positions, N images, P' visual tokens an image, D decoder width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from mobillama_v.checkpoint import refuse_misfits
from mobillama_v.errors import CheckpointError, PromptError
from mobillama_v.hf.attention import attention
from mobillama_v.hf.configuration import MobiLlamaConfig, MobiLlamaVConfig
from mobillama_v.hf.folder import add_card
from mobillama_v.hf.remote_code import write_remote_code
from mobillama_v.model.decoder import Decoder, Mask, RMSNorm, position_ids_from_mask
from mobillama_v.model.vlm import VisionLanguage, place_image_features
from mobillama_v.prompt import IGNORE_INDEX

# transformers 5.24 calls `cache` what was `past_key_values`; a model that knows only one of them runs without a cache
# under the other, and generates nonsense.
_OUTPUT_FIELDS = {field.name for field in dataclasses.fields(CausalLMOutputWithPast)}
_CACHE = "cache" if "cache" in _OUTPUT_FIELDS else "past_key_values"


@dataclass
class MobiLlamaOutput(CausalLMOutputWithPast):
    """What a forward pass gives; beside transformers' own fields the decoder's last hidden state [B,T,D]."""

    last_hidden_state: Tensor | None = None


def supervised_loss(hidden: Tensor, head: nn.Linear, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """Next-token cross entropy over supervised positions only.

    Args:
        hidden: [B,T,D].
        head: D to V.
        labels: [B,T], aligned with the inputs (shifted here), ``-100`` where not supervised.
        num_items_in_batch: supervised tokens over all accumulation steps and ranks; None means those of this batch.

    Returns:
        A scalar; 0 (with a gradient path) where nothing is supervised.
    """
    targets = labels[:, 1:]
    chosen = targets != IGNORE_INDEX
    logits = head(hidden[:, :-1][chosen])  # [M,V], M supervised positions
    total = F.cross_entropy(logits.float(), targets[chosen], reduction="sum")
    count = chosen.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return total / count


def _places(
    config: MobiLlamaConfig,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cache: Cache | None,
) -> tuple[Tensor, Tensor | None]:
    """Positions [B,T] of rows that may be padded and go on after a cache, and the mask for them."""
    length = inputs_embeds.shape[1]
    if position_ids is None:
        past = cache.get_seq_length() if cache is not None else 0
        if attention_mask is not None and attention_mask.dim() == 2:
            position_ids = position_ids_from_mask(attention_mask)[:, past : past + length]
        else:
            position_ids = torch.arange(past, past + length, device=inputs_embeds.device)[None]
    mask = create_causal_mask(
        config=config,
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        position_ids=position_ids,
        **{_CACHE: cache},
    )
    return position_ids, mask


class _DecoderRunner(PreTrainedModel, GenerationMixin):
    """What both models share: masks, positions, cache, head and loss around a decoder."""

    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flex_attn = _supports_flash_attn = _supports_attention_backend = True
    _no_split_modules = ["Block"]  # noqa: RUF012 (transformers' own declaration)
    _skip_keys_device_placement = ["cache", "past_key_values"]  # noqa: RUF012
    _can_compile_fullgraph = True

    lm_head: nn.Linear

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load as transformers does, but strictly, and without ever running anything that a file holds.

        transformers warns of tensors that do not fit, fills them at random and goes on; here they are an error, and
        ``ignore_mismatched_sizes`` and ``weights_only`` have no effect.

        Raises:
            CheckpointError: missing, extra or mis-shaped tensors, named, or a damaged file.
        """
        with_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"ignore_mismatched_sizes": True, "weights_only": True}
        try:
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
            )
        except (SafetensorError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"weights of {pretrained_model_name_or_path} are damaged or hold more than tensors; copy them again."
            ) from error
        model, info = loaded
        refuse_misfits(
            pretrained_model_name_or_path,
            missing=sorted(info["missing_keys"]),
            extra=sorted(info["unexpected_keys"]),
            wrong=[
                f"{name} is {list(found)} and must be {list(wanted)}"
                for name, found, wanted in sorted(info["mismatched_keys"])
            ],
        )
        if getattr(model.generation_config, "_from_model_config", False):
            # Without a generation_config.json transformers takes the use_cache of config.json, which trainers switch
            # off for themselves; generation would run the tower for every token.
            model.generation_config.use_cache = True
        return (model, info) if with_info else model

    def _init_weights(self, module: nn.Module) -> None:
        std = self._decoder.spec.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)

    @property
    def base_model(self) -> PreTrainedModel:  # type: ignore[override]
        """The model itself: its output has the ``last_hidden_state`` for which trainers ask a backbone."""
        return self

    @property
    def _decoder(self) -> Decoder:
        raise AttributeError(f"{type(self).__name__} names no decoder")

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embeddings [V,D]."""
        return self._decoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        assert isinstance(value, nn.Embedding)
        self._decoder.embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear:
        """The untied head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the head."""
        self.lm_head = new_embeddings

    def _embed(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        pixel_values: Tensor | None,
        image_features: Tensor | None,
        image_mask: Tensor | None,
    ) -> Tensor:
        """Embeddings [B,T,D] of the tokens and, in the model that has a tower, of the images at their slots."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        embeds = self._decoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if pixel_values is not None and image_features is not None:
            raise ValueError("give at most one of pixel_values and image_features")
        has_images = pixel_values is not None or image_features is not None
        compiling = torch.compiler.is_compiling()  # a graph cannot look at values
        if has_images != (image_mask is not None and (compiling or bool(image_mask.any()))):
            raise PromptError(
                "pixel_values (or image_features) and image_mask go together: one was given without the other."
            )
        if not has_images:
            return embeds
        if not isinstance(self, VisionLanguage):
            raise PromptError("this model reads text alone: load the whole model to ask about images.")
        assert image_mask is not None
        if pixel_values is not None:
            image_tokens = self.get_image_features(pixel_values)
        else:
            assert image_features is not None
            image_tokens = self.project(image_features)
        return place_image_features(embeds, image_mask, image_tokens)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        image_features: Tensor | None = None,
        past_key_values: Cache | None = None,
        sample_lengths: tuple[int, ...] | None = None,
        **_: Any,
    ) -> MobiLlamaOutput:
        """Run the model.

        Args:
            input_ids: [B,T]; any valid id stands at image slots.
            pixel_values: [N,3,S,S], the images of all rows in order.
            image_mask: [B,T] boolean, True at image slots.
            attention_mask: [B,S], 1 where a position exists; left or right padding.
            position_ids: [B,T].
            cache: a transformers cache.
            inputs_embeds: [B,T,D] instead of ``input_ids``.
            labels: [B,T], -100 where not supervised; image slots never are.
            use_cache: keep keys and values for later calls.
            logits_to_keep: how many last positions get logits; 0 means all.
            output_hidden_states: return the input of each layer and the final state.
            output_attentions: return the attention weights [B,H,T,S] of each layer.
            num_items_in_batch: supervised tokens over accumulation and ranks, for the loss.
            image_features: [N,E+P,Dv], the tower's output (of a cache, say) instead of ``pixel_values``.
            past_key_values: ``cache`` as transformers before 5.24 names it.
            sample_lengths: tokens of each sample, where several are packed one after the other into the only row: none
                attends to another, and positions start anew in each.
            **_: ignored; transformers passes more than this model needs.

        Returns:
            ``logits`` [B,T,V], ``loss`` with labels. In training there are no logits beside a loss: they are computed
            at supervised positions only.

        Raises:
            PromptError: image slots and images disagree.
        """
        inputs_embeds = self._embed(input_ids, inputs_embeds, pixel_values, image_features, image_mask)
        cache = past_key_values if cache is None else cache
        config: Any = self.config.get_text_config()
        use_cache = (config.use_cache if use_cache is None else use_cache) and not self.training
        if use_cache and cache is None and sample_lengths is None:
            cache = DynamicCache(config=config)
        mask: Mask | None
        if sample_lengths is None:
            position_ids, mask = _places(config, inputs_embeds, attention_mask, position_ids, cache)
        else:
            if inputs_embeds.shape[:2] != (1, sum(sample_lengths)) or attention_mask is not None or cache is not None:
                raise ValueError("packed samples fill the only row, and go without attention_mask and cache")
            positions = [torch.arange(each, device=inputs_embeds.device) for each in sample_lengths]
            position_ids, mask = torch.cat(positions)[None], tuple(sample_lengths)
        states: list[Tensor] | None = [] if output_hidden_states else None
        weights: list[Tensor] | None = [] if output_attentions else None
        attend = attention(config._attn_implementation, weights)
        hidden = self._decoder(
            inputs_embeds, position_ids=position_ids, mask=mask, cache=cache, hidden_states=states, attend=attend
        )
        loss = logits = None
        if labels is not None:
            labels = labels if image_mask is None else labels.masked_fill(image_mask, IGNORE_INDEX)
            loss = supervised_loss(hidden, self.lm_head, labels, num_items_in_batch)
        if labels is None or not self.training:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, keep])
        kept: dict[str, Any] = {_CACHE: cache}
        return MobiLlamaOutput(
            loss=loss,  # type: ignore[arg-type]
            logits=logits,  # type: ignore[arg-type]
            hidden_states=tuple(states) if states else None,
            attentions=tuple(weights) if weights else None,
            last_hidden_state=hidden,
            **kept,
        )


class MobiLlamaForCausalLM(_DecoderRunner):
    """The MobiLlama decoder with its language-model head (text only)."""

    config_class = MobiLlamaConfig
    base_model_prefix = "model"

    def __init__(self, config: MobiLlamaConfig) -> None:
        super().__init__(config)
        self.model = Decoder(config.spec)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @property
    def _decoder(self) -> Decoder:
        return self.model

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **options: Any,
    ) -> MobiLlamaOutput:
        """Run the decoder; arguments in the order of transformers' text models, ``options`` as of the whole model."""
        return super().forward(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            logits_to_keep=logits_to_keep,
            **options,
        )


class MobiLlamaVForConditionalGeneration(_DecoderRunner, VisionLanguage):
    """CLIP image tower, projector and MobiLlama decoder: answers about images."""

    config_class = MobiLlamaVConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")  # type: ignore[assignment]  # transformers only looks into it

    def __init__(self, config: MobiLlamaVConfig) -> None:
        super().__init__(config)
        # transformers makes masks for the part that owns the decoder; without this it would make none.
        assert isinstance(config.text_config, MobiLlamaConfig)
        config.text_config._attn_implementation = config._attn_implementation
        spec = config.spec
        self.add_tower(spec)
        for module in self.vision_tower.modules():
            # open_clip has initialized it, and as CLIP should be
            module._is_hf_initialized = True  # type: ignore[assignment]
        self.add_language_parts(spec)
        self.post_init()

    @property
    def _decoder(self) -> Decoder:
        return self.language_model

    def save_pretrained(
        self,
        save_directory: Any,
        is_main_process: bool = True,
        *args: Any,
        remote_code: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Save as transformers does, with a model card and the chat template where there is none.

        With ``remote_code`` the folder also holds the model's code (:mod:`mobillama_v.hf.remote_code`), for
        ``trust_remote_code=True`` where this package is not installed; None means where the model came with it.
        """
        folder = Path(save_directory)
        if is_main_process and not folder.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            add_card(folder, self.config.spec)
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if remote_code is None:
            remote_code = bool(getattr(self.config, "auto_map", None))
        if remote_code and is_main_process:
            write_remote_code(folder)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        *args: Any,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Give the images to the prefill only; later steps find them in the cache (or, without one, run all again)."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, *args, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            inputs["pixel_values"] = inputs["image_mask"] = None
        elif inputs.get("image_mask") is not None:
            mask, embeds = inputs["image_mask"], inputs.get("inputs_embeds")
            length = input_ids.shape[1] if embeds is None else embeds.shape[1]
            inputs["image_mask"] = F.pad(mask, (0, length - mask.shape[1]))
        return inputs
