"""The pipeline that travels with a checkpoint, against the model called by hand on audio read by other means."""

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from small_models import ALL_CONFIGS, SMALL, WHISPER, student, teacher, whisper_extractor
from sounds import chirp, encoded, mp3
from transformers import (
    AutoFeatureExtractor,
    HubertConfig,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    pipeline,
)
from transformers.pipelines.pt_utils import KeyDataset

from cmkd.features.audio import read_audio
from configuration_cmkd import EMOTION_DIMENSIONS
from modeling_cmkd import CMKDStudentModel
from pipeline_cmkd import SpeechEmotionPipeline

pytestmark = pytest.mark.filterwarnings(
    "ignore:Support for mismatched key_padding_mask:UserWarning"
)  # the stock WavLM's
RATE = 16000
KINDS = ("hubert", "whisper")


def extractor(name: str):
    return whisper_extractor() if name == "whisper" else Wav2Vec2FeatureExtractor(return_attention_mask=True)


def built(name: str) -> SpeechEmotionPipeline:
    return SpeechEmotionPipeline(
        model=student(ALL_CONFIGS[name], label_scale=(1, 7)), feature_extractor=extractor(name)
    )


@pytest.fixture(scope="module", params=KINDS)
def score(request) -> SpeechEmotionPipeline:
    return built(request.param)


@pytest.fixture(scope="module")
def hubert() -> SpeechEmotionPipeline:
    return built("hubert")


