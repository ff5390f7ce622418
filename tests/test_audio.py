import io
import pickle

import av
import numpy as np
import pytest
import soundfile
from sounds import TEN, chirp, encoded, mp3, noise, of_soundfile, tone

from cmkd.features.audio import AudioError, digest_audio, measure_audio, read_audio


def frequency_of(waveform, rate):
    """Of the strongest component, by the peak of the spectrum."""
    return np.argmax(np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))) * rate / len(waveform)


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


@pytest.mark.parametrize(
    ("audio", "found"),
    [
        (None, "audio is None, but"),
        (3, "audio is 3, but"),
        ({"bytes": None, "path": None}, "audio is a dict with 'bytes', 'path', but"),
        ({"array": [0.0]}, "audio is a dict with 'array', but"),
        ({"audio": "a.wav", "label": 1}, "audio is a dict with 'audio', 'label', but"),
    ],
)
def test_what_is_no_audio_is_refused(audio, found):
    with pytest.raises(
        TypeError, match="must be a path, the bytes of a file, or a dict with 'path' or 'bytes'"
    ) as error:
        read_audio(audio)
    assert str(error.value).startswith(found)
    assert str(error.value).endswith("pass the sound alone: row['audio'].") == (found.count("'audio'") == 1)


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
    "unknown_whether_whole": ("a.voc", write_sound(noise(1, 16000)), "unreadable audio"),
    "no_bytes": ("a.wav", write_bytes(b""), "empty audio"),
    "no_frames": ("a.wav", write_sound(np.zeros(0)), "empty audio"),
    "nan": ("a.wav", write_sound(np.full(100, np.nan), subtype="FLOAT"), "non-finite audio"),
    "one_infinity": ("a.wav", write_sound(np.r_[np.inf, np.zeros(99999)], subtype="DOUBLE"), "non-finite audio"),
    "cut_wav": ("a.wav", cut(), "truncated audio"),
    "cut_wav_by_one_byte": ("a.wav", cut(share=1 - 1e-6), "truncated audio"),
    "cut_aiff": ("a.aiff", cut(), "truncated audio"),
    "cut_au": ("a.au", cut(), "truncated audio"),
    "cut_w64": ("a.w64", cut(), "truncated audio"),
    "cut_rf64": ("a.rf64", cut(), "truncated audio"),
    "cut_nist": ("a.nist", cut(), "truncated audio"),
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


# All of the sound is heard: lengths that libsndfile does not know.


def without_header_frame(content):
    """Cuts out the frame with Xing or Info: LAME's header frame is as long as a frame of its bit rate."""
    assert content[0] == 0xFF and content.find(b"Xing") < 40
    following = content.find(content[:2], 40)
    return content[following:]


ID3 = b"ID3\x04\0\0\0\0\x07\x68" + bytes(1000)
ID3V1 = b"TAG" + bytes(125)
APE = bytes([1] * 40) + b"APETAGEX" + b"".join(n.to_bytes(4, "little") for n in (2000, 72, 1, 0)) + bytes(8)

WHOLE_MP3 = {  # seconds, and by how much encoders may lengthen the sound where no header says it
    "variable": (lambda: mp3(), 10, 0),
    "variable, no header frame": (lambda: without_header_frame(mp3()), 10, 0.1),
    "constant": (lambda: mp3(variable=False), 10, 0),
    "constant, no header frame": (lambda: without_header_frame(mp3(variable=False)), 10, 0.1),
    "joined": (lambda: mp3() + mp3(), 20, 0),
    "joined, constant": (lambda: mp3(variable=False) + mp3(variable=False), 20, 0),
    "joined to one without header": (lambda: mp3() + without_header_frame(mp3()), 20, 0.1),
    "joined without headers": (lambda: 2 * without_header_frame(mp3()), 20, 0.2),
    "tag before constant, no header frame": (lambda: ID3 + without_header_frame(mp3(variable=False)), 10, 0.1),
    "tags all around": (lambda: ID3 + mp3() + ID3V1 + ID3 + mp3() + APE + ID3V1, 20, 0),
    "zeros behind": (lambda: mp3() + bytes(700), 10, 0),
    "zeros in front": (lambda: bytes(300) + mp3(), 10, 0),
}


