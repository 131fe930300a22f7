"""Power spectra and noise levels: white noise, single waves, Parseval's sum."""

import numpy as np
import pytest

from brainldm_core.errors import BrainLDMError
from brainldm_core.spectra import log_spectral_distance, noise_level, power_spectrum


@pytest.mark.parametrize("shape", [(16, 20, 16), (15, 12, 13)])
def test_white_noise_has_its_variance_at_every_frequency(shape):
    volumes = np.random.default_rng(0).normal(0, 0.3, (60, *shape))
    frequencies, power = power_spectrum(volumes, 2.0)
    assert power.shape == (60, len(frequencies)) and frequencies[-1] <= 0.25 + 1e-9
    assert np.allclose(power[:, 1:].mean(0), 0.09, rtol=0.06)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_wave_has_its_power_at_its_frequency(axis):
    places = np.arange(24) * 2.0  # mm
    wave = np.cos(2 * np.pi * 0.125 * places).reshape([-1 if place == axis else 1 for place in range(3)])
    frequencies, power = power_spectrum(np.broadcast_to(wave, (1, 24, 24, 24)) + 7, 2.0)
    assert frequencies[power[0].argmax()] == pytest.approx(0.125)
    assert np.delete(power[0], power[0].argmax()).max() < 1e-6 * power[0].max()


def test_shells_hold_the_whole_power_of_a_band_limited_volume():
    rng = np.random.default_rng(1)
    spectrum = np.fft.fftn(rng.normal(size=(12, 16, 12)))
    axes = np.meshgrid(*(np.fft.fftfreq(side) for side in (12, 16, 12)), indexing="ij")
    radius = np.sqrt(sum(part**2 for part in axes))
    spectrum[(radius > 0.4) | (radius == 0)] = 0
    volume = np.fft.ifftn(spectrum).real
    frequencies, power = power_spectrum(volume[None], 1.0)
    shell = np.round(radius * 16).astype(int)
    counts = np.bincount(shell.ravel(), minlength=9)[1 : len(frequencies) + 1]
    assert (power[0] * counts).sum() / volume.size == pytest.approx((volume**2).mean(), rel=1e-5)


def test_noise_is_found_inside_the_head_only():
    rng = np.random.default_rng(2)
    head = np.zeros((1, 20, 24, 20), np.float32)
    head[:, 3:-3, 3:-3, 3:-3] = 0.6
    noisy = head + rng.normal(0, 0.05, head.shape) * (head > 0)
    assert noise_level(noisy)[0] == pytest.approx(0.05, rel=0.06)
    assert noise_level(head)[0] == 0 and np.isnan(noise_level(0 * head)[0])
    ramp = head * np.linspace(0.5, 1, 24)[:, None]
    assert noise_level(ramp)[0] < 1e-6  # smooth shading is no noise


def test_what_is_no_volume_is_refused():
    for wrong in (np.zeros((4, 4, 4)), np.zeros((0, 4, 4, 4))):
        with pytest.raises(BrainLDMError, match="spacing above 0"):
            power_spectrum(wrong, 1.0)
    with pytest.raises(BrainLDMError, match="spacing above 0"):
        power_spectrum(np.zeros((1, 4, 4, 4)), 0.0)


def test_spectral_distance_of_a_known_gain():
    volumes = np.random.default_rng(0).normal(0.5, 0.1, (4, 12, 14, 12))
    frequencies, power = power_spectrum(volumes, 2.0)
    _, louder = power_spectrum(2 * volumes[:2], 2.0)
    assert log_spectral_distance(frequencies, power, power) == pytest.approx(0, abs=1e-9)
    assert log_spectral_distance(frequencies, power[:2], louder) == pytest.approx(20 * np.log10(2), abs=1e-4)
    assert log_spectral_distance(frequencies, louder, power[:2]) == pytest.approx(20 * np.log10(2), abs=1e-4)
    # 10 dB less above 0.15 cycles/mm, a known part of the frequencies.
    blurred = np.where(frequencies > 0.15, power / 10, power)
    part = np.mean(frequencies > 0.15)
    assert log_spectral_distance(frequencies, power, blurred) == pytest.approx(10 * np.sqrt(part))
    assert log_spectral_distance(frequencies, power, blurred, low=0.16) == pytest.approx(10)
    assert log_spectral_distance(frequencies, power, blurred, high=0.15) == pytest.approx(0, abs=1e-9)


def test_spectra_that_do_not_fit_are_refused():
    frequencies, power = power_spectrum(np.random.default_rng(0).normal(size=(2, 8, 8, 8)), 1.0)
    for bad in (power[:, 1:], power[0]):
        with pytest.raises(BrainLDMError, match="spectra"):
            log_spectral_distance(frequencies, power, bad)
    with pytest.raises(BrainLDMError, match="range with a frequency"):
        log_spectral_distance(frequencies, power, power, low=1.0)
    with pytest.raises(BrainLDMError, match="no power"):
        log_spectral_distance(frequencies, power, 0 * power)


def test_sets_on_demand_are_read_one_by_one(on_demand):
    volumes = np.random.default_rng(0).random((3, 8, 9, 8), np.float32)
    for measure in (lambda x: power_spectrum(x, 1.0)[1], noise_level):
        found = on_demand(volumes)
        assert (measure(found) == measure(volumes)).all()
        assert found.reads == [0, 1, 2] and found.largest == 1