@pytest.fixture
def warned():
    """The warnings of the pipeline, each of which is said once for as long as the process lives."""
    logger = logging.getLogger("pipeline_cmkd")
    logger.warning_once.cache_clear()
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def noise(seconds: float, seed: int = 0, rate: int = RATE, channels: int | None = None) -> np.ndarray:
    shape = (round(seconds * rate),) if channels is None else (round(seconds * rate), channels)
    return (0.1 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def by_hand(model, name: str, samples: np.ndarray):
    """Logits and embedding (float64) from the published recipe of each extractor, without the pipeline."""
    if name == "whisper":
        mels = whisper_extractor()(samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=False)
        inputs = {"input_features": mels["input_features"][:, :, : -(-len(samples) // 160)]}
    else:
        inputs = {"input_values": torch.from_numpy((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7))[None]}
    with torch.no_grad():
        output = model(**inputs)
    return output.logits[0].double().numpy(), output.embeddings[0].double().numpy()


def kind(score: SpeechEmotionPipeline) -> str:
    return score.model.config.speech_config.model_type


def values(answer: dict) -> list[float]:
    assert list(answer["scores"]) == list(EMOTION_DIMENSIONS)
    return list(answer["scores"].values())


def test_an_utterance_scores_as_the_model_does(score):
    samples = noise(1.7)
    logits, embedding = by_hand(score.model, kind(score), samples)
    answer = score(samples, sampling_rate=RATE, return_embeddings=True)
    assert values(answer) == pytest.approx(logits, abs=1e-5)
    assert list(answer["ratings"].values()) == pytest.approx(1 + 6 * logits, abs=1e-4)
    assert answer["embedding"] == pytest.approx(embedding, abs=1e-4)
    assert (answer["duration"], answer["silent"]) == (pytest.approx(1.7), False)
    (window,) = answer["timeline"]
    assert (window["start"], window["end"], window["scores"]) == (0, pytest.approx(1.7), answer["scores"])
    assert window["embedding"] == answer["embedding"]
    json.dumps(answer)
    assert "embedding" not in score(samples, sampling_rate=RATE)


def test_every_way_of_giving_audio_gives_the_same(score, tmp_path):
    samples = noise(1.2)
    path = tmp_path / "speech.wav"
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    logits, _ = by_hand(score.model, kind(score), samples)
    answers = [
        score(str(path)),
        score(path),
        score(path.read_bytes()),
        score(samples, sampling_rate=RATE),
        score(torch.from_numpy(samples), sampling_rate=RATE),
        score({"array": samples, "sampling_rate": RATE}),
        score({"array": samples.astype(np.float64).tolist(), "sampling_rate": RATE, "path": None}),
        score({"raw": samples, "sampling_rate": RATE}),
        score({"path": str(path), "bytes": None}),
        score({"path": "elsewhere.wav", "bytes": path.read_bytes()}),
        *score(iter_once([samples]), sampling_rate=RATE),
    ]
    for answer in answers:
        assert values(answer) == pytest.approx(logits, abs=1e-5)


def iter_once(items):
    yield from items


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_list_scores_as_its_entries_alone(score, batch_size):
    """Lengths, rates and windows mixed; the padding of a batch reaches no score."""
    waves = [noise(seconds, seed) for seed, seconds in enumerate((2.3, 0.1, 0.9, 5.2, 0.4))]
    expected = [by_hand(score.model, kind(score), wave)[0] for wave in waves]
    del expected[3]  # 5.2 s are cut
    answers = score([{"array": wave, "sampling_rate": RATE} for wave in waves], batch_size=batch_size, window=2.5)
    assert len(answers) == 5 and len(answers[3]["timeline"]) == 3
    found = [values(answer) for index, answer in enumerate(answers) if index != 3]
    assert np.ptp(expected, axis=0).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-5)
    windows = [by_hand(score.model, kind(score), waves[3][start : start + 40000])[0] for start in (0, 40000, 43200)]
    np.testing.assert_allclose([values(window) for window in answers[3]["timeline"]], windows, atol=1e-5)


@pytest.mark.parametrize(
    ("container", "codec"), [("ipod", "aac"), ("webm", "libopus"), ("adts", "aac"), (None, "mp3"), (None, "joined mp3")]
)
def test_what_is_scored_is_what_is_trained_on(hubert, container, codec, tmp_path):
    """One reader: the model hears what `cmkd.read_audio` hears, whatever the file."""
    samples = chirp(3, 48000)
    parts = 2 if codec == "joined mp3" else 1
    content = encoded(samples, 48000, container, codec) if container else parts * mp3(samples, 48000)
    (tmp_path / "speech").write_bytes(content)
    heard = read_audio(tmp_path / "speech")
    assert len(heard) == pytest.approx(parts * 48000, abs=1000)
    answers = [hubert(tmp_path / "speech"), hubert(content)]
    for answer in answers:
        assert answer["duration"] == pytest.approx(len(heard) / RATE, abs=1e-3)
        assert values(answer) == pytest.approx(by_hand(hubert.model, "hubert", heard)[0], abs=2e-5)


class Samples:
    """`torchcodec.AudioSamples`, as far as it is documented."""

    def __init__(self, data: torch.Tensor, sample_rate: int):
        self.data = data  # (channels, samples), float32
        self.sample_rate = sample_rate
        self.pts_seconds = 0.0
        self.duration_seconds = data.shape[1] / sample_rate


class AudioDecoder:
    """`torchcodec.decoders.AudioDecoder`, as far as it is documented: what columns of sound hold since datasets 4."""

    def __init__(self, samples: np.ndarray, rate: int):
        self._samples = Samples(torch.from_numpy(np.atleast_2d(samples)), rate)

    def get_all_samples(self) -> Samples:
        return self._samples


def test_the_decoders_of_a_column_of_sound_are_read(hubert):
    waves = [noise(1.2), noise(0.7, seed=1)]
    rows = [{"audio": AudioDecoder(wave, RATE), "label": 0} for wave in waves]
    expected = [by_hand(hubert.model, "hubert", wave)[0] for wave in waves]
    ways = [
        [hubert(row["audio"]) for row in rows],
        hubert([row["audio"] for row in rows]),
        hubert(tuple(row["audio"] for row in rows)),
        list(hubert(KeyDataset(rows, "audio"))),
        list(hubert(row["audio"] for row in rows)),
    ]
    for answers in ways:
        for answer, logits in zip(answers, expected, strict=True):
            assert values(answer) == pytest.approx(logits, abs=1e-5)
    stereo = AudioDecoder(np.stack(waves[:1] * 2) * [[1], [0.5]], 8000)
    assert hubert(stereo)["duration"] == pytest.approx(2.4)
    few = AudioDecoder(noise(0.2).reshape(2, -1)[:, :1], RATE)  # fewer samples than channels: which is which is known
    with pytest.raises(ValueError, match="too short"):
        hubert(few)
    with pytest.raises(ValueError, match="sampling_rate=8000 is for arrays"):
        hubert(rows[0]["audio"], sampling_rate=8000)


def test_the_decoders_of_torchcodec_are_read(hubert, tmp_path):
    datasets = pytest.importorskip("datasets")
    try:
        import torchcodec  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # it needs libraries of FFmpeg, of some versions
        pytest.skip(f"torchcodec does not work here: {str(error)[:80]}")
    for number in range(2):
        soundfile.write(tmp_path / f"{number}.wav", noise(1.2, seed=number), RATE, subtype="FLOAT")
    files = [str(tmp_path / f"{number}.wav") for number in range(2)]
    column = datasets.Dataset.from_dict({"audio": files}).cast_column("audio", datasets.Audio())
    expected = [values(answer) for answer in hubert(files)]
    streamed = column.to_iterable_dataset()
    ways = [
        [hubert(row["audio"]) for row in column],
        hubert([row["audio"] for row in column]),
        hubert(column["audio"]),
        list(hubert(KeyDataset(column, "audio"))),
        list(hubert(row["audio"] for row in streamed)),
    ]
    for answers in ways:
        np.testing.assert_allclose([values(answer) for answer in answers], expected, atol=1e-5)


def test_a_row_of_a_data_set_is_told_from_its_sound(hubert):
    row = {"audio": "a.wav", "label": 3}
    message = (
        r"audio is a dict with 'audio', 'label', but must be .* 'path' or 'bytes' or with 'array' and 'sampling_rate'"
    )
    with pytest.raises(TypeError, match=message + r".* pass the sound alone: row\['audio'\]"):
        hubert(row)
    with pytest.raises(TypeError, match=r"inputs\[0\] is a dict with 'file', but"):
        hubert([{"file": "a.wav"}])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_each_channel_or_one_of_them(score, batch_size, tmp_path):
    call = np.stack([noise(1.3), noise(1.3, seed=1)])
    soundfile.write(tmp_path / "call.wav", call.T, RATE, subtype="FLOAT")
    sides = [by_hand(score.model, kind(score), side)[0] for side in call]
    given = [tmp_path / "call.wav", {"array": call, "sampling_rate": RATE}, {"array": call.T, "sampling_rate": RATE}]
    for answer in score(given, channel="each", batch_size=batch_size):
        assert list(answer) == ["duration", "channels"] and answer["duration"] == pytest.approx(1.3)
        assert len(answer["channels"]) == 2
        for side, logits in zip(answer["channels"], sides, strict=True):
            assert values(side) == pytest.approx(logits, abs=1e-5)
            assert side["duration"] == answer["duration"]
    for number in (0, 1):
        for answer in score(given, channel=number, batch_size=batch_size):
            assert values(answer) == pytest.approx(sides[number], abs=1e-5)
    json.dumps(score(given, channel="each"))
    mean = by_hand(score.model, kind(score), call.mean(axis=0))[0]
    assert values(score(tmp_path / "call.wav")) == values(score(tmp_path / "call.wav", channel="mean"))
    assert values(score(tmp_path / "call.wav")) == pytest.approx(mean, abs=1e-5)
    (alone,) = score(call[0], sampling_rate=RATE, channel="each")["channels"]
    assert values(alone) == pytest.approx(sides[0], abs=1e-5)


def test_each_channel_has_its_own_timeline_and_silence(hubert):
    call = np.stack([noise(5, rate=8000), np.zeros(40000, np.float32)])
    call[1, :16000] = noise(2, seed=1, rate=8000)
    answer = hubert(call, sampling_rate=8000, channel="each", window=2, batch_size=4)
    for number, side in enumerate(answer["channels"]):
        alone = hubert(call[number], sampling_rate=8000, window=2)
        assert [window["start"] for window in side["timeline"]] == [0, 2, 3]
        assert [window["silent"] for window in side["timeline"]] == [w["silent"] for w in alone["timeline"]]
        assert values(side) == pytest.approx(values(alone), abs=1e-5)
    assert [window["silent"] for window in answer["channels"][1]["timeline"]] == [False, True, True]


@pytest.mark.parametrize("channel", ["left", -1, 0.5, True, "0"])
def test_what_names_no_channel_is_refused(hubert, channel):
    message = f'channel={channel!r}: must be "mean" or "each" or the number of a channel, of which the first is 0'
    with pytest.raises(ValueError, match=message):
        hubert(noise(1), sampling_rate=RATE, channel=channel)


def test_a_channel_that_is_not_there_is_refused(hubert, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(1, channels=2), RATE)
    with pytest.raises(ValueError, match="a.wav: no such channel: channel 2 of 2 channels; the first is 0"):
        hubert(tmp_path / "a.wav", channel=2)
    with pytest.raises(ValueError, match="audio: no such channel: channel 1 of 1 channel;"):
        hubert(noise(1), sampling_rate=RATE, channel=1)


def test_channels_that_cancel_out_are_not_called_silent(hubert):
    wave = noise(5)
    wires_swapped = np.stack([wave, -wave])
    message = r'channels cancel out: its 2 channels do from 0.00 to 2.00 s, so that .* channel=0, or channel="each"'
    with pytest.raises(ValueError, match=message):
        hubert(wires_swapped, sampling_rate=RATE, window=2)
    logits, _ = by_hand(hubert.model, "hubert", wave)
    assert values(hubert(wires_swapped, sampling_rate=RATE, channel=0)) == pytest.approx(logits, abs=1e-5)
    sides = hubert(wires_swapped, sampling_rate=RATE, channel="each")["channels"]
    assert [side["silent"] for side in sides] == [False, False]
    assert hubert(0 * wires_swapped, sampling_rate=RATE)["silent"]


def test_an_empty_list_has_no_answers(hubert):
    assert hubert([]) == []


@pytest.mark.parametrize("name", KINDS)
def test_the_stock_pipeline_gives_the_same_utterance_values(name, tmp_path):
    student(ALL_CONFIGS[name]).save_pretrained(tmp_path)
    extractor(name).save_pretrained(tmp_path)
    waves = [noise(seconds, seed) for seed, seconds in enumerate((1.3, 11.0))]
    audio = [{"array": wave, "sampling_rate": RATE} for wave in waves]
    ours = pipeline(model=str(tmp_path), trust_remote_code=True)
    assert type(ours).__name__ == "SpeechEmotionPipeline" and ours.task == "speech-emotion"
    stock = pipeline("audio-classification", model=str(tmp_path), trust_remote_code=True)
    for answer, labels in zip(ours(audio), stock(audio, function_to_apply="none"), strict=True):
        found = {entry["label"]: entry["score"] for entry in labels}
        assert answer["scores"] == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_any_rate_and_channel_count_is_said_once(hubert, rate, suffix, tmp_path, warned):
    """Oracle: the whole file at once, downmixed and resampled by soxr's one-call function."""
    path = tmp_path / f"speech.{suffix}"
    soundfile.write(path, noise(5, rate=rate, channels=2), rate)  # several blocks
    frames, _ = soundfile.read(path, dtype="float32")
    samples = soxr.resample(frames.mean(axis=1), rate, RATE)
    logits, _ = by_hand(hubert.model, "hubert", samples)
    for _ in range(2):
        answer = hubert(path)
        assert values(answer) == pytest.approx(logits, abs=2e-5)
        assert answer["duration"] == pytest.approx(len(samples) / RATE, abs=1e-3)
    assert sorted(warned) == [
        f"Audio at {rate} Hz is resampled to the model's 16000 Hz.",
        "Audio of 2 channels is scored as their mean; channel= takes one of them, or each.",
    ]


def test_the_shorter_axis_of_an_array_is_the_channels(hubert, warned):
    stereo = noise(1, channels=2)
    logits, _ = by_hand(hubert.model, "hubert", stereo.mean(axis=1))
    for array in (stereo, stereo.T):
        assert values(hubert(array, sampling_rate=RATE)) == pytest.approx(logits, abs=1e-5)
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("seconds", "window", "hop", "starts"),
    [
        (30.0, None, None, [0]),
        (35.0, None, None, [0, 10, 20, 25]),
        (40.0, None, 5, [0, 5, 10, 15, 20, 25, 30]),
        (4.0, 4, 1, [0]),
        (4.0, 2, None, [0, 2]),
        (4.0, 2, 1.5, [0, 1.5, 2]),
        (5.5, 2, 1, [0, 1, 2, 3, 3.5]),
        (9.0, 0.5, 0.5, [index / 2 for index in range(18)]),
    ],
)
def test_windows_of_long_audio(hubert, seconds, window, hop, starts):
    samples = noise(seconds)
    answer = hubert(samples, sampling_rate=RATE, batch_size=8, window=window, hop=hop)
    timeline = answer["timeline"]
    length = seconds if len(starts) == 1 else (window or 10)
    assert [entry["start"] for entry in timeline] == pytest.approx(starts)
    assert [entry["end"] for entry in timeline] == pytest.approx([start + length for start in starts])
    assert answer["duration"] == pytest.approx(seconds)
    for entry in (timeline[0], timeline[-1]):
        part = samples[round(entry["start"] * RATE) : round(entry["end"] * RATE)]
        assert values(entry) == pytest.approx(by_hand(hubert.model, "hubert", part)[0], abs=1e-5)


def test_the_whole_is_the_mean_over_time(hubert):
    """Oracle: the value at each millisecond is the mean of the windows over it; the whole is the mean of those."""
    answer = hubert(noise(5.5), sampling_rate=RATE, window=2, hop=1.25, return_embeddings=True)
    timeline = answer["timeline"]
    milliseconds = np.arange(5500) + 0.5
    covers = np.array([(w["start"] * 1000 < milliseconds) & (milliseconds < w["end"] * 1000) for w in timeline])
    assert covers.sum(axis=0).min() == 1 and covers.sum(axis=0).max() == 2
    for name in ("scores", "ratings"):
        each = np.array([list(window[name].values()) for window in timeline])
        instants = (covers[:, :, None] * each[:, None]).sum(axis=0) / covers.sum(axis=0)[:, None]
        assert list(answer[name].values()) == pytest.approx(instants.mean(axis=0), abs=1e-9)
    each = np.array([window["embedding"] for window in timeline])
    instants = (covers[:, :, None] * each[:, None]).sum(axis=0) / covers.sum(axis=0)[:, None]
    assert answer["embedding"] == pytest.approx(instants.mean(axis=0), abs=1e-9)


def test_silent_windows_are_flagged_and_do_not_count(hubert):
    samples = noise(6)
    samples[2 * RATE : 4 * RATE] = 0
    answer = hubert(samples, sampling_rate=RATE, window=2)
    first, silence, last = answer["timeline"]
    assert [window["silent"] for window in (first, silence, last, answer)] == [False, True, False, False]
    assert values(answer) == pytest.approx((np.array(values(first)) + values(last)) / 2)
    assert np.abs(np.array(values(silence)) - values(answer)).max() > 1e-3  # it would have counted
    assert np.isfinite(values(silence)).all()


@pytest.mark.parametrize("level", [0.0, 1e-6, 0.9e-3])
def test_silence_throughout_is_scored_and_flagged(hubert, level):
    samples = (level * np.sign(noise(5))).astype(np.float32)
    answer = hubert(samples, sampling_rate=RATE, window=2)
    assert answer["silent"] and all(window["silent"] for window in answer["timeline"])
    assert np.isfinite(values(answer)).all()
    assert not hubert(np.sign(samples + 1e-9) * 1.1e-3, sampling_rate=RATE)["silent"]


def wav(samples: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=options.pop("format", "WAV"), **options)
    return file.getvalue()


BROKEN = noise(3)
BROKEN[RATE] = np.nan


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (noise(0.0999), r"inputs\[1\]: audio of 0.100 s is too short: it must be at least 0.1 s"),
        (noise(0), r"inputs\[1\]: empty audio"),
        (BROKEN, r"inputs\[1\]: non-finite audio: .* NaN or infinite after 0.00 s"),
        (wav(BROKEN, subtype="FLOAT"), r"inputs\[1\]: non-finite audio"),
        (wav(noise(0)), r"inputs\[1\]: empty audio: it has no samples"),
        (b"", r"inputs\[1\]: empty audio: the file has no bytes"),
        (b"no audio at all", r"inputs\[1\]: unreadable audio"),
        (wav(noise(2))[:-1000], r"inputs\[1\]: truncated audio: the header promises 64000 bytes of sound, but 63000"),
        (wav(noise(9), format="FLAC")[:-9000], r"inputs\[1\]: truncated audio"),
        (wav(noise(2), format="OGG")[:-500], r"inputs\[1\]: truncated audio: the last Ogg page"),
        (np.zeros(RATE, np.int16), r"inputs\[1\]: the array is int16, .*divide 16-bit integers by 32768"),
        (np.zeros((2, 3, RATE), np.float32), r"inputs\[1\]: the array has shape \(2, 3, 16000\)"),
        ({"array": noise(1)}, r"inputs\[1\]: sampling_rate=None: give the array's rate in Hz"),
        ({"array": noise(1), "sampling_rate": 0}, r"inputs\[1\]: sampling_rate=0: give"),
        ({"array": BROKEN, "sampling_rate": RATE, "path": "b.wav"}, "b.wav: non-finite audio"),
        ({"bytes": b"", "path": "c.wav"}, "c.wav: empty audio"),
        ("https://example.org/a.wav", "https://example.org/a.wav: missing file: addresses are not fetched"),
    ],
    ids=[
        # bytes would name themselves, and those of Ogg differ from process to process
        "too short",
        "no samples",
        "not finite",
        "wav not finite",
        "wav without samples",
        "no bytes",
        "not audio",
        "cut wav",
        "cut flac",
        "cut ogg",
        "integers",
        "three axes",
        "no rate",
        "rate of 0",
        "named, not finite",
        "named, no bytes",
        "address",
    ],
)
def test_bad_audio_is_refused_by_name(hubert, audio, message):
    given = noise(1)
    if isinstance(audio, np.ndarray):
        audio = {"array": audio, "sampling_rate": RATE}
    with pytest.raises(ValueError, match=message):
        hubert([{"array": given, "sampling_rate": RATE}, audio])


