"""Images as they are sent over a network: 8-bit pixels or a JPEG file. Baselines for sending patches or features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynbench.errors import UserError


@dataclass(frozen=True)
class Pixels:
    """Conversion between real values [n, c, H, W] and integers 0 to 255.

    Attributes:
        low: the value that 0 stands for, per channel.
        high: the value that 255 stands for, per channel.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, images: np.ndarray) -> Pixels:
        """The conversion for the range of images [n, c, H, W], per channel."""
        low, high = images.min((0, 2, 3)), images.max((0, 2, 3))
        return cls(tuple(low.tolist()), tuple(np.where(high > low, high, low + 1).tolist()))

    def encode(self, values: np.ndarray) -> np.ndarray:
        """[n, c, H, W] -> uint8; values outside the range are clipped."""
        low, span = self._scale(values.dtype)
        coded: np.ndarray = np.rint((values - low) / span * 255).clip(0, 255).astype(np.uint8)
        return coded

    def decode(self, coded: np.ndarray) -> np.ndarray:
        """uint8 [n, c, H, W] -> float32."""
        low, span = self._scale(np.dtype(np.float32))
        values: np.ndarray = coded.astype(np.float32) / 255 * span + low
        return values

    def _scale(self, dtype: np.dtype[Any]) -> tuple[np.ndarray, np.ndarray]:
        low, high = (np.asarray(ends, dtype)[:, None, None] for ends in (self.low, self.high))
        return low, high - low


def why_no_jpeg() -> str | None:
    """Why JPEG files cannot be made here, in one sentence; None: they can."""
    try:
        _opencv()
    except UserError as e:
        return str(e)
    return None


def jpeg(image: np.ndarray, quality: int) -> bytes:
    """One image, uint8 [c, H, W] with 1 or 3 channels (red, green, blue), as a JPEG file.

    Raises:
        UserError: OpenCV is not installed, or the number of channels or the quality is not valid.
    """
    cv2 = _opencv()
    if image.shape[0] not in (1, 3) or not 1 <= quality <= 100:
        raise UserError(f"no JPEG of {image.shape[0]} channels at quality {quality}: 1 or 3 channels, quality 1 to 100")
    rows = image[0] if len(image) == 1 else np.ascontiguousarray(image[::-1].transpose(1, 2, 0))  # blue first
    coded: bytes = cv2.imencode(".jpg", rows, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return coded


def from_jpeg(file: bytes, channels: int) -> np.ndarray:
    """A JPEG file -> uint8 [channels, H, W].

    Raises:
        UserError: OpenCV is not installed, or the bytes are not a JPEG file.
    """
    cv2 = _opencv()
    rows = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR)
    if rows is None:
        raise UserError(f"{len(file)} bytes that are not a JPEG file")
    decoded: np.ndarray = rows[None] if channels == 1 else np.ascontiguousarray(rows.transpose(2, 0, 1)[::-1])
    return decoded


def jpeg_round_trip(images: Iterable[np.ndarray], quality: int) -> tuple[np.ndarray, np.ndarray]:
    """Encodes and decodes images, uint8 [c, H, W] each: (uint8 [n, c, H, W], sizes of the files in bytes [n])."""
    files = [(jpeg(image, quality), image.shape[0]) for image in images]
    arrived = np.stack([from_jpeg(file, channels) for file, channels in files])
    return arrived, np.array([len(file) for file, _ in files])


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as e:
        raise UserError("JPEG needs OpenCV, which is not installed: pip install 'dynbench[vision]'") from e
    return cv2