@pytest.mark.parametrize(("content", "seconds", "more"), WHOLE_MP3.values(), ids=WHOLE_MP3)
def test_all_of_an_mp3_is_heard(content, seconds, more):
    content = content()
    length = len(read_audio(content))
    assert 16000 * seconds <= length <= 16000 * (seconds + more)
    assert measure_audio(content) == digest_audio(content).duration == length / 16000


def test_joined_mp3_sounds_like_its_parts_and_starts_none_late():
    first, second = tone(2, 16000, 440), tone(3, 16000, 880)
    heard = read_audio(mp3(first) + mp3(second))
    assert heard == pytest.approx(np.concatenate([first, second]), abs=0.05)
    assert heard[: 2 * 16000 - 600] == pytest.approx(read_audio(mp3(first))[:-600], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 32000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_both_decoders_agree_on_mp3_to_the_sample(rate, channels):
    """The first part of a joined file, which FFmpeg reads, against the part alone, which libsndfile reads."""
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (2 * rate, channels))
    content = mp3(samples, rate)
    expected = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)[0].mean(axis=1)
    heard = read_audio(content + content, rate)
    assert len(heard) == 2 * len(expected) == 4 * rate
    for part in (heard[: 2 * rate], heard[2 * rate :]):
        assert part == pytest.approx(expected, abs=1e-5)


def promising(content, frames):
    content = bytearray(content)
    place = content.find(b"Xing") + 8
    content[place : place + 4] = frames.to_bytes(4, "big")
    return bytes(content)


def test_a_header_frame_that_promises_less_is_not_believed():
    assert len(read_audio(promising(mp3(), 50))) == pytest.approx(160000, abs=1600)


BROKEN_MP3 = {
    "promises more": (lambda: promising(mp3(), 5000), "truncated audio: its header promises 5000 frames, but there"),
    "lacks 1 byte": (lambda: mp3()[:-1], "truncated audio: its last frame has"),
    "no header frame, cut": (lambda: without_header_frame(mp3())[:20000], "truncated audio: its last frame has"),
    "frames lost at the end": (lambda: mp3(variable=False)[: 13 * 144 + 144], "truncated audio"),
    "the first part cut": (lambda: mp3()[:15000] + mp3(), "unreadable audio: it is damaged: what begins at byte"),
    "text behind": (lambda: mp3() + b"no sound " * 20, "unreadable audio: it is damaged"),
    "parts of two rates": (lambda: mp3() + mp3(TEN[:8000], 8000), "unreadable audio: its parts differ: 8000 Hz with 1"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN_MP3.values(), ids=BROKEN_MP3)
def test_broken_mp3_is_refused(content, message):
    content = content()
    for use in (read_audio, measure_audio, digest_audio):
        with pytest.raises(AudioError, match=message):
            use(content)


def with_sizes(content, riff, data):
    return content[:4] + riff.to_bytes(4, "little") + content[8:40] + data.to_bytes(4, "little") + content[44:]


@pytest.mark.parametrize(
    ("riff", "data"),
    [(0, 0), (2**32 - 1, 2**32 - 1), (2**32 - 1, 2**32 - 37), (2**31 - 2**12 + 36, 2**31 - 2**12)],
    ids=["zero", "largest", "largest less header", "sox"],
)
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "PCM_U8"])
def test_wav_whose_writer_could_not_go_back_is_read_to_its_end(riff, data, subtype):
    content = of_soundfile(TEN[:32000], format="WAV", subtype=subtype)
    expected = soundfile.read(io.BytesIO(content), dtype="float32")[0]
    place = content.find(b"data") - 36  # other subtypes have chunks in between
    content = content[:36] + content[36 + place :] if place else content
    opened = with_sizes(content, riff, data)
    assert read_audio(opened) == pytest.approx(expected, abs=1e-6)
    assert measure_audio(opened) == 2


def test_wav_that_tells_nothing_of_half_its_sound_is_refused():
    content = of_soundfile(TEN, format="WAV")
    with pytest.raises(
        AudioError, match="unreadable audio: its header does not account for the 160000 bytes at its end"
    ):
        read_audio(with_sizes(content, 160036, 160000))


