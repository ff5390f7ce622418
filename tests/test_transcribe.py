"""Transcribing: what is heard, and that nothing is lost or done twice."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from launching import output_of, start_processes
from small_recognizers import LETTERS, make_ctc, make_whisper
from transformers import (
    AutoFeatureExtractor,
    AutoTokenizer,
    HubertConfig,
    HubertModel,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    Wav2Vec2FeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
    pipeline,
)
from warm import module

from cmkd.corpora import load_corpus
from cmkd.features.audio import read_audio
from cmkd.transcription.recognizers import Hypothesis, cut, load_recognizer
from cmkd.transcription.transcribe import transcribe

RATE = 16000


def make_corpus(folder: Path, size: int = 12) -> None:
    """Noises of different colour and length, the third of them silent."""
    generator = np.random.default_rng(0)
    lines = ["id,audio,valence,split"]
    for index in range(size):
        samples = int(RATE * generator.uniform(0.3, 1.4))
        noise = np.convolve(generator.normal(size=samples), generator.normal(size=8), "same")
        tone = np.sin(np.cumsum(generator.uniform(0.02, 0.8) + 0.1 * np.sin(np.arange(samples) / 3000)))
        wave = np.zeros(samples) if index == 2 else 0.02 * noise + 0.2 * tone
        soundfile.write(folder / f"u{index}.wav", wave, RATE)
        lines.append(f"u{index},u{index}.wav,{1 + index % 7},{('train', 'validation', 'test')[index % 3]}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_whisper(folder / "tiny/whisper")
    make_ctc(folder / "tiny/group", "group")
    make_ctc(folder / "tiny/layer", "layer")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(folder):
    return load_corpus("manifest", folder, label_scale=(1, 7))


def rows_of(path: Path) -> dict[str, dict]:
    rows = pq.read_table(path).to_pylist()
    assert [row["id"] for row in rows] == sorted({row["id"] for row in rows})
    return {row["id"]: row for row in rows}


def assert_alike(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    """The same words; numbers up to rounding, which depends on the size of the batch."""
    for one, other in zip(found, expected, strict=True):
        assert (one.text, one.tokens) == (other.text, other.tokens)
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)
        assert one.no_speech_probability == pytest.approx(other.no_speech_probability, abs=1e-4)


def waves(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: read_audio(path) for path in sorted(folder.glob("*.wav"))}


def test_whisper_writes_what_it_writes_for_one_utterance_alone(models, folder, corpus, tmp_path):
    """The oracle is a loop over the decoder, one token after the other."""
    done = transcribe(corpus, "tiny/whisper", tmp_path / "t.parquet", models_dir=str(models), batch_seconds=8)
    assert (done.utterances, done.already, done.processes) == (12, 0, 1)
    found = rows_of(tmp_path / "t.parquet")
    source = models / "tiny/whisper"
    model = WhisperForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    extractor, tokenizer = AutoFeatureExtractor.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    start, silent, plain, end = (
        tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("startoftranscript", "nocaptions", "notimestamps", "endoftext")
    )
    texts = set()
    for identifier, wave in waves(folder).items():
        row = found[identifier]
        assert row["duration"] == pytest.approx(len(wave) / RATE, abs=1e-6)
        if identifier == "u2":  # silence
            assert row["text"] == "" and row["average_log_probability"] is None
            continue
        features = extractor(wave, sampling_rate=RATE, return_tensors="pt").input_features
        tokens, scores = [start, plain], []
        with torch.no_grad():
            while len(tokens) < 20 and tokens[-1] != end:
                logits = model(input_features=features, decoder_input_ids=torch.tensor([tokens])).logits[0]
                if len(tokens) == 2:
                    no_speech = model(input_features=features, decoder_input_ids=torch.tensor([[start]])).logits[0, 0]
                    logits[-1, end] = -torch.inf  # begin_suppress_tokens
                score, token = logits[-1].log_softmax(-1).max(-1)
                tokens.append(int(token))
                scores.append(float(score))
        probability = float(no_speech.softmax(-1)[silent])
        assert row["no_speech_probability"] == pytest.approx(probability, abs=1e-4)
        text = tokenizer.decode(tokens, skip_special_tokens=True).strip() if probability < 0.6 else ""
        assert row["text"] == text
        assert row["average_log_probability"] == pytest.approx(np.mean(scores), abs=1e-4)
        texts.add(text)
    assert len(texts) > 4
    assert {row["model"] for row in found.values()} == {"tiny/whisper"}
    assert all(row["revision"].startswith("sha256-") for row in found.values())


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_ctc_models_write_what_the_stock_pipeline_writes_for_one_utterance_alone(
    models, folder, corpus, tmp_path, norm
):
    transcribe(corpus, f"tiny/{norm}", tmp_path / "t.parquet", models_dir=str(models), batch_seconds=6)
    found = rows_of(tmp_path / "t.parquet")
    stock = pipeline(
        "automatic-speech-recognition", model=str(models / "tiny" / norm), dtype=torch.float32, device="cpu"
    )
    texts = set()
    for identifier, wave in waves(folder).items():
        if identifier == "u2":
            assert found[identifier]["text"] == ""
            continue
        text = stock({"raw": wave, "sampling_rate": RATE})["text"]
        assert found[identifier]["text"] == text.replace("<s>", "").replace("</s>", "").replace("<unk>", "").strip()
        inputs = stock.feature_extractor(wave, sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            best = stock.model(inputs.input_values).logits[0].log_softmax(-1).max(-1)
        expected = best.values[best.indices != 0].mean().item()
        assert found[identifier]["average_log_probability"] == pytest.approx(expected, abs=1e-3)
        assert found[identifier]["no_speech_probability"] is None
        texts.add(text)
    assert len(texts) > 4


def test_other_encoder_decoders_write_too(tmp_path):
    torch.manual_seed(0)
    tokenizer = WhisperTokenizer(vocab={token: index for index, token in enumerate(LETTERS)}, merges=[])
    tokenizer.save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=False).save_pretrained(tmp_path)
    end = tokenizer.eos_token_id
    config = MoonshineConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1, encoder_num_attention_heads=2, decoder_num_attention_heads=2,
        initializer_range=1.0, decoder_start_token_id=0, bos_token_id=0, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    MoonshineForConditionalGeneration(config).save_pretrained(tmp_path)
    recognizer = load_recognizer(str(tmp_path))
    generator = np.random.default_rng(0)
    batch = [generator.normal(size=size).astype(np.float32) * 0.1 for size in (9000, 12000)]
    together, alone = recognizer.recognize(batch), [recognizer.recognize([wave])[0] for wave in batch]
    assert_alike(together, alone)
    assert [hypothesis.tokens <= limit for hypothesis, limit in zip(alone, (25, 29), strict=True)] == [True, True]
    assert all(hypothesis.text for hypothesis in alone)


def test_a_full_generation_config_gives_the_same_as_a_bare_one(models, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(models / "tiny/whisper")
    full = {
        "no_timestamps_token_id": tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
        "is_multilingual": False,
        "max_length": 20,
    }
    make_whisper(tmp_path / "full", full)
    waveforms = [np.random.default_rng(seed).normal(size=8000).astype(np.float32) * 0.1 for seed in range(3)]
    bare = load_recognizer("tiny/whisper", models_dir=str(models)).recognize(waveforms)
    recognizer = load_recognizer(str(tmp_path / "full"))
    assert recognizer.network.generation_config.max_length == 20
    assert_alike(recognizer.recognize(waveforms), bare)


def test_the_language_reaches_a_multilingual_model_and_no_other(models, tmp_path):
    make_whisper(tmp_path / "both", {"is_multilingual": True})
    waveform = np.random.default_rng(0).normal(size=8000).astype(np.float32) * 0.1
    prompts = {}
    for language in ("en", "german", None):
        recognizer = load_recognizer(str(tmp_path / "both"), language=language)
        generate = recognizer.network.generate
        found = []

        def kept(*arguments, generate=generate, found=found, **settings):
            found.append(generate(*arguments, **settings))
            return found[-1]

        recognizer.network.generate = kept
        recognizer.recognize([waveform])
        prompts[language] = recognizer.tokenizer.convert_ids_to_tokens(found[0].sequences[0, :4].tolist())
    ends = ["<|transcribe|>", "<|notimestamps|>"]
    assert prompts["en"] == ["<|startoftranscript|>", "<|en|>", *ends]
    assert prompts["german"] == ["<|startoftranscript|>", "<|de|>", *ends]
    assert prompts[None][1] in ("<|en|>", "<|de|>") and prompts[None][2:] == ends
    with pytest.raises(ValueError, match="language is 'de', but 'tiny/whisper' knows English only"):
        load_recognizer("tiny/whisper", models_dir=str(models), language="de")
    with pytest.raises(ValueError, match="language is 'en', but 'tiny/layer' has no choice"):
        load_recognizer("tiny/layer", models_dir=str(models), language="en")


def test_longer_audio_than_the_model_takes_is_cut_where_it_is_quiet(models):
    generator = np.random.default_rng(0)
    speech = [generator.normal(size=size).astype(np.float32) * 0.1 for size in (24000, 20000, 28000)]
    pause = np.zeros(3000, np.float32)
    whole = np.concatenate([speech[0], pause, speech[1], pause, speech[2]])
    pieces = cut(whole, RATE, 2.0)
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    ends = np.cumsum([len(piece) for piece in pieces])
    assert len(pieces) == 3 and 24000 < ends[0] < 27000 and 47000 < ends[1] < 50000
    recognizer = load_recognizer("tiny/whisper", models_dir=str(models))
    parts = recognizer.recognize(pieces)
    together = recognizer.recognize([whole, speech[1]])
    assert together[0].text == " ".join(part.text for part in parts if part.text)
    assert together[0].tokens == sum(part.tokens for part in parts)
    assert together[0].average_log_probability == pytest.approx(
        sum(part.log_probability for part in parts) / sum(part.tokens for part in parts), abs=1e-4
    )
    assert_alike(together[1:], recognizer.recognize([speech[1]]))


def test_only_missing_utterances_are_transcribed(models, tmp_path, monkeypatch):
    make_corpus(tmp_path, 9)
    small = load_corpus("manifest", tmp_path, label_scale=(1, 7))
    first = transcribe(small, "tiny/group", tmp_path / "t.parquet", models_dir=str(models))
    before = rows_of(tmp_path / "t.parquet")
    make_corpus(tmp_path, 12)
    grown = load_corpus("manifest", tmp_path, label_scale=(1, 7))
    second = transcribe(grown, "tiny/group", tmp_path / "t.parquet", models_dir=str(models))
    assert (first.utterances, second.utterances, second.already) == (9, 3, 9)
    after = rows_of(tmp_path / "t.parquet")
    assert len(after) == 12 and before.items() <= after.items()
    content = (tmp_path / "t.parquet").read_bytes()
    assert transcribe(grown, "tiny/group", tmp_path / "t.parquet", models_dir=str(models)).utterances == 0
    assert (tmp_path / "t.parquet").read_bytes() == content and not (tmp_path / "t.parquet.parts").exists()

    with pytest.raises(
        ValueError, match="(?s)t.parquet was made with model 'tiny/group', but now model is 'tiny/layer'"
    ):
        transcribe(grown, "tiny/layer", tmp_path / "t.parquet", models_dir=str(models))
    with pytest.raises(ValueError, match="(?s)t.parquet was made with settings .*bfloat16"):
        transcribe(grown, "tiny/group", tmp_path / "t.parquet", models_dir=str(models), precision="bfloat16")
    soundfile.write(tmp_path / "u1.wav", np.random.default_rng(5).normal(size=9999) * 0.1, RATE)
    changed = load_corpus("manifest", tmp_path, label_scale=(1, 7))
    with pytest.raises(ValueError, match="(?s)'u1' lasts 0.625 s, but .* the audio has changed"):
        transcribe(changed, "tiny/group", tmp_path / "t.parquet", models_dir=str(models))
    assert (tmp_path / "t.parquet").read_bytes() == content and not (tmp_path / "t.parquet.parts").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output": "t.csv"}, r"output is .*t.csv', but must be a file whose name ends in .parquet"),
        ({"batch_seconds": 0}, "batch_seconds is 0, but must be more than 0"),
        ({"precision": "int8"}, "precision is 'int8', but must be one of float32, bfloat16, float16"),
        ({"revision": "main"}, "revision is 'main', but .*tiny/group' is a folder"),
    ],
)
def test_wrong_settings_are_refused(models, corpus, tmp_path, arguments, message):
    settings = {"output": "t.parquet", "models_dir": str(models)} | arguments
    settings["output"] = tmp_path / settings["output"]
    with pytest.raises(ValueError, match=message):
        transcribe(corpus, "tiny/group", **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_recognise_speech_is_refused(tmp_path):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    HubertModel(HubertConfig(**small, conv_dim=(8,) * 7, num_conv_pos_embedding_groups=2)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="lacks 2 weights, such as 'lm_head.bias'"):
        load_recognizer(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="is a bert model, which is not one for speech recognition"):
        load_recognizer(str(tmp_path))
    with pytest.raises(OSError, match="no/such"):
        load_recognizer("no/such")


@pytest.mark.slow
def test_a_model_of_the_hub_is_known_by_its_commit(python, models, tmp_path):
    commit, cache = "0123456789abcdef0123456789abcdef01234567", tmp_path / "models--tiny--layer"
    shutil.copytree(models / "tiny/layer", cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text(commit)
    program = "from cmkd.transcription.recognizers import load_recognizer as load; print(load('tiny/layer').revision)"
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    result = subprocess.run(
        [python.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        timeout=900,
    )
    assert result.stdout.strip() == commit


KILLED = """
import os, random, signal, sys, threading
from pathlib import Path
from cmkd.corpora import load_corpus
from cmkd.transcription import transcribe

