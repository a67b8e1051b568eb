"""Pixels of 8 bits and JPEG files: what arrives is near what was sent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dynbench.data.pixels import Pixels, from_jpeg, jpeg, jpeg_round_trip, why_no_jpeg
from dynbench.errors import UserError

IMAGES = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=4, max_dims=4, max_side=5), elements=st.floats(-50, 50, width=32)
)


@given(IMAGES)
def test_pixels_are_off_by_half_a_step_at_most(images: np.ndarray) -> None:
    pixels = Pixels.of(images)
    coded = pixels.encode(images)
    assert coded.dtype == np.uint8
    step = (np.array(pixels.high) - np.array(pixels.low))[:, None, None] / 255
    assert (np.abs(pixels.decode(coded) - images) <= step * 0.51 + 1e-4).all()
    assert (pixels.encode(pixels.decode(coded)) == coded).all()


def test_values_beyond_the_range_become_its_ends() -> None:
    pixels = Pixels((0.0,), (1.0,))
    assert pixels.encode(np.array([[[[-5.0, 0.5, 7.0]]]], np.float32)).tolist() == [[[[0, 128, 255]]]]


def scene(channels: int) -> np.ndarray:
    y, x = np.mgrid[0:32, 0:32]
    planes = [np.sin(x / (5 + c)) * np.cos(y / 7) * 100 + 128 for c in range(channels)]
    made: np.ndarray = np.stack(planes).astype(np.uint8)
    return made


@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_of_high_quality_is_near_and_of_low_quality_smaller(channels: int) -> None:
    pytest.importorskip("cv2")
    image = scene(channels)
    fine, coarse = jpeg(image, 95), jpeg(image, 10)
    arrived = from_jpeg(fine, channels)
    assert arrived.shape == image.shape and arrived.dtype == np.uint8
    error = [np.abs(from_jpeg(f, channels).astype(int) - image).mean() for f in (fine, coarse)]
    assert error[0] < 4 and error[0] < error[1] and len(coarse) < len(fine)


def test_channels_keep_their_order() -> None:
    pytest.importorskip("cv2")
    red = np.zeros((3, 16, 16), np.uint8)
    red[0] = 255
    arrived = from_jpeg(jpeg(red, 95), 3)
    assert arrived[0].mean() > 240 and arrived[1:].mean() < 15
    assert jpeg(red, 95)[:2] == b"\xff\xd8"


def test_a_round_trip_returns_the_sizes_of_the_files() -> None:
    pytest.importorskip("cv2")
    images = np.stack([scene(1), np.zeros_like(scene(1))])
    arrived, sizes = jpeg_round_trip(images, 75)
    assert arrived.shape == images.shape and sizes[0] == len(jpeg(images[0], 75)) > sizes[1]


@pytest.mark.parametrize(("channels", "quality"), [(2, 50), (4, 50), (1, 0), (1, 101)])
def test_what_is_no_jpeg_is_refused(channels: int, quality: int) -> None:
    pytest.importorskip("cv2")
    with pytest.raises(UserError, match="no JPEG of"):
        jpeg(np.zeros((channels, 8, 8), np.uint8), quality)


def test_bytes_that_are_not_a_jpeg_are_refused() -> None:
    pytest.importorskip("cv2")
    with pytest.raises(UserError, match="not a JPEG file"):
        from_jpeg(b"hello", 1)


def test_a_missing_opencv_is_reported_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(UserError, match=r"pip install 'dynbench\[vision\]'"):
        jpeg(scene(1), 50)
    assert "OpenCV" in (why_no_jpeg() or "")