def test_other_wrong_inputs(hubert, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.wav: there is no such file"):
        hubert(tmp_path / "nowhere.wav")
    with pytest.raises(ValueError, match="unreadable audio"):
        hubert(tmp_path)
    for nothing in (7, None, {"bytes": None, "path": None}):
        with pytest.raises(TypeError, match="audio is .* but must be a path, the bytes"):
            hubert(nothing)
    soundfile.write(tmp_path / "a.wav", noise(1), RATE)
    with pytest.raises(ValueError, match="a.wav: sampling_rate=8000 is for arrays"):
        hubert(tmp_path / "a.wav", sampling_rate=8000)
    with pytest.raises(ValueError, match="audio: sampling_rate=None: give"):
        hubert(noise(1))
    with pytest.raises(TypeError, match="windows"):
        hubert(tmp_path / "a.wav", windows=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window=0: must be a finite number of seconds, at least 0.1"),
        ({"window": 0.09}, "window=0.09"),
        ({"window": float("inf")}, "window=inf"),
        ({"window": float("nan")}, "window=nan"),
        ({"window": 2, "hop": 3}, "hop=3: must be above 0 and at most the window of 2 s"),
        ({"hop": 11}, "hop=11: must be above 0 and at most the window of 10 s"),
        ({"hop": 0}, "hop=0"),
        ({"hop": float("nan")}, "hop=nan"),
    ],
)
def test_windows_out_of_range_are_refused(hubert, options, message):
    with pytest.raises(ValueError, match=message):
        hubert(noise(1), sampling_rate=RATE, **options)