folder, models, output = sys.argv[1:]
parts, log = Path(output + ".parts"), Path(output + ".log")
corpus = load_corpus("manifest", folder, label_scale=(1, 7))
read, merge = transcribe._read, transcribe._merge

def logged(rows, utterance, rate):
    with log.open("a") as file:
        file.write(utterance.id + "\\n")
    return read(rows, utterance, rate)

def die(place, seconds):
    # Some time after it begins to read for the n-th time, of which it reads no more than one other, or to merge.
    reads = 0

    def kill():
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()

    def read_dying(*arguments):
        nonlocal reads
        reads += 1
        if reads == place:
            kill()
        if reads == place + 2:
            threading.Event().wait(600)
        return logged(*arguments)

    def merge_dying(*arguments):
        kill()
        merge(*arguments)
        threading.Event().wait(600)

    if place == "merge":
        transcribe._merge = merge_dying
    else:
        transcribe._read = read_dying

transcribe._read = logged
generator = random.Random(0)
for place in [*(generator.choice((1, 2)) for _ in range(3)), "merge", None]:
    seconds = generator.uniform(0, 0.05)
    child = os.fork()
    if not child:
        if place is not None:
            die(place, seconds)
        transcribe.transcribe(corpus, "tiny/whisper", output, models_dir=models, batch_seconds=4)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status == (0 if place is None else signal.SIGKILL), (place, status)
    if place is not None:
        done = 6 if Path(output).exists() else len(list(parts.glob("[0-9a-f]*.parquet")))  # all parts are merged
        with log.open("a") as file:
            file.write(f"killed {done}\\n")