@pytest.mark.parametrize("end", [b"LIST" + (4).to_bytes(4, "little") + b"abcd", ID3, ID3V1, bytes(50000)])
def test_what_others_write_behind_a_wav_is_no_sound(end):
    assert len(read_audio(of_soundfile(TEN, format="WAV") + end)) == 160000


def test_flac_of_unknown_length_is_read_to_its_end(tmp_path):
    flac_of_unknown_length(tmp_path / "a.flac")
    content = (tmp_path / "a.flac").read_bytes()
    assert read_audio(content).tolist() == read_audio(of_soundfile(noise(1, 16000), format="FLAC")).tolist()
    assert measure_audio(content) == 1
    with pytest.raises(AudioError, match="truncated audio"):
        read_audio(content[:-100])


@pytest.mark.parametrize(
    "settings",
    [
        {"format": "OGG"},
        {"format": "OGG", "subtype": "OPUS"},
        {"format": "FLAC"},
        {"format": "WAV"},
        {"format": "AIFF"},
        {"format": "CAF"},
        {"format": "AU", "subtype": "PCM_16"},
        {"format": "W64", "subtype": "PCM_16"},
    ],
    ids=["vorbis", "opus", "flac", "wav", "aiff", "caf", "au", "w64"],
)
def test_joined_files_are_heard_one_after_the_other(settings):
    first, second = of_soundfile(TEN[:32000], **settings), of_soundfile(TEN[32000:80000], **settings)
    expected = np.concatenate([soundfile.read(io.BytesIO(part), dtype="float32")[0] for part in (first, second)])
    assert read_audio(first + second).tolist() == expected.tolist()
    assert measure_audio(first + second) == 5
    part = read_audio(first + second, start=1.5, end=4)
    assert part.tolist() == expected[24000:64000].tolist()
    with pytest.raises(AudioError, match="truncated audio|unreadable audio"):
        read_audio(first + second[:-300])
    with pytest.raises(AudioError, match=r"unreadable audio: its parts differ|unreadable audio: .* not an Ogg page"):
        read_audio(first + of_soundfile(TEN[:32000].reshape(-1, 2), **settings))


# What libsndfile does not read. The oracle is what was encoded.


CONTAINERS = {  # container, codec, rate, samples that it is longer, correlation with what was encoded, options
    "m4a": ("ipod", "aac", 16000, 0, 0.999, {}),
    "m4a, Apple lossless": ("ipod", "alac", 16000, 0, 0.999, {}),
    "mp4": ("mp4", "aac", 44100, 0, 0.99, {}),
    "mp4 for streaming": ("mp4", "aac", 16000, 0, 0.999, {"movflags": "faststart"}),
    "mp4 in fragments": ("mp4", "aac", 16000, 2048, 0.999, {"movflags": "frag_keyframe+empty_moov"}),
    "mov": ("mov", "aac", 48000, 0, 0.99, {}),
    "mov, not compressed": ("mov", "pcm_s16le", 16000, 0, 0.999, {}),
    "3gp": ("3gp", "aac", 16000, 0, 0.999, {}),
    "3gp, AMR": ("3gp", "libopencore_amrnb", 8000, 0, 0.9, {}),
    "amr": ("amr", "libopencore_amrnb", 8000, 200, 0.9, {}),
    "aac": ("adts", "aac", 16000, 2048, 0.999, {}),
    "wma": ("asf", "wmav2", 44100, 4096, 0.99, {"bit_rate": 96000}),
    "webm, Opus": ("webm", "libopus", 48000, 0, 0.999, {}),
    "webm as a browser records": ("webm", "libopus", 48000, 0, 0.999, {"live": "1"}),
    "mkv": ("matroska", "aac", 16000, 2048, 0.999, {}),
    "mkv, flac": ("matroska", "flac", 16000, 0, 0.999, {}),
}
container_parameters = pytest.mark.parametrize(
    ("container", "codec", "rate", "longer", "alike", "options"), CONTAINERS.values(), ids=CONTAINERS
)


