"""The transformers image processor around ``images.py``, and images from wherever users have them.

Shapes: N images, S image side.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import to_pil_image

from mobillama_v.config import from_mapping
from mobillama_v.errors import ImageError
from mobillama_v.images import ImageTransform, load_image
from mobillama_v.images.fetch import fetch, is_url

_BOOKKEEPING = ("image_processor_type", "processor_class", "feature_extractor_type")


class MobiLlamaVImageProcessor(BaseImageProcessor):
    """:class:`~mobillama_v.images.ImageTransform` as transformers' image processors are; the fields are its own."""

    model_input_names = ["pixel_values"]  # noqa: RUF012 (transformers' own declaration)

    def __init__(self, size: int = 336, **fields: Any) -> None:
        super().__init__()
        known = {name: value for name, value in fields.items() if name not in _BOOKKEEPING}
        transform = from_mapping(ImageTransform, {"size": size} | known, "the image processor")
        for name, value in dataclasses.asdict(transform).items():
            setattr(self, name, value)

    @property
    def transform(self) -> ImageTransform:
        """The plain form of this processor's settings."""
        names = [each.name for each in dataclasses.fields(ImageTransform)]
        return from_mapping(ImageTransform, {name: getattr(self, name) for name in names}, "the image processor")

    def preprocess(self, images: Any, return_tensors: str | None = None) -> BatchFeature:
        """Turn one image or a (nested) list of them into ``pixel_values`` [N,3,S,S].

        Args:
            images: Pillow images, paths, bytes of image files, http(s) or data URLs, numpy arrays or tensors.
            return_tensors: ``pt``, ``np`` or None (numpy).

        Raises:
            ImageError: an image that cannot be had or read.
        """
        transform = self.transform
        opened = [open_image(image, target=transform.size) for image in flat_images(images)]
        return BatchFeature({"pixel_values": transform.batch(opened)}, tensor_type=return_tensors)


def open_image(source: Any, *, target: int | None = None) -> Image.Image:
    """An upright RGB image from anything that transformers' users give.

    Raises:
        ImageError: it cannot be fetched or read, or is none of a path, URL, bytes, Pillow image, array or tensor.
    """
    if isinstance(source, str):
        if is_url(source):
            return load_image(fetch(source), name=repr(source), target=target)
    elif isinstance(source, np.ndarray) or hasattr(source, "detach"):
        try:
            source = to_pil_image(source)
        except ValueError as error:
            raise ImageError(f"an array of shape {tuple(source.shape)} is not an image ({error})") from error
    elif (
        not isinstance(source, (bytes, Image.Image))
        and not hasattr(source, "read")
        and not hasattr(source, "__fspath__")
    ):
        raise ImageError(f"a {type(source).__name__} is not an image: give a path, a URL, bytes or a Pillow image")
    return load_image(source, target=target)


def flat_images(images: Any) -> list[Any]:
    """A list of single images, however they are nested."""
    if isinstance(images, (list, tuple)):
        return [each for part in images for each in flat_images(part)]
    if getattr(images, "ndim", 3) == 4:  # a batch of arrays
        return list(images)
    return [images]