"""


@pytest.mark.slow
def test_killed_at_any_time_nothing_is_lost_or_done_twice(python, models, corpus, folder, tmp_path):
    output = tmp_path / "t.parquet"
    result = python.run(KILLED, str(folder), str(models), str(output))
    assert result.returncode == 0, result.stderr
    transcribe(corpus, "tiny/whisper", tmp_path / "whole.parquet", models_dir=str(models), batch_seconds=4)
    found, expected = rows_of(output), rows_of(tmp_path / "whole.parquet")
    assert len(found) == 12 and found.keys() == expected.keys()
    for identifier, row in expected.items():
        for column, value in row.items():  # numbers differ in rounding: this process may have more threads
            wanted = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            assert found[identifier][column] == wanted
    assert not (tmp_path / "t.parquet.parts").exists()
    # A batch has two utterances. What is read again was in the batch that a kill interrupted, and in no other.
    begun: list[list[str]] = [[]]
    for line in Path(f"{output}.log").read_text().splitlines():
        if line.startswith("killed"):
            kept = 2 * int(line.split()[1]) - sum(len(run) for run in begun[:-1])  # of this run
            assert 0 <= len(begun[-1]) - kept <= 2
            begun[-1] = begun[-1][:kept]
            begun.append([])
        else:
            begun[-1].append(line)
    assert sorted(identifier for run in begun for identifier in run) == sorted(f"u{index}" for index in range(12))


@pytest.mark.slow
def test_two_processes_take_a_share_each(python, models, corpus, folder, tmp_path):
    output = tmp_path / "t.parquet"
    command = ["transcribe", "manifest", str(folder), "--corpus.label_scale", "1", "7", "--model", "tiny/layer"]
    command += ["--models_dir", str(models), "--output", str(output), "--batch_seconds", "3"]
    said = output_of(start_processes(python, 2, module("cmkd"), *command))
    assert "12 utterances" in said and "by 2 processes" in said
    assert said.count("transcribed in") == 1
    transcribe(corpus, "tiny/layer", tmp_path / "whole.parquet", models_dir=str(models))
    found, expected = rows_of(output), rows_of(tmp_path / "whole.parquet")
    assert found.keys() == expected.keys()
    for identifier, row in found.items():
        assert row["text"] == expected[identifier]["text"]


def test_a_second_run_on_the_same_output_is_refused(models, corpus, tmp_path):
    import fcntl

    parts = tmp_path / "t.parquet.parts"
    parts.mkdir()
    with (parts / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="being written by another run"):
            transcribe(corpus, "tiny/layer", tmp_path / "t.parquet", models_dir=str(models))
    assert transcribe(corpus, "tiny/layer", tmp_path / "t.parquet", models_dir=str(models)).utterances == 12


@pytest.mark.slow
def test_the_real_whisper_hears_people(shared_dir):
    """Two clips of read speech: as the stock pipeline hears them, together, and one long after the other."""
    models = shared_dir / "models"
    clips = sorted((shared_dir / "data/librispeech").glob("*.flac"), key=lambda path: path.stat().st_size)[:2]
    recognizer = load_recognizer("openai/whisper-tiny.en", models_dir=str(models))
    waveforms = [read_audio(path) for path in clips]
    heard = recognizer.recognize([*waveforms, np.zeros(RATE, np.float32)])
    assert heard[2].text == ""
    noise = np.random.default_rng(0).normal(size=3 * RATE).astype(np.float32) * 0.05
    assert recognizer.recognize([noise])[0].text == ""
    stock = pipeline("automatic-speech-recognition", model=recognizer.network, tokenizer=recognizer.tokenizer,
                     feature_extractor=recognizer.feature_extractor)  # fmt: skip
    for waveform, hypothesis in zip(waveforms, heard, strict=False):
        assert hypothesis.text == stock({"raw": waveform, "sampling_rate": RATE})["text"].strip()
        assert len(hypothesis.text.split()) > 3 and -1 < hypothesis.average_log_probability < 0
        assert hypothesis.no_speech_probability < 0.2
    pause = np.zeros(int(31 * RATE - len(waveforms[0])), np.float32)  # over the first 30 s
    long = recognizer.recognize([np.concatenate([waveforms[0], pause, waveforms[1]])])
    assert long[0].text.split()[:3] == heard[0].text.split()[:3]
    assert long[0].text.split()[-2:] == heard[1].text.split()[-2:]
