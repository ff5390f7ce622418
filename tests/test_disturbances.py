"""Each disturbance of an audit does what its definition says."""

import numpy as np
import pytest
from scipy.signal import correlate, welch

from cmkd.audit.disturbances import at_snr, disturbances

RATE = 16000
TIME = np.arange(2 * RATE) / RATE


@pytest.fixture(scope="module")
def speech():
    """Noise below 3 kHz whose loudness comes and goes, in 16-bit range."""
    generator = np.random.default_rng(0)
    spectrum = np.fft.rfft(generator.normal(size=2 * RATE))
    spectrum[np.fft.rfftfreq(2 * RATE, 1 / RATE) > 3000] = 0
    wave = np.fft.irfft(spectrum) * (1 + np.sin(2 * np.pi * 3 * TIME))
    return (0.5 * wave / np.abs(wave).max()).astype(np.float32)


@pytest.fixture(scope="module")
def kinds(speech):
    generator = np.random.default_rng(1)
    voices = [generator.normal(0, level, 12000).astype(np.float32) for level in (0.01, 0.1, 0.5)]
    return disturbances([speech, *voices])


def disturbed(kinds, name, wave, seed=0):
    return kinds[name].apply(wave, RATE, np.random.default_rng(seed))


def decibels(signal, noise):
    return 10 * np.log10(np.sum(signal.astype(float) ** 2) / np.sum(noise.astype(float) ** 2))


@pytest.mark.parametrize("noise", ["white_noise", "babble", "music"])
@pytest.mark.parametrize("snr", [20, 10, 0])
def test_the_ratio_that_comes_out_is_the_one_asked_for(kinds, speech, noise, snr):
    heard = disturbed(kinds, f"{noise}_{snr}db", speech)
    assert decibels(speech, heard - speech) == pytest.approx(snr, abs=0.01)
    other = disturbed(kinds, f"{noise}_{snr}db", speech, seed=1)
    assert np.array_equal(heard, disturbed(kinds, f"{noise}_{snr}db", speech)) and not np.array_equal(heard, other)


def test_white_noise_is_white(kinds, speech):
    noise = disturbed(kinds, "white_noise_0db", speech) - speech
    _, density = welch(noise, RATE, nperseg=512)
    parts = [part.mean() for part in np.split(density[1:257], 4)]
    assert max(parts) / min(parts) < 1.1


def test_babble_is_of_other_clips_equally_loud(speech):
    """Of the clip itself, a silent one and two tones of unlike level, both tones are heard and equally loud."""
    tones = [level * np.sin(2 * np.pi * hertz * TIME).astype(np.float32) for hertz, level in ((500, 0.01), (900, 0.3))]
    babble = disturbances([speech, np.zeros(100, np.float32), *tones])["babble_0db"]
    noise = babble.apply(speech, RATE, np.random.default_rng(0)) - speech
    spectrum = np.abs(np.fft.rfft(noise))
    assert spectrum[2 * 500] == pytest.approx(spectrum[2 * 900], rel=0.01)
    assert spectrum[[1000, 1800]].sum() > 0.9 * spectrum.sum()
    with pytest.raises(ValueError, match="audit more than one clip"):
        disturbances([speech])["babble_0db"].apply(speech, RATE, np.random.default_rng(0))


def test_silence_stays_silent():
    silent = np.zeros(100, np.float32)
    assert np.array_equal(at_snr(silent, np.ones(100), 0), silent)


def test_gain_and_clipping(kinds, speech):
    assert disturbed(kinds, "gain_+20db", speech) == pytest.approx(10 * speech)
    assert disturbed(kinds, "gain_-20db", speech) == pytest.approx(speech / 10)
    clipped = disturbed(kinds, "clipping", speech)
    changed = clipped != speech
    assert changed.mean() == pytest.approx(0.1, abs=0.001)
    assert np.unique(np.abs(clipped[changed])).size == 1 and np.abs(clipped).max() <= np.abs(speech[changed]).min()