@pytest.mark.slow
@container_parameters
def test_all_of_what_libsndfile_does_not_read_is_heard(container, codec, rate, longer, alike, options, tmp_path):
    """What is read is as long as what was encoded, to the sample where the format says so, and holds nothing else."""
    samples = chirp(4, rate)
    content = encoded(samples, rate, container, codec, **options)
    heard = read_audio(content, rate)
    assert abs(len(heard) - len(samples)) <= longer
    spectra = np.fft.rfft(heard, 2 * len(heard)), np.fft.rfft(samples, 2 * len(heard))
    products = np.fft.irfft(spectra[0] * spectra[1].conj())
    assert products.max() > alike * np.linalg.norm(heard) * np.linalg.norm(samples)
    lag = int(products.argmax())
    assert min(lag, 2 * len(heard) - lag) <= max(longer, 20 if "amr" in codec else 0)
    path = tmp_path / "sound.wav"  # whatever its name says
    path.write_bytes(content)
    assert read_audio(path, rate).tolist() == heard.tolist()
    assert measure_audio(path) == digest_audio(path).duration == len(heard) / rate
    part = read_audio(path, rate, start=1.25, end=3.5)
    assert part == pytest.approx(heard[round(1.25 * rate) : round(3.5 * rate)], abs=1e-4)


