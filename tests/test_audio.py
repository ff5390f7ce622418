import pickle

import numpy as np
import pytest
import soundfile

from cmkd.audio import AudioError, digest_audio, measure_audio, read_audio


def tone(seconds, rate, frequency=440, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def frequency_of(waveform, rate):
    """Of the strongest component, by the peak of the spectrum."""
    return np.argmax(np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))) * rate / len(waveform)


def noise(seconds, rate):
    return np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * rate))


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
def test_frequency_length_and_level_survive_every_format_rate_and_downmix(tmp_path, ending, rate):
    path = tmp_path / f"tone.{ending}"
    soundfile.write(path, np.stack([tone(1.5, rate), tone(1.5, rate)], axis=1), rate)

    waveform = read_audio(path)

    assert waveform.dtype == np.float32
    assert waveform.shape == (24000,)
    assert frequency_of(waveform, 16000) == pytest.approx(440, abs=1)
    assert np.sqrt(np.mean(waveform[4000:20000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)
    assert measure_audio(path) == 1.5


def test_channels_are_averaged(tmp_path):
    left, right = np.array([0.5, -0.25, 0.0, 0.75]), np.array([0.25, 0.25, -0.5, 0.75])
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16000)
    assert read_audio(tmp_path / "a.wav").tolist() == [0.375, 0.0, -0.25, 0.75]


def test_target_rate(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1, 16000), 16000)
    waveform = read_audio(tmp_path / "a.wav", sampling_rate=24000)
    assert waveform.shape == (24000,)
    assert frequency_of(waveform, 24000) == pytest.approx(440, abs=1)


def test_path_bytes_and_corpus_column_are_the_same(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(0.1, 16000), 16000, subtype="FLOAT")
    expected = noise(0.1, 16000).astype(np.float32).tolist()
    content = path.read_bytes()
    for audio in (path, str(path), content, {"bytes": None, "path": str(path)}, {"bytes": content, "path": None}):
        assert read_audio(audio).tolist() == expected
        assert measure_audio(audio) == 0.1


@pytest.mark.parametrize("audio", [None, 3, {"bytes": None, "path": None}, {"array": [0.0]}])
def test_what_is_no_audio_is_refused(audio):
    with pytest.raises(TypeError, match="must be a path, the bytes of a file, or a dict"):
        read_audio(audio)


def write_bytes(content):
    return lambda path: path.write_bytes(content)


def write_sound(samples, **settings):
    return lambda path: soundfile.write(path, samples, 16000, **settings)


def cut(seconds=10, share=0.7, **settings):
    def write(path):
        soundfile.write(path, noise(seconds, 16000), 16000, **settings)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return write


def flac_of_unknown_length(path):
    soundfile.write(path, noise(1, 16000), 16000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of the number of samples in STREAMINFO
    content[22:26] = bytes(4)
    path.write_bytes(content)


BROKEN = {
    "missing": ("a.wav", lambda path: None, "missing file"),
    "name_too_long": ("a" * 300 + ".wav", lambda path: None, "missing file"),
    "name_with_nul": ("a\0.wav", lambda path: None, "missing file"),
    "folder": ("a.wav", lambda path: path.mkdir(), "unreadable audio"),
    "text": ("a.wav", write_bytes(b"not a sound at all, but text"), "unreadable audio"),
    "raw": ("a.raw", write_bytes(bytes(1000)), "unreadable audio"),
    "flac_of_unknown_length": ("a.flac", flac_of_unknown_length, "unreadable audio"),
    "no_bytes": ("a.wav", write_bytes(b""), "empty audio"),
    "no_frames": ("a.wav", write_sound(np.zeros(0)), "empty audio"),
    "nan": ("a.wav", write_sound(np.full(100, np.nan), subtype="FLOAT"), "non-finite audio"),
    "one_infinity": ("a.wav", write_sound(np.r_[np.inf, np.zeros(99999)], subtype="DOUBLE"), "non-finite audio"),
    "cut_wav": ("a.wav", cut(), "truncated audio"),
    "cut_wav_by_one_byte": ("a.wav", cut(share=1 - 1e-6), "truncated audio"),
    "cut_aiff": ("a.aiff", cut(), "truncated audio"),
    "cut_flac": ("a.flac", cut(), "truncated audio"),
    "cut_ogg": ("a.ogg", cut(), "truncated audio"),
    "cut_opus": ("a.ogg", cut(subtype="OPUS"), "truncated audio"),
    "cut_mp3": ("a.mp3", cut(), "truncated audio"),
}


@pytest.mark.parametrize(("name", "write", "reason"), BROKEN.values(), ids=BROKEN)
def test_broken_audio_is_refused_alike_by_reading_and_measuring(tmp_path, name, write, reason):
    path = tmp_path / name
    write(path)
    for use in (read_audio, measure_audio, digest_audio):
        with pytest.raises(AudioError, match=reason) as caught:
            use(path)
        assert caught.value.reason == reason
        assert str(caught.value).startswith(f"{path}: {reason}: ")


def test_length_left_open_by_a_streaming_writer_is_no_truncation(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(1, 16000), 16000)
    content = bytearray(path.read_bytes())
    content[40:44] = b"\xff\xff\xff\xff"  # the size of the data, as ffmpeg writes it to a pipe
    path.write_bytes(content)
    assert measure_audio(path) == 1
    assert len(read_audio(path)) == 16000


def test_audio_shorter_than_a_sample_of_the_target_rate_is_empty(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(1), 48000)
    with pytest.raises(AudioError, match="empty audio: 1 frames are less than one at 8000 Hz"):
        read_audio(tmp_path / "a.wav", sampling_rate=8000)


def test_errors_survive_pickling_between_processes():
    error = pickle.loads(pickle.dumps(AudioError("a.wav", "empty audio", "it has no frames")))
    assert (str(error), error.reason) == ("a.wav: empty audio: it has no frames", "empty audio")