def test_8_khz(kinds):
    low, high = (0.3 * np.sin(2 * np.pi * hertz * TIME).astype(np.float32) for hertz in (1000, 6000))
    heard = disturbed(kinds, "resampled_8khz", low + high)
    middle = slice(RATE // 2, -RATE // 2)
    assert heard[middle] == pytest.approx(low[middle], abs=1e-3) and len(heard) == len(low)


@pytest.mark.parametrize("level", [-10, -30])
def test_mu_law_has_the_same_quality_at_every_level(kinds, speech, level):
    """Of G.711 about 35 to 38 dB remain, loud or quiet; 8 bits without companding would have 20 dB less at -30 dB."""
    wave = (speech * 10 ** (level / 20) / np.sqrt(np.mean(speech**2)) / 4).astype(np.float32)
    heard, before = (disturbed(kinds, name, wave) for name in ("g711_mulaw", "resampled_8khz"))
    assert 33 < decibels(before, heard - before) < 40


@pytest.mark.parametrize("codec", ["mp3", "opus"])
def test_codecs_keep_a_voice_in_its_place(kinds, codec):
    """What is lost is noise, not time: the best match is where it was, and is good but not the same."""
    voice = sum(np.sin(2 * np.pi * 150 * k * TIME + k * k) / k for k in range(1, 15)) * (
        1 + np.sin(2 * np.pi * 3 * TIME)
    )
    voice = (0.1 * voice).astype(np.float32)
    heard = disturbed(kinds, codec, voice)
    assert len(heard) == len(voice) and heard.dtype == np.float32
    lags = correlate(heard, voice, mode="full")
    assert abs(int(np.argmax(lags)) - (len(voice) - 1)) <= 32  # 2 ms
    assert 0.9 < np.corrcoef(heard, voice)[0, 1] < 0.99999


def decay(response):
    """The reverberation time by Schroeder's backward integration, a line through the decay from -5 to -35 dB."""
    energy = np.cumsum(response[::-1] ** 2)[::-1]
    level = 10 * np.log10(energy[energy > 0] / energy[0])
    part = np.flatnonzero((level < -5) & (level > -35))
    return -60 / np.polyfit(part / RATE, level[part], 1)[0]


@pytest.mark.parametrize(("name", "seconds"), [("room_0.3s", 0.3), ("room_0.7s", 0.7)])
def test_a_room_rings_as_long_as_it_says(kinds, speech, name, seconds):
    """Heard through a click: the direct sound is where it was, and what follows falls by 60 dB in the time asked for;
    heard through speech: as loud, as long and in the same place as before, but not the same."""
    pytest.importorskip("pyroomacoustics", reason='needs the extra "audit"')
    click = np.zeros(3 * RATE, np.float32)
    click[100] = 1
    response = disturbed(kinds, name, click).astype(float)
    assert np.abs(response[:99]).max() < 1e-6 and np.argmax(np.abs(response)) == 100
    assert decay(response[100:]) == pytest.approx(seconds, rel=0.05)
    direct = 100 + RATE // 400  # and 2.5 ms
    assert -12 < decibels(response[100:direct], response[direct:]) < 0
    heard = disturbed(kinds, name, speech)
    assert len(heard) == len(speech) and heard.dtype == np.float32
    assert np.mean(heard.astype(float) ** 2) == pytest.approx(np.mean(speech.astype(float) ** 2), rel=1e-4)
    assert np.argmax(correlate(heard, speech, mode="full")) == len(speech) - 1
    assert np.corrcoef(heard, speech)[0, 1] < 0.95


def test_silence_and_cuts(kinds, speech):
    assert np.array_equal(disturbed(kinds, "silence_before", speech), np.concatenate([np.zeros(RATE), speech]))
    assert np.array_equal(disturbed(kinds, "silence_after", speech), np.concatenate([speech, np.zeros(RATE)]))
    assert np.array_equal(disturbed(kinds, "start_cut", speech), speech[3200:])
    assert np.array_equal(disturbed(kinds, "end_cut", speech), speech[:-3200])


@pytest.mark.parametrize(
    ("name", "seconds", "hertz"),
    [
        ("tempo_0.9", 2 / 0.9, 440),
        ("tempo_1.1", 2 / 1.1, 440),
        ("pitch_-2", 2, 440 * 2 ** (-1 / 6)),
        ("pitch_+2", 2, 440 * 2 ** (1 / 6)),
    ],
)
def test_tempo_and_pitch(kinds, name, seconds, hertz):
    tone = (0.3 * np.sin(2 * np.pi * 440 * TIME)).astype(np.float32)
    heard = disturbed(kinds, name, tone)
    assert len(heard) == round(seconds * RATE)
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard)), 1 << 18))
    assert np.argmax(spectrum) * RATE / (1 << 18) == pytest.approx(hertz, rel=0.002)


def test_nothing_changes_its_input(kinds, speech):
    before = speech.copy()
    for name in kinds:
        disturbed(kinds, name, speech)
        assert np.array_equal(speech, before)