@pytest.mark.parametrize("codec", ["gsm", "mp3"])
def test_codecs_within_wav_that_libsndfile_loses_its_way_in(codec):
    """It does where it seeks; the oracle is that it can read them in one go."""
    samples = chirp(4, 8000)
    if codec == "gsm":
        content = of_soundfile(samples, 8000, format="WAV", subtype="GSM610")
    else:
        content = encoded(samples, 8000, "wav", "libmp3lame")
    expected = soundfile.read(io.BytesIO(content), dtype="float32")[0]
    heard = read_audio(content, 8000)
    length = min(len(heard), len(expected))
    assert length >= len(samples)
    if codec == "gsm":
        assert heard[:length] == pytest.approx(expected[:length], abs=1e-3)
    assert measure_audio(content) == len(heard) / 8000
    for end in (-1, len(content) // 2):
        with pytest.raises(AudioError, match="truncated audio: the header promises"):
            read_audio(content[:end])
    with pytest.raises(AudioError, match="it is 2 files joined to one"):
        read_audio(content + content)


@pytest.mark.parametrize(("container", "codec"), [("ogg", "flac"), ("caf", "adpcm_ima_qt")])
def test_codecs_that_libsndfile_does_not_know_in_its_own_containers(container, codec):
    rate = 48000 if codec == "libopus" else 16000
    samples = chirp(4, rate)
    content = encoded(samples, rate, container, codec)
    heard = read_audio(content, rate)
    assert len(heard) == pytest.approx(len(samples), abs=0 if codec != "libopus" else 960)
    assert np.corrcoef(heard[: len(samples)], samples)[0, 1] > 0.99
    for end in (-1, len(content) // 2):
        with pytest.raises(AudioError, match=r"truncated audio: the (last Ogg page|part) "):
            read_audio(content[:end], rate)


def test_what_nobody_reads_is_said_without_the_insides_of_python():
    with pytest.raises(AudioError) as caught:
        read_audio(b"This is no sound. " * 9)
    assert str(caught.value) == (
        "audio: unreadable audio: neither libsndfile nor this reader knows what it is (Format not recognised.); "
        "convert it to wav or flac"
    )


@container_parameters
def test_what_is_cut_off_or_damaged_is_not_heard_in_part(container, codec, rate, longer, alike, options):
    samples = chirp(4, rate)
    content = encoded(samples, rate, container, codec, **options)
    for share in (0.3, 0.6, 0.9, 1):
        with pytest.raises(AudioError, match="truncated audio") as caught:
            read_audio(content[: int(share * len(content)) - 1])
        assert caught.value.reason == "truncated audio"
    damaged = bytearray(content)
    middle = len(content) // 2
    damaged[middle : middle + 2000] = np.random.default_rng(1).bytes(2000)
    try:
        assert len(read_audio(bytes(damaged), rate)) == pytest.approx(len(samples), abs=longer)  # cannot be told
    except AudioError as error:
        assert error.reason in ("unreadable audio", "truncated audio")
    if codec != "aac" or container != "adts":  # which is frames one after the other
        with pytest.raises(AudioError, match="unreadable audio: it is 2 files joined to one|is damaged|truncated"):
            read_audio(content + content)


@pytest.mark.parametrize("container", ["ipod", "matroska"])
def test_titles_that_are_not_unicode_do_no_harm(container):
    content = encoded(chirp(1, 16000), 16000, container, "aac")
    assert b"Lavf" in content
    assert read_audio(content.replace(b"Lavf", b"\xe9\xe9vf")).tolist() == read_audio(content).tolist()


@pytest.mark.parametrize("codec", ["libopus", "aac"])
def test_silence_that_opus_did_not_send_is_put_back_and_other_gaps_are_refused(codec):
    """A second between two packets in which nothing was sent."""
    source, target = io.BytesIO(encoded(chirp(2, 48000), 48000, "matroska", codec)), io.BytesIO()
    with av.open(source) as given, av.open(target, "w", format="matroska") as output:
        stream = output.add_stream_from_template(given.streams.audio[0])
        for packet in given.demux(audio=0):
            if packet.size:
                if packet.pts * packet.time_base > 1:
                    packet.pts += int(1 / packet.time_base)
                    packet.dts = packet.pts
                packet.stream = stream
                output.mux(packet)
    if codec == "aac":
        with pytest.raises(AudioError, match=r"unreadable audio: it lacks 1.0\d s of sound after 1.0"):
            read_audio(target.getvalue())
        return
    heard, whole = read_audio(target.getvalue(), 48000), read_audio(source.getvalue(), 48000)
    assert len(heard) == pytest.approx(len(whole) + 48000, abs=1000)
    silent = np.flatnonzero(heard == 0)
    assert len(silent) >= 47000 and silent[-1] - silent[0] < 2 * 48000
    assert np.delete(heard, silent)[:40000] == pytest.approx(whole[whole != 0][:40000], abs=1e-4)


def test_joined_adts_is_heard_whole():
    content = encoded(chirp(4, 16000), 16000, "adts", "aac")
    assert len(read_audio(content + content)) == 2 * len(read_audio(content))


def test_the_sound_of_a_film_is_heard_and_several_tracks_are_refused():
    samples = chirp(2, 16000)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        picture = output.add_stream("mpeg4", rate=10)
        picture.width = picture.height = 64
        sound = output.add_stream("aac", rate=16000, layout="mono")
        for number in range(30):
            image = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 8 * number, np.uint8))
            output.mux(picture.encode(image))
        frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        output.mux([*sound.encode(frame), *sound.encode(None), *picture.encode(None)])
    heard = read_audio(file.getvalue())
    assert len(heard) == 32000 and np.corrcoef(heard, samples)[0, 1] > 0.999
    with pytest.raises(AudioError, match="unreadable audio: it has 2 tracks of sound; keep one of them"):
        read_audio(encoded(samples, 16000, "mp4", "aac", tracks=2))


def test_a_playlist_opens_no_other_file(tmp_path):
    """FFmpeg would read the files that a playlist names, from anywhere: nothing is opened but the file itself."""
    soundfile.write(tmp_path / "secret.wav", TEN, 16000)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{tmp_path}/secret.wav\n#EXT-X-ENDLIST\n"
    concat = f"ffconcat version 1.0\nfile '{tmp_path}/secret.wav'\n"
    for name, text in (("a.m3u8", playlist), ("a.mp4", playlist), ("a.txt", concat)):
        (tmp_path / name).write_text(text)
        with pytest.raises(AudioError, match="unreadable audio"):
            read_audio(tmp_path / name)


