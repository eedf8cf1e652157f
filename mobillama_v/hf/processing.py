"""The transformers processor: text and images to model inputs, by ``images`` and ``prompt.py``.

Conversations are encoded by ``prompt.py``; the ``chat_template.jinja`` that is saved says the same to other programs,
and is not read. Image slots are a mask, so ``<image>`` or
``</s>`` typed by a user stays text. A folder with only ``config.json`` and ``tokenizer.json`` is enough to load a
processor; one that was saved has its settings in ``processor_config.json``.

Shapes: B rows, T positions (padded on the left), N images of all rows in order, S image side.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import BatchFeature, ProcessorMixin, TokenizersBackend
from transformers.utils import cached_file

from mobillama_v.chat_templates import get_template
from mobillama_v.conversation import read_chat
from mobillama_v.errors import CheckpointError, PromptError
from mobillama_v.hf.configuration import MobiLlamaVConfig
from mobillama_v.hf.image_processing import MobiLlamaVImageProcessor
from mobillama_v.hf.remote_code import name_remote_code
from mobillama_v.hf.rendering import (
    IMAGE_TEXT,
    RenderedPrompt,
    encode_rendered,
    images_of_rows,
    in_template,
    render,
    without_places,
)
from mobillama_v.prompt import IGNORE_INDEX, Encoded
from mobillama_v.tokenization import TextTokenizer, check_vocabulary

_LOG = logging.getLogger(__name__)
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class MobiLlamaVProcessor(ProcessorMixin):
    """Text and images to ``input_ids``, ``attention_mask`` and ``image_mask`` [B,T], and ``pixel_values`` [N,3,S,S].

    Args:
        image_processor: makes pixels.
        tokenizer: the ``tokenizer.json`` as transformers reads it, with its special tokens.
        template: a name in :data:`~mobillama_v.chat_templates.TEMPLATES`.
        tokens_per_image: slots that one image takes.
        context_length: longest prompt that is accepted, in tokens.
    """

    def __init__(
        self,
        image_processor: MobiLlamaVImageProcessor,
        tokenizer: TokenizersBackend,
        template: str = "v1",
        tokens_per_image: int = 576,
        context_length: int = 2048,
    ) -> None:
        # For programs that read it, and for the tokenizer alone; this class encodes by the template itself.
        jinja = get_template(template).jinja
        super().__init__(image_processor, tokenizer, chat_template=jinja)
        tokenizer.chat_template = jinja
        self.template, self.tokens_per_image, self.context_length = template, tokens_per_image, context_length
        ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        absent = [name for name, value in ids.items() if value is None]
        if absent:
            raise CheckpointError(
                f"the tokenizer names no {' and no '.join(absent)} token; set it in its configuration."
            )
        # A copy: transformers' calls change settings of theirs.
        own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.text_tokenizer = TextTokenizer(own, bos_id=ids["bos"], eos_id=ids["eos"], pad_id=ids["pad"])

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call returns."""
        return ["input_ids", "attention_mask", "image_mask", "pixel_values"]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        return_tensors: str | None = "pt",
        padding: bool | str = True,
        padding_side: str = "left",
        pad_to_multiple_of: int | None = None,
        truncation: bool = False,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        return_assistant_tokens_mask: bool = False,
    ) -> BatchFeature:
        """Encode questions or prompts with their images.

        Args:
            images: for one text, its image or images; for several, a list with the images of each.
            text: a plain string is a user's question, and its images come before it, also where it begins with
                ``<image>`` for each. What :meth:`apply_chat_template` rendered is encoded as it was meant, and a string
                in the template's form (``USER: <image>\\n… ASSISTANT:``, an ``<image>`` for each image) is not wrapped
                again. A list makes a batch.
            return_tensors: ``pt``, ``np``, or None for lists.
            padding: ``max_length`` pads to that length, everything else to the longest row.
            padding_side: ``left`` (for generation) or ``right``.
            pad_to_multiple_of: pad to a multiple of this length.
            truncation: cut prompts to ``max_length`` instead of refusing them; never within the images.
            max_length: refuse longer prompts (by default than the model's context).
            add_special_tokens: False says that every string is in the template's form, with all its special tokens.
            return_assistant_tokens_mask: add ``assistant_masks`` [B,T], 1 where the assistant's words are.

        Raises:
            PromptError: no text, images that do not match it, or too long a prompt.
            ImageError: an image that cannot be read.
        """
        if text is None:
            raise PromptError("there is no text; give a question about the images.")
        if padding not in (True, False, "longest", "max_length", "do_not_pad") or padding_side not in ("left", "right"):
            options = "longest or max_length, left or right"
            raise PromptError(f"padding {padding!r} on the {padding_side!r} is not supported; use {options}.")
        texts = [text] if isinstance(text, str) else list(text)
        limit = self.context_length if max_length is None else max_length
        rows: list[Encoded] = []
        pictures: list[Any] = []
        for each, given_images in zip(texts, images_of_rows(images, texts), strict=True):
            row, shown = self._row(each, given_images, None if truncation else limit, raw=not add_special_tokens)
            rows.append(_cut(row, limit) if truncation else row)
            pictures += shown
        width = max([len(row.input_ids) for row in rows] + [limit] * (padding == "max_length"))
        width += -width % (pad_to_multiple_of or 1)
        pad = self.text_tokenizer.pad_id
        columns: dict[str, list[tuple[list[Any], Any]]] = {
            "input_ids": [(row.input_ids, pad) for row in rows],
            "attention_mask": [([1] * len(row.input_ids), 0) for row in rows],
            "image_mask": [(row.image_mask, False) for row in rows],
        }
        if return_assistant_tokens_mask:
            masks = [[int(label != IGNORE_INDEX) for label in row.labels] for row in rows]
            columns["assistant_masks"] = [(mask, 0) for mask in masks]
        data: dict[str, Any] = {}
        for name, values in columns.items():
            filled = [(value, [filler] * (width - len(value))) for value, filler in values]
            data[name] = [[*value, *fill] if padding_side == "right" else [*fill, *value] for value, fill in filled]
        if pictures:
            data["pixel_values"] = self.image_processor.preprocess(pictures)["pixel_values"]
        return BatchFeature(data, tensor_type=return_tensors)

    def _row(self, text: str, images: list[Any], max_length: int | None, *, raw: bool) -> tuple[Encoded, Sequence[Any]]:
        """One text as tokens, and the images of its slots."""
        if not isinstance(text, str):
            raise PromptError(f"text must be a string or a list of strings, not {type(text).__name__}.")
        template, tokens = get_template(self.template), self.tokens_per_image
        if not isinstance(text, RenderedPrompt):
            if raw or in_template(template, text, len(images)):
                encoded = encode_rendered(template, text, self.text_tokenizer, self.tokenizer, tokens, trusted=raw)
                if sum(encoded.image_mask) != tokens * len(images):
                    raise PromptError(f"a prompt has other {IMAGE_TEXT} places than its {len(images)} images.")
                template.check_length(encoded, max_length)
                return encoded, images
            text, images = RenderedPrompt(text, read_chat(without_places(text, len(images)), images)), []
        read = text.conversation.fill(images)
        messages = list(read.messages)
        encoded = template.encode(
            messages, self.text_tokenizer, tokens_per_image=tokens, max_length=max_length, open_ended=text.goes_on
        )
        return encoded, read.images

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = "auto",
        processor_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Render or encode a chat, or a list of chats, given as transformers gives them.

        A chat that ends with the user's turn always ends with ``ASSISTANT:``; the template knows no other end.

        Args:
            conversation: what :func:`~mobillama_v.conversation.read_chat` takes: mappings with ``role`` and
                ``content``, a text or parts of ``type`` ``text`` (``text``) and ``image`` (``image``, ``url``, ``path``
                or ``base64``, or none of them with ``images`` given beside).
            chat_template: None or the model's own, for there is one template.
            add_generation_prompt: make sure that an answer is what comes next.
            continue_final_message: go on with the assistant's last turn instead of ending it.
            tokenize: encode, instead of returning a :class:`RenderedPrompt`.
            return_dict: all model inputs, instead of ``input_ids`` alone.
            return_tensors: as in a call; ``auto`` is ``pt``.
            processor_kwargs: options of a call (``images``, ``padding``, ``max_length``).
            **options: the same.

        Raises:
            PromptError: a chat that the template cannot hold, or images that do not match it.
            ImageError: an image that cannot be read.
        """
        if chat_template not in (None, self.chat_template):
            raise PromptError("a chat_template was given, and MobiLlama-V encodes by its own; leave it out.")
        options = (processor_kwargs or {}) | options
        batched = isinstance(conversation, (list, tuple)) and isinstance(next(iter(conversation), None), (list, tuple))
        rendered = []
        for chat in conversation if batched else [conversation]:
            read = read_chat(chat)
            if read.notes:
                _LOG.info("a conversation was normalized: %s", "; ".join(read.notes))
            answered = read.messages[-1].role == "assistant"
            if add_generation_prompt and answered:
                raise PromptError("the conversation ends with an answer, so there is nothing to answer; ask something.")
            if continue_final_message and not answered:
                raise PromptError("only a conversation that ends with the assistant's turn can be continued.")
            shown = render(get_template(self.template), read, self.tokenizer, goes_on=continue_final_message)
            rendered.append(shown)
        if not tokenize:
            return rendered if batched else rendered[0]
        options["return_tensors"] = "pt" if return_tensors == "auto" else return_tensors
        inputs = self(text=rendered, **options)
        return inputs if return_dict else inputs["input_ids"]

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Save as transformers does; in a folder that holds the model's code, so that this code is found."""
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        name_remote_code(Path(save_directory))
        return saved

    @classmethod
    def get_processor_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The saved settings, or, where no processor was saved, those that ``config.json`` implies.

        Raises:
            CheckpointError: neither is there.
        """
        settings, rest = super().get_processor_dict(pretrained_model_name_or_path, **kwargs)
        settings.pop("chat_template", None)
        if "tokens_per_image" in settings:
            return settings, rest
        config = _read_config(pretrained_model_name_or_path, kwargs)
        if config is None:
            raise CheckpointError(
                f"{pretrained_model_name_or_path} has neither a config.json nor a processor_config.json of this "
                "project; give a folder that holds a model."
            )
        return settings | settings_of(config), rest

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        image_processor = MobiLlamaVImageProcessor(**(processor_dict or {}).get("image_processor", {}))
        return [image_processor, load_tokenizer(pretrained_model_name_or_path, **kwargs)]


def _cut(row: Encoded, length: int) -> Encoded:
    """The row without what is beyond ``length``."""
    if any(row.image_mask[length:]):
        raise PromptError(f"max_length={length} would cut within the images; raise it.")
    return Encoded(row.input_ids[:length], row.labels[:length], row.image_mask[:length])


def settings_of(config: MobiLlamaVConfig) -> dict[str, Any]:
    """The content of the ``processor_config.json`` that belongs to a model of this configuration."""
    spec = config.spec
    return {
        "image_processor": dataclasses.asdict(spec.image),
        "template": spec.template,
        "tokens_per_image": spec.tokens_per_image(),
        "context_length": spec.decoder.max_position_embeddings,
    }


def load_tokenizer(name: Any, **kwargs: Any) -> TokenizersBackend:
    """The ``tokenizer.json`` of a model, with the special tokens whose ids ``config.json`` (where it is there) gives.

    Raises:
        CheckpointError: no tokenizer, no such token, or more tokens than the model has.
    """
    hub = _hub_options(kwargs)
    if not _has_file(name, "tokenizer.json", hub):
        raise CheckpointError(f"{name} has no tokenizer.json; copy it from where the model comes from.")
    tokenizer = TokenizersBackend.from_pretrained(name, padding_side="left", **hub)
    config = _read_config(name, kwargs)
    if config is None:
        return tokenizer
    decoder = config.spec.decoder
    check_vocabulary(f"the tokenizer of {name}", len(tokenizer), decoder)
    special = {}
    for kind in ("bos", "eos", "pad"):
        index = getattr(decoder, f"{kind}_token_id")
        token = tokenizer.convert_ids_to_tokens(index)
        if token is None:
            raise CheckpointError(
                f"the tokenizer of {name} has no token {index}, which config.json names as {kind}_token_id; "
                "copy tokenizer.json and config.json from the same model."
            )
        special[f"{kind}_token"] = token
    tokenizer.add_special_tokens(special)
    return tokenizer


def _read_config(name: Any, kwargs: dict[str, Any]) -> MobiLlamaVConfig | None:
    hub = _hub_options(kwargs)
    # Without the file transformers would return a configuration of default values.
    return MobiLlamaVConfig.from_pretrained(name, **hub) if _has_file(name, "config.json", hub) else None


def _hub_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key in _HUB_OPTIONS}


def _has_file(name: Any, file: str, hub: dict[str, Any]) -> bool:
    return cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub) is not None
