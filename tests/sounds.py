"""Sounds that tests can tell apart, and the files that encoders make of them."""

import io
import tempfile
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile


def tone(seconds, rate, frequency=440, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def noise(seconds, rate):
    return np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * rate))


def of_soundfile(samples, rate=16000, **settings):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **settings)
    return file.getvalue()


TEN = noise(10, 16000)


def mp3(samples=TEN, rate=16000, variable=True):
    if not variable:
        return of_soundfile(samples, rate, format="MP3")
    try:
        return of_soundfile(samples, rate, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
    except TypeError:
        pytest.skip("soundfile writes variable bit rates from 0.13 on")


def chirp(seconds, rate):
    time = np.arange(round(seconds * rate)) / rate
    return 0.4 * np.sin(2 * np.pi * (150 * time + (3000 - 150) / (2 * seconds) * time**2))


def encoded(samples, rate, container, codec, bit_rate=None, tracks=1, **options):
    """A file made by FFmpeg, of samples (samples,) or (channels, samples)."""
    if codec not in av.codecs_available or not av.Codec(codec, "w").is_encoder:
        pytest.skip(f"this build of FFmpeg does not write {codec}")
    samples = np.atleast_2d(samples).astype(np.float32)
    layout = "mono" if len(samples) == 1 else "stereo"
    with tempfile.TemporaryDirectory() as folder:  # some formats are written in two rounds, which needs a file
        path = Path(folder) / "sound"
        with av.open(str(path), "w", format=container, options=options) as output:
            streams = [output.add_stream(codec, rate=rate, layout=layout) for _ in range(tracks)]
            for stream in streams:
                if bit_rate is not None:
                    stream.bit_rate = bit_rate
                stream.codec_context.open(strict=False)
            for stream in streams:
                frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
                frame.sample_rate, frame.pts = rate, 0
                form = stream.codec_context.format.name
                resampler = av.AudioResampler(form, layout, rate, frame_size=stream.codec_context.frame_size or None)
                for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                    output.mux(stream.encode(piece))
                output.mux(stream.encode(None))
        return path.read_bytes()