# Stretches and channels.


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        lambda: of_soundfile(TEN, format="WAV"),
        lambda: of_soundfile(TEN, format="FLAC"),
        lambda: of_soundfile(TEN, format="OGG"),
        lambda: of_soundfile(TEN, format="OGG", subtype="OPUS"),
        lambda: mp3(),
        lambda: without_header_frame(mp3()),
        lambda: mp3() + mp3(),
    ],
    ids=["wav", "flac", "vorbis", "opus", "mp3", "mp3 without header", "joined mp3"],
)
def test_a_stretch_is_that_part_of_the_whole(content):
    content = content()
    whole = read_audio(content)
    for start, end in ((0, 0.5), (3.2, 3.21), (2.00003, 9), (9.5, None), (None, 7), (9, len(whole) / 16000 + 0.09)):
        first, stop = round((start or 0) * 16000), len(whole) if end is None else round(end * 16000)
        part = read_audio(content, start=start, end=end)
        assert part == pytest.approx(whole[first:stop], abs=1e-5)
        assert measure_audio(content, start=start, end=end) == pytest.approx(len(part) / 16000)
        digest = digest_audio(content, start=start, end=end)
        assert digest.duration == pytest.approx(len(part) / 16000)
    assert digest_audio(content, start=0, end=5) != digest_audio(content)


@pytest.mark.parametrize("container", ["wav", "m4a"])
@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (2, 4.2, "stretch outside the audio: end=4.2, but it is 4.000 s long"),
        (4, None, "stretch outside the audio: start=4, but it is 4.000 s long"),
        (7, 8, "stretch outside the audio: start=7, but it is 4.000 s long"),
        (2, 2, "empty stretch: start=2 must be before end=2"),
        (3, 2, "empty stretch: start=3 must be before end=2"),
        (-1, None, "empty stretch: start=-1 must be in seconds from 0 on"),
        (None, float("nan"), "empty stretch: end=nan must be in seconds from 0 on"),
    ],
)
def test_a_stretch_that_is_not_there_is_refused(container, start, end, message):
    samples = chirp(4, 16000)
    content = of_soundfile(samples, format="WAV") if container == "wav" else encoded(samples, 16000, "ipod", "aac")
    for use in (read_audio, measure_audio, digest_audio):
        with pytest.raises(AudioError, match=message) as caught:
            use(content, start=start, end=end)
        assert caught.value.reason == message.split(":")[0]


def test_one_channel():
    left, right = chirp(2, 16000), noise(2, 16000)
    for content in (
        of_soundfile(np.stack([left, right], 1), format="WAV", subtype="FLOAT"),
        encoded(np.stack([left, right]), 16000, "ipod", "alac"),
    ):
        assert read_audio(content, channel=0) == pytest.approx(left, abs=1e-4)
        assert read_audio(content, channel=1) == pytest.approx(right, abs=1e-4)
        assert read_audio(content) == pytest.approx((left + right) / 2, abs=1e-4)
        assert len({digest_audio(content, channel=channel).sha256 for channel in (0, 1, "mean")}) == 3
        for use in (read_audio, measure_audio, digest_audio):
            with pytest.raises(AudioError, match="no such channel: channel 2 of 2 channels; the first is 0"):
                use(content, channel=2)
            for wrong in ("left", -1, 0.5, True, None):
                with pytest.raises(ValueError, match='channel=.*: must be "mean" or the number of a channel'):
                    use(content, channel=wrong)


@pytest.mark.parametrize("gain", [1, 0.97])
def test_channels_that_cancel_out_are_refused_and_each_can_be_read(gain):
    samples = chirp(2, 16000)
    content = of_soundfile(np.stack([samples, -gain * samples], 1), format="WAV", subtype="FLOAT")
    for use in (read_audio, digest_audio):
        with pytest.raises(AudioError, match="channels cancel out: it has 2, so that their mean is silent though they"):
            use(content)
    assert read_audio(content, channel=1) == pytest.approx(-gain * samples, abs=1e-6)


@pytest.mark.parametrize(
    "channels",
    [
        np.zeros((2, 16000)),
        np.stack([noise(1, 16000), np.zeros(16000)]),
        np.stack([noise(1, 16000), np.random.default_rng(1).uniform(-0.5, 0.5, 16000)]),
        np.concatenate([noise(1, 16000)[None], np.zeros((7, 16000))]),
    ],
    ids=["silence", "one side", "two speakers", "one of eight"],
)
def test_other_channels_do_not_cancel_out(channels):
    assert read_audio(of_soundfile(channels.T, format="WAV")) == pytest.approx(channels.mean(axis=0), abs=1e-4)
