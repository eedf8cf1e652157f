"""Which parts of a picture an answer depends on: how much less likely it becomes when a part is covered.

That is occlusion (Zeiler and Fergus, arXiv 1311.2901, section 4.2), on a grid of pixels. It asks the whole model, where
attention weights only tell what was read and not whether it mattered (arXiv 1902.10186).

Shapes: R rows (pictures covered in different places), N images of the conversation, T tokens, P' visual tokens an
image, D decoder width, C cells a side, S image side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mobillama_v.assistant import Assistant, EncodedImage
from mobillama_v.errors import ConfigError
from mobillama_v.model.vlm import place_image_features
from mobillama_v.prompt import IGNORE_INDEX, Message, get_template
from mobillama_v.prompt import assistant as assistant_turn

CELLS = 7
_SHOWN = 448  # pixels a side of the rendered map


def importance(
    model: Assistant, messages: Sequence[Message], images: Sequence[EncodedImage], square: Image.Image, answer: str
) -> Iterator[Tensor]:
    """How many nats each cell of the last picture adds to the log-likelihood of ``answer``.

    Args:
        model: what answered.
        messages: the conversation up to the question.
        images: its pictures.
        square: the last of them as the model sees it, [S,S] pixels.
        answer: the text.

    Yields:
        The map [C,C] so far, once a row of cells; the last one is whole.

    Raises:
        ConfigError: the model's decoder is only there in packed form.
    """
    if model.network.lm_head.weight.is_meta:
        raise ConfigError("a packed decoder only says what comes next; for this map, load the model before packing.")
    shown = torch.stack([torch.as_tensor(image.features) for image in images])
    whole = log_likelihood(model, messages, shown[None], answer)
    found = torch.zeros(CELLS, CELLS)
    for row in range(CELLS):
        covered = [cover(square, row, column) for column in range(CELLS)]
        rows = shown[None].repeat(CELLS, 1, 1, 1)
        rows[:, -1] = _encoded(model, covered)
        found[row] = (whole - log_likelihood(model, messages, rows, answer)).float().cpu()
        yield found


@torch.inference_mode()
def log_likelihood(model: Assistant, messages: Sequence[Message], images: Tensor, answer: str) -> Tensor:
    """Log-probability [R] of ``answer`` and its end, after a conversation with ``images`` [R,N,P',D]."""
    encoded = get_template(model.spec.template).encode(
        [*messages, assistant_turn(answer)],
        model.tokenizer,
        tokens_per_image=model.vision.tokens_per_image,
        max_length=model.context,
    )
    rows, network = len(images), model.network
    ids = torch.tensor(encoded.input_ids, device=model.device).repeat(rows, 1)  # [R,T]
    slots = torch.tensor(encoded.image_mask).repeat(rows, 1)
    embeds = place_image_features(network.language_model.embed_tokens(ids), slots, images.flatten(0, 1))
    positions = torch.arange(ids.shape[1], device=model.device).repeat(rows, 1)
    hidden = network.language_model(embeds, position_ids=positions)
    told = [t for t, label in enumerate(encoded.labels) if label != IGNORE_INDEX]
    logits = network.lm_head(hidden[:, [t - 1 for t in told]]).float()  # [R,told,V]
    return logits.log_softmax(-1).gather(-1, ids[:, told, None]).sum((1, 2))


def cover(square: Image.Image, row: int, column: int) -> Image.Image:
    """The picture with one cell in its mean color."""
    side = square.width
    box = tuple(round(edge * side / CELLS) for edge in (column, row, column + 1, row + 1))
    mean = np.asarray(square, dtype=np.float32).mean((0, 1)).round().astype(int)
    covered = square.copy()
    covered.paste((int(mean[0]), int(mean[1]), int(mean[2])), (box[0], box[1], box[2], box[3]))
    return covered


def render(square: Image.Image, found: Tensor) -> Image.Image:
    """The picture, lit where the answer depends on it and dark elsewhere."""
    positive = found.clamp(min=0)
    light = (255 * positive / positive.max().clamp(min=1e-6)).round().byte().numpy()
    side = (_SHOWN, _SHOWN)
    mask = Image.fromarray(light).resize(side, Image.Resampling.BICUBIC)
    bright = square.resize(side, Image.Resampling.BICUBIC)
    return Image.composite(bright, bright.point(lambda value: value // 5), mask)


@torch.inference_mode()
def _encoded(model: Assistant, squares: list[Image.Image]) -> Tensor:
    pixels = torch.from_numpy(model.spec.image.batch(squares)).to(model.device)
    return model.network.get_image_features(pixels)