def test_whisper_takes_thirty_seconds_and_no_more():
    score = built("whisper")
    assert len(score(noise(30), sampling_rate=RATE)["timeline"]) == 1
    assert len(score(noise(30.1), sampling_rate=RATE, window=30)["timeline"]) == 2
    with pytest.raises(ValueError, match="window=31: .* at most 30, which is all that the encoder takes"):
        score(noise(1), sampling_rate=RATE, window=31)


def test_an_encoder_that_takes_less_sets_the_default_window():
    config = WhisperConfig(**WHISPER.to_dict() | {"max_source_positions": 100})
    short = WhisperFeatureExtractor(feature_size=80, chunk_length=2)
    score = SpeechEmotionPipeline(model=student(config), feature_extractor=short)
    assert [window["start"] for window in score(noise(5), sampling_rate=RATE)["timeline"]] == [0, 2, 3]
    with pytest.raises(ValueError, match="window=3: .* at most 2,"):
        score(noise(5), sampling_rate=RATE, window=3)


def test_arguments_may_be_given_when_the_pipeline_is_made():
    score = SpeechEmotionPipeline(
        model=student(ALL_CONFIGS["hubert"]), feature_extractor=extractor("hubert"), window=2, return_embeddings=True
    )
    answer = score(noise(5), sampling_rate=RATE, hop=1)
    assert [window["start"] for window in answer["timeline"]] == [0, 1, 2, 3] and "embedding" in answer


