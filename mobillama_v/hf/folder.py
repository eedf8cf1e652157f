"""What makes a model folder explain itself to other programs: chat template, special tokens, generation, model card.

Nothing here imports transformers, so that whatever writes a folder can call it.
"""

from __future__ import annotations

import json
from pathlib import Path

from mobillama_v.chat_templates import get_template
from mobillama_v.config import ModelConfig
from mobillama_v.errors import CheckpointError
from mobillama_v.hub import read_spec

CHAT_TEMPLATE, CARD = "chat_template.jinja", "README.md"
TOKENIZER, GENERATION = "tokenizer_config.json", "generation_config.json"


def describe_folder(folder: Path) -> None:
    """Write what is not there yet of :data:`CHAT_TEMPLATE`, :data:`TOKENIZER`, :data:`GENERATION` and :data:`CARD`.

    The folder has a ``config.json`` and a ``tokenizer.json``.

    Raises:
        CheckpointError: one of them is missing or damaged, or the special tokens are not among the tokenizer's.
    """
    from tokenizers import Tokenizer

    from mobillama_v.tokenization import TextTokenizer

    spec = read_spec(folder)
    decoder = spec.decoder
    TextTokenizer.of_decoder(folder / "tokenizer.json", decoder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = {kind: getattr(decoder, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    tokens = {f"{kind}_token": tokenizer.id_to_token(index) for kind, index in ids.items()}
    if None in tokens.values():
        raise CheckpointError(f"{folder / 'tokenizer.json'} lacks a token of {ids}; copy it from the model's folder.")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": decoder.max_position_embeddings,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        **tokens,
    }
    add_card(folder, spec)
    _add(folder / TOKENIZER, json.dumps(settings, indent=2) + "\n")
    _add(folder / GENERATION, json.dumps({f"{kind}_token_id": i for kind, i in ids.items()}, indent=2) + "\n")


def add_card(folder: Path, spec: ModelConfig) -> None:
    """Write the model card and the chat template where there is none."""
    _add(folder / CHAT_TEMPLATE, get_template(spec.template).jinja)
    _add(folder / CARD, card(spec))


def card(spec: ModelConfig) -> str:
    """The text of a model card: what the model is made of, and how it is asked."""
    decoder = spec.decoder
    sharing = "one feed-forward network for all layers" if decoder.ffn_sharing == "all" else "one for each layer"
    return f"""---
library_name: mobillama-v
pipeline_tag: image-text-to-text
tags: [mobillama-v, vision-language]
---
# A MobiLlama-V model
A small vision-language model: it answers questions about pictures.

| part | what |
| --- | --- |
| image tower | `{spec.tower.model}`, pictures of {spec.image.size} x {spec.image.size} pixels |
| projector | `{spec.projector.type}`, {spec.tokens_per_image()} visual tokens a picture |
| decoder | MobiLlama: width {decoder.hidden_size}, {decoder.num_hidden_layers} layers, feed-forward {sharing} |
| context | {decoder.max_position_embeddings} tokens, template `{spec.template}` |

## Use
```bash
pip install mobillama-v
mobillama-v describe --model THIS_FOLDER photo.jpg
```
In Python: `mobillama_v.load("THIS_FOLDER").ask(["photo.jpg"], "What is this?").text`. With transformers, after
`import mobillama_v`: `pipeline("image-text-to-text", model="THIS_FOLDER")`.

## Data, license, limits
Say here what it learned from, on which terms it may be used, and what it does badly.
"""


def _add(path: Path, text: str) -> None:
    if not path.exists():
        path.write_text(text, encoding="utf-8")
