"""Images: reading them from anywhere, and turning them into the array that a vision tower takes.

:func:`load_image` gives an upright 8-bit RGB image or an :class:`~mobillama_v.errors.ImageError`;
:class:`ImageTransform` resizes and normalizes; :func:`find_images` lists a folder.
"""

from mobillama_v.images.read import find_images, load_image
from mobillama_v.images.transform import ImageTransform

__all__ = ["ImageTransform", "find_images", "load_image"]