def test_a_teacher_that_reads_is_refused_and_one_that_hears_scores():
    with pytest.raises(ValueError, match="CMKDTeacherModel also reads a transcript.*Load the student"):
        SpeechEmotionPipeline(model=teacher(), feature_extractor=extractor("hubert"))
    model = teacher(text=False)
    score = SpeechEmotionPipeline(model=model, feature_extractor=extractor("hubert"))
    assert values(score(noise(1), sampling_rate=RATE)) == pytest.approx(by_hand(model, "hubert", noise(1))[0], abs=1e-5)


@pytest.mark.parametrize("package", ["soundfile", "soxr", "av"])
def test_a_missing_package_is_named(hubert, package, monkeypatch, tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(1), 8000)
    (tmp_path / "a.m4a").write_bytes(encoded(chirp(1, 8000), 8000, "ipod", "aac"))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"{package}.* is missing: pip install {package}"):
        hubert(tmp_path / ("a.m4a" if package == "av" else "a.wav"))
    assert hubert(noise(1), sampling_rate=RATE)["duration"] == 1  # which needs neither


FRESH = """
import json, sys
folder, audio = sys.argv[1:]
from transformers import AutoModel, pipeline
score = pipeline(model=folder, trust_remote_code=True)
answer = score(audio)
score.save_pretrained(folder + "-pipeline")
AutoModel.from_pretrained(folder, trust_remote_code=True).save_pretrained(folder + "-model")
from pathlib import Path
(Path(folder) / "preprocessor_config.json").rename(Path(folder + "-model") / "preprocessor_config.json")
again = [pipeline(model=folder + end, trust_remote_code=True)(audio) for end in ("-pipeline", "-model")]
ours = ("cmkd", "audio_cmkd", "modeling_cmkd", "pipeline_cmkd", "speech_encoder_cmkd", "windows_cmkd")
leaked = [name for name in sys.modules if name.split(".")[0] in ours]
same = [other == answer for other in again]
print(json.dumps({"answer": answer, "same": same, "leaked": leaked, "task": score.task}))
"""


