"""The modelled network: its presets, its arithmetic, and the statistics of its draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynbench.devices.network import Network, load_network, presets
from dynbench.errors import UserError

LAB = {  # mean and standard deviation in ms, as published in cake-lab/MDInference
    "home": (92.02, 48.38),
    "home-variable": (92.02, 92.0),
    "campus": (57.87, 30.79),
    "lte-variable": (364.66, 170.59),
    "artificial-50": (50, 25),
    "artificial-100": (100, 50),
    "perfect": (50, 0),
}


def test_every_preset_can_be_read_and_says_where_it_is_from() -> None:
    assert {"wifi", "lte", "3g", *LAB} == set(presets())
    for name in presets():
        network = load_network(name)
        assert network.name == name and network.title and network.source
        assert network.status in ("verified", "recalled")


@pytest.mark.parametrize("name", LAB)
def test_the_lab_s_figures_are_the_published_ones_and_bytes_make_no_difference(name: str) -> None:
    network = load_network(name)
    assert (network.round_trip_ms, network.jitter_ms) == LAB[name]
    assert network.request_ms(1, 1) == network.request_ms(10**7, 10**7) == network.round_trip_ms


def test_a_request_takes_the_round_trip_and_its_bits() -> None:
    network = Network("x", 70, up_mbit_s=12, down_mbit_s=6)
    assert network.request_ms(1500, 750) == pytest.approx(70 + 1 + 1)  # 12,000 bits at 12 Mbit/s are 1 ms
    assert network.request_ms(0, 0) == 0.0  # nothing is sent


@settings(deadline=None, max_examples=30)
@given(st.floats(1, 500), st.floats(0.05, 1.5), st.integers(0, 2**31))
def test_draws_have_the_mean_and_the_standard_deviation_asked_for_and_are_never_negative(
    mean: float, ratio: float, seed: int
) -> None:
    n = 20_000
    jitter = ratio * mean
    drawn = Network("x", mean, jitter).round_trips_ms(n, seed)
    assert drawn.shape == (n,) and drawn.min() >= 0
    assert abs(drawn.mean() - mean) < 6 * jitter / np.sqrt(n)
    # Of a gamma distribution the kurtosis is 3 + 6 (jitter / mean)^2: the error of the standard deviation follows.
    error = jitter * np.sqrt((2 + 6 * ratio**2) / (4 * n))
    assert abs(drawn.std() - jitter) < 8 * error


def test_draws_are_a_function_of_the_seed() -> None:
    network = load_network("campus")
    assert (network.round_trips_ms(50, 1) == network.round_trips_ms(50, 1)).all()
    assert (network.round_trips_ms(50, 1) != network.round_trips_ms(50, 2)).any()
    assert set(load_network("lte").round_trips_ms(5, 0)) == {70.0}


def test_a_network_can_be_changed_and_then_is_the_user_s_own() -> None:
    lte = load_network("lte")
    assert lte.but(up_mbit_s=None) is lte
    other = lte.but(up_mbit_s=1.0, jitter_ms=0.0)
    assert (other.up_mbit_s, other.down_mbit_s, other.status) == (1.0, 12.0, "own")
    assert other.name == "lte, changed"


def test_a_file_of_one_s_own(tmp_path: Path) -> None:
    file = tmp_path / "train.toml"
    file.write_text("round_trip_ms = 120\njitter_ms = 60\nup_mbit_s = 2.5\n")
    assert load_network(str(file)) == Network("train", 120, 60, 2.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("round_trip_ms = 1\nup_mbits = 3", "unknown key up_mbits; did you mean up_mbit_s"),
        ("up_mbit_s = 3", "key round_trip_ms is missing"),
        ("round_trip_ms = -1", "round_trip_ms = -1; it must be a number 0 or more"),
        ("round_trip_ms = 1\nup_mbit_s = 0", "up_mbit_s = 0; it must be a number above 0"),
        ("round_trip_ms = 1\ndown_mbit_s = inf", "down_mbit_s = inf"),
        ("round_trip_ms = 'fast'", "round_trip_ms = 'fast'"),
        ("round_trip_ms = true", "round_trip_ms = True"),
        ("round_trip_ms = 0\njitter_ms = 3", "a round trip of 0 cannot vary"),
        ("round_trip_ms = ", "not valid TOML"),
    ],
)
def test_an_invalid_network_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        load_network(str(file))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="did you mean campus"):
        load_network("campos")
    with pytest.raises(UserError, match="accepted: 3g, artificial-100"):
        load_network("zzz")