def run_fresh(code: str, *arguments, cwd: Path) -> dict:
    """In an interpreter that sees neither the checkout nor PYTHONPATH."""
    command = [sys.executable, "-I", "-c", code, *map(str, arguments)]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=900)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_folder_scores_elsewhere_without_this_package_also_when_saved_again(tmp_path):
    model = student(ALL_CONFIGS["wavlm"], label_scale=(1, 5))
    model.save_pretrained(tmp_path / "model")
    extractor("wavlm").save_pretrained(tmp_path / "model")
    soundfile.write(tmp_path / "speech.wav", noise(1.5), RATE, subtype="FLOAT")
    found = run_fresh(FRESH, tmp_path / "model", tmp_path / "speech.wav", cwd=tmp_path)
    assert values(found["answer"]) == pytest.approx(by_hand(model, "wavlm", noise(1.5))[0], abs=1e-5)
    assert (found["same"], found["leaked"], found["task"]) == ([True, True], [], "speech-emotion")
    kinds = ("audio", "configuration", "modeling", "pipeline", "speech_encoder", "windows")
    travelling = {f"{kind}_cmkd.py" for kind in kinds}
    for name in ("model", "model-pipeline", "model-model"):
        assert {path.name for path in (tmp_path / name).glob("*.py")} == travelling
    entries = [
        json.loads((tmp_path / name / "config.json").read_text())["custom_pipelines"]
        for name in ("model", "model-pipeline", "model-model")
    ]
    assert entries == [{"speech-emotion": {"impl": "pipeline_cmkd.SpeechEmotionPipeline", "pt": ["AutoModel"]}}] * 3
    assert type(AutoFeatureExtractor.from_pretrained(tmp_path / "model-model")).__name__ == "Wav2Vec2FeatureExtractor"
    assert CMKDStudentModel.from_pretrained(tmp_path / "model-model").config.label_scale == [1, 5]


HOUR = """
import json, pathlib, resource, sys
from transformers import pipeline
score = pipeline(model=sys.argv[1], trust_remote_code=True)
answers = [score(path, batch_size=4) for path in sys.argv[2:]]
status = pathlib.Path("/proc/self/status")  # on Linux ru_maxrss is at least that of the process that started this one
if status.exists():
    peak = 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = [[answer["duration"], len(answer["timeline"])] for answer in answers]
print(json.dumps({"peak": peak, "found": found}))
"""


@pytest.mark.slow
def test_an_hour_takes_less_than_a_gigabyte(tmp_path):
    """Of WAVE, which libsndfile reads, and of MP3 files that are joined, which FFmpeg reads; one after the other."""
    narrow = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "conv_dim": (4,) * 7}
    student(HubertConfig(**SMALL | narrow), gru_hidden_size=4, embedding_size=4).save_pretrained(tmp_path / "model")
    extractor("hubert").save_pretrained(tmp_path / "model")
    minute = noise(60, rate=8000)
    with soundfile.SoundFile(tmp_path / "hour.wav", "w", 8000, 1, subtype="PCM_16") as file:
        for _ in range(60):
            file.write(minute)
    (tmp_path / "hour.mp3").write_bytes(60 * mp3(minute, 8000))
    found = run_fresh(HOUR, tmp_path / "model", tmp_path / "hour.wav", tmp_path / "hour.mp3", cwd=tmp_path)
    assert found["found"] == [[pytest.approx(3600), 360]] * 2
    assert found["peak"] < 1e9
