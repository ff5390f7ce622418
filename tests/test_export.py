"""Students in ONNX Runtime, against torch, the stock feature extractors and the pipeline that travels."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from small_models import ALL_CONFIGS, TEXT, student, whisper_extractor
from sounds import mp3
from transformers import AutoFeatureExtractor, BertModel, Wav2Vec2FeatureExtractor

onnx = pytest.importorskip("onnx", reason='needs the extra "export"')
onnxruntime = pytest.importorskip("onnxruntime", reason='needs the extra "export"')

from cmkd.commands import main  # noqa: E402
from cmkd.export.folder import FILES, REQUIREMENTS, export_folder  # noqa: E402
from cmkd.export.runtime import LogMel, OnnxStudent  # noqa: E402
from cmkd.export.smaller import with_half_weights, with_products  # noqa: E402
from cmkd.export.verify import BakedInError  # noqa: E402
from cmkd.identity import folder_digest  # noqa: E402
from configuration_cmkd import CMKDTeacherConfig  # noqa: E402
from modeling_cmkd import CMKDStudentModel, CMKDTeacherModel  # noqa: E402
from pipeline_cmkd import SpeechEmotionPipeline  # noqa: E402
from speech_encoder_cmkd import HubertSpeechEncoder  # noqa: E402

ROOT = Path(__file__).parents[1]

RATE = 16000
SECONDS = (0.1, 0.1337, 0.25, 0.4, 0.61, 0.99, 1.3, 2.02, 3.7, 5.5)


def extractor(name: str):
    """As published beside each encoder: CPC and Moonshine take the waveform as it is."""
    if name == "whisper":
        return whisper_extractor()
    return Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=name not in ("cpc", "moonshine"))


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).normal(size=round(seconds * RATE))).astype(np.float32)


def by_torch(model, name: str, wave: np.ndarray):
    """Scores and embedding from the stock extractor and the model, one utterance at a time."""
    features = extractor(name)(wave, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
    with torch.no_grad():
        output = model(**features)
    return output.logits[0].numpy(), output.embeddings[0].numpy()


def save(model, name: str, folder: Path):
    model.save_pretrained(folder)
    extractor(name).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """By the name of an encoder: its model, and the folder that `export_folder` wrote."""
    made: dict[str, tuple] = {}

    def make(name: str):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            model = save(student(ALL_CONFIGS[name], label_scale=(1, 7)), name, folder / "student")
            export_folder(str(folder / "student"), folder / "onnx", tuple(FILES) if name == "hubert" else ())
            made[name] = model, folder / "onnx"
        return made[name]

    return make


def padded(waves: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """A batch whose padding is loud noise."""
    lengths = np.array([len(wave) for wave in waves])
    batch = np.random.default_rng(9).normal(size=(len(waves), lengths.max() + 333)).astype(np.float32)
    for row, wave in zip(batch, waves, strict=True):
        row[: len(wave)] = wave
    return batch, lengths


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_CONFIGS)
def test_ten_lengths_alone_and_in_padded_batches_score_as_in_torch(name, exported):
    model, folder = exported(name)
    found = OnnxStudent(folder / "model.onnx")
    waves = [noise(seconds, seed) for seed, seconds in enumerate(SECONDS)]
    expected = [np.stack(values) for values in zip(*(by_torch(model, name, wave) for wave in waves), strict=True)]
    assert expected[0].std(0).max() > 3e-4  # the utterances differ, so that equality says something
    alone = [found.run(wave[None], np.array([len(wave)])) for wave in waves]
    for kind in (0, 1):
        np.testing.assert_allclose(np.concatenate([one[kind] for one in alone]), expected[kind], atol=1e-5, rtol=0)
    order = [3, 0, 9, 1, 7, 2, 8, 4, 6, 5]
    for rows in (list(range(10)), order, order[:3], order[7:]):
        for kind, values in enumerate(found.run(*padded([waves[row] for row in rows]))):
            np.testing.assert_allclose(values, expected[kind][rows], atol=1e-5, rtol=0)


@pytest.mark.parametrize("seconds", [0.1, 0.5, 1.23456, 29.98, 29.995, 30.0])
def test_the_log_mel_of_whisper_is_that_of_its_extractor(seconds):
    mel = LogMel(num_mel_bins=80, sampling_rate=RATE, window_samples=400, hop_samples=160, maximum_samples=480000)
    wave = noise(seconds) * np.linspace(0, 1, round(seconds * RATE), dtype=np.float32) ** 3
    wave[-30:] = 0.9  # loudest at the end, where the frames beyond it hear it too
    stock = extractor("whisper")
    expected = stock._np_extract_fbank_features(np.pad(wave, (0, 480000 - len(wave)))[None], "cpu")[0]
    features = stock(wave, sampling_rate=RATE, return_tensors="np", return_attention_mask=True)
    found = mel(wave)
    assert found.shape == (80, features["attention_mask"].sum())
    np.testing.assert_allclose(found, expected[:, : found.shape[1]], atol=1e-6, rtol=0)
    np.testing.assert_allclose(found, features["input_features"][0][:, : found.shape[1]], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["hubert", "whisper"])
def test_the_answer_for_files_is_that_of_the_pipeline(name, exported, tmp_path):
    model, folder = exported(name)
    score = SpeechEmotionPipeline(model=model, feature_extractor=extractor(name))
    found = OnnxStudent(folder / "model.onnx", batch_size=3)
    both = np.stack([noise(7.3), noise(7.3, 1)], axis=1)
    both[: 2 * RATE, 0] = 0
    soundfile.write(tmp_path / "both.wav", both, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "other_rate.flac", noise(3)[:, None], 22050)
    (tmp_path / "speech.mp3").write_bytes(mp3(noise(2), RATE))
    calls = [
        ("both.wav", {}),
        ("both.wav", {"channel": "each", "window": 2.0, "hop": 1.5, "return_embeddings": True}),
        ("both.wav", {"channel": 0, "window": 1.0}),
        ("other_rate.flac", {}),
        ("speech.mp3", {"window": 0.7}),
    ]
    for file, arguments in calls:
        answer, expected = found(tmp_path / file, **arguments), score(tmp_path / file, **arguments)
        channels = expected.get("channels", [expected])
        of_found = answer.get("channels", [answer])
        assert answer.keys() == expected.keys() and answer["duration"] == expected["duration"]
        for one, other in zip(of_found, channels, strict=True):
            for window, wanted in zip([one, *one["timeline"]], [other, *other["timeline"]], strict=True):
                assert window.keys() == wanted.keys()
                assert window["scores"] == pytest.approx(wanted["scores"], abs=1e-5)
                assert window["ratings"] == pytest.approx(wanted["ratings"], abs=6e-5)
                assert window["silent"] == wanted["silent"]
                assert window.get("embedding", []) == pytest.approx(wanted.get("embedding", []), abs=1e-5)
                assert [window.get(edge) for edge in ("start", "end")] == [
                    wanted.get(edge) for edge in ("start", "end")
                ]
    array = {"array": noise(1.1), "sampling_rate": RATE}
    answers = found([array, tmp_path / "speech.mp3"])
    assert answers[0]["scores"] == pytest.approx(score(array)["scores"], abs=1e-5)
    with pytest.raises(ValueError, match=r"inputs\[1\]: audio of 0.050 s is too short"):
        found([array, {"array": noise(0.05), "sampling_rate": RATE}])
    if name == "whisper":
        with pytest.raises(ValueError, match="window=31: .* at most 30, which is all that the encoder takes"):
            found(array, window=31)


def test_a_graph_says_what_it_is(exported):
    _, folder = exported("hubert")
    found = OnnxStudent(folder / "model.onnx")
    wanted = {
        "cmkd_format": 1,
        "dimensions": ["activation", "valence", "dominance"],
        "rated_dimensions": ["activation", "valence", "dominance"],
        "label_scale": [1.0, 7.0],
        "embedding_size": 128,
        "encoder": "hubert",
        "sampling_rate": 16000,
        "minimum_samples": 1600,
        "maximum_samples": None,
        "log_mel": None,
        "precision": "fp32",
        "model": "",
        "card": None,
        "licence": None,
    }
    assert {key: found.metadata[key] for key in wanted} == wanted
    assert found.metadata["versions"].keys() == {"cmkd", "torch", "transformers", "onnx"}
    assert re.fullmatch("sha256-[0-9a-f]{12}/fp32", found.identity)
    assert OnnxStudent(folder / "model_int8.onnx").identity == found.identity.replace("fp32", "int8")
    assert found.to_label_scale(0.5) == 4.0
    shapes = {value.name: value.shape for value in (*found.session.get_inputs(), *found.session.get_outputs())}
    assert shapes == {
        "waveform": ["batch", "samples"],
        "lengths": ["batch"],
        "scores": ["batch", 3],
        "embeddings": ["batch", 128],
    }
    whisper = OnnxStudent(exported("whisper")[1] / "model.onnx")
    assert (whisper.minimum_samples, whisper.maximum_samples) == (1600, 480000)
    assert whisper.session.get_inputs()[0].shape == ["batch", 80, "frames"]


def test_the_card_and_its_licence_are_in_the_graph(tmp_path):
    save(student(ALL_CONFIGS["hubert"], rated_dimensions=["valence"]), "hubert", tmp_path / "student")
    card = "---\nlicense: cc-by-4.0\n---\n# A student\n\nOf people who agreed.\n"
    (tmp_path / "student/README.md").write_text(card)
    export_folder(str(tmp_path / "student"), tmp_path / "onnx")
    found = OnnxStudent(tmp_path / "onnx/model.onnx")
    assert (found.metadata["licence"], found.rated_dimensions) == ("cc-by-4.0", ("valence",))
    assert "Of people who agreed." in found.metadata["card"]
    scores, embeddings = found.run(noise(1)[None], np.array([RATE]))
    assert np.isnan(scores).tolist() == [[True, False, True]] and np.isfinite(embeddings).all()
    assert list(found({"array": noise(1), "sampling_rate": RATE})["scores"]) == ["valence"]


def test_a_graph_gives_nothing_for_lengths_that_are_not_there(exported):
    """In other programs than ours, which check nothing."""
    session = OnnxStudent(exported("hubert")[1] / "model.onnx").session
    waves = np.stack([noise(0.5)] * 5)
    lengths = np.array([399, 400, 8000, 8001, -1])
    scores, embeddings = session.run(None, {"waveform": waves, "lengths": lengths})
    for values in (scores, embeddings):
        assert np.isnan(values).all(1).tolist() == [True, False, False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("waves", "lengths", "message"),
    [
        (
            np.zeros((2, 4000), np.float32),
            [4000, 1599],
            r"lengths\[1\]=1599: must be from 1600 to 4000 samples at 16000",
        ),
        (np.zeros((2, 4000), np.float32), [4001, 1600], r"lengths\[0\]=4001: must be from 1600 to 4000"),
        (np.zeros((1, 4000), np.int16), [4000], "waves is int16 .* Divide 16-bit samples by 32768"),
        (np.zeros((1, 4000), np.float32), [4000.0], "lengths float64: must be"),
        (np.zeros(4000, np.float32), [4000], r"waves has shape \(4000,\) .* must be \(batch, samples\)"),
        (np.zeros((0, 4000), np.float32), np.zeros(0, int), "at least one utterance"),
        (np.full((1, 4000), np.nan, np.float32), [4000], r"waves\[0\] has samples that are NaN or infinite"),
    ],
)
def test_what_cannot_be_scored_is_refused(waves, lengths, message, exported):
    found = OnnxStudent(exported("hubert")[1] / "model.onnx")
    with pytest.raises(ValueError, match=message):
        found.run(waves, np.asarray(lengths))


def test_whisper_is_refused_more_than_30_seconds(exported):
    found = OnnxStudent(exported("whisper")[1] / "model.onnx")
    with pytest.raises(ValueError, match="lengths.0.=480001: must be from 1600 to 480000"):
        found.run(np.zeros((1, 500000), np.float32), np.array([480001]))


def test_files_that_are_no_student_are_refused(exported, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none.onnx'"):
        OnnxStudent(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("this is no graph")
    with pytest.raises(ValueError, match=r"text.onnx cannot be opened by ONNX Runtime"):
        OnnxStudent(tmp_path / "text.onnx")
    model = onnx.load(exported("hubert")[1] / "model.onnx")
    entry = next(entry for entry in model.metadata_props if entry.key == "cmkd_format")
    entry.value = "2"
    onnx.save(model, tmp_path / "newer.onnx")
    with pytest.raises(ValueError, match="newer.onnx says that its cmkd_format is 2, but this release of cmkd reads 1"):
        OnnxStudent(tmp_path / "newer.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="other.onnx has no metadata of CMKD"):
        OnnxStudent(tmp_path / "other.onnx")
    for arguments, message in (({"num_threads": 0}, "num_threads=0"), ({"batch_size": 0}, "batch_size=0")):
        with pytest.raises(ValueError, match=message):
            OnnxStudent(exported("hubert")[1] / "model.onnx", **arguments)


def by_size(self, hidden, keep):
    """Keeps the number of frames as Python sees it: the graph fails at any other."""
    return torch.linspace(0, 1, int(hidden.shape[1]))[None, :, None].expand_as(hidden)


def by_value(self, hidden, keep):
    """Keeps a value as Python sees it: the graph runs at any length, and is wrong without a word."""
    return torch.linspace(-1, 1, hidden.shape[2]).expand_as(hidden) * keep.float().sum().item() / 100


@pytest.mark.parametrize(("positions", "message"), [(by_size, "The graph fails"), (by_value, "The graph is off by")])
def test_an_export_that_bakes_in_a_length_is_refused(positions, message, tmp_path, monkeypatch):
    save(student(ALL_CONFIGS["hubert"]), "hubert", tmp_path / "student")
    monkeypatch.setattr(HubertSpeechEncoder, "positions", positions)
    with pytest.raises(BakedInError, match=message) as error:
        export_folder(str(tmp_path / "student"), tmp_path / "onnx")
    assert "one utterance of" in str(error.value) and "samples" in str(error.value)
    assert "in doubt about" in str(error.value) and "test_export.py:" in str(error.value)
    assert not (tmp_path / "onnx").exists() or not list((tmp_path / "onnx").iterdir())


def test_smaller_graphs_are_smaller_and_near(exported):
    model, folder = exported("hubert")
    waves = [noise(seconds, seed) for seed, seconds in enumerate(SECONDS)]
    expected = np.stack([by_torch(model, "hubert", wave)[0] for wave in waves])
    sizes = {name: (folder / file).stat().st_size for name, file in FILES.items()}
    assert sizes["fp16"] < 0.6 * sizes["fp32"] and sizes["int8"] < sizes["fp32"]
    cpuinfo = Path("/proc/cpuinfo")
    saturates = cpuinfo.exists() and "vnni" not in cpuinfo.read_text()  # see docs/export.md
    for name, tolerance in (("fp16", 1e-3), ("int8", 0.01), ("int8-activations", 0.1 if saturates else 0.03)):
        found = OnnxStudent(folder / FILES[name])
        assert found.metadata["precision"] == name
        alone = np.concatenate([found.run(wave[None], np.array([len(wave)]))[0] for wave in waves])
        batch, reverse = found.run(*padded(waves))[0], found.run(*padded(waves[::-1]))[0][::-1]
        assert 1e-7 < np.abs(alone - expected).max() < tolerance, name
        np.testing.assert_allclose(batch, alone, atol=1e-5, rtol=0)
        np.testing.assert_allclose(reverse, alone, atol=1e-5, rtol=0)


def test_int8_and_fp16_are_what_their_files_hold(exported):
    folder = exported("hubert")[1]
    kinds = {name: onnx.load(folder / file).graph for name, file in FILES.items()}
    operations = {name: {node.op_type for node in graph.node} for name, graph in kinds.items()}
    assert "MatMulNBits" in operations["int8"] and "MatMulInteger" in operations["int8-activations"]
    assert not operations["fp32"] & {"MatMulNBits", "MatMulInteger"}
    large = [tensor for tensor in kinds["fp16"].initializer if np.prod(tensor.dims) >= 1024]
    assert large and {tensor.data_type for tensor in large} == {onnx.TensorProto.FLOAT16}
    assert kinds["int8-activations"].input[0].type.tensor_type.shape.dim[0].dim_value == 1
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in kinds["int8-activations"].initializer]
    columns = [np.abs(weight.astype(int)).max(0) for weight in weights if weight.dtype == np.int8 and weight.ndim == 2]
    assert columns and all((largest == 127).all() for largest in columns)  # each has a scale of its own, and 8 bits


@pytest.mark.parametrize(
    ("machine", "flags", "file", "warns"),
    [
        ("x86_64", "fpu avx2 fma avx512f", "model_int8_activations.onnx", True),
        ("x86_64", "fpu avx2 fma avx512f avx512_vnni", "model_int8_activations.onnx", False),
        ("x86_64", "fpu avx2 fma avx_vnni", "model_int8_activations.onnx", False),
        ("x86_64", None, "model_int8_activations.onnx", False),
        ("aarch64", "fp asimd asimddp", "model_int8_activations.onnx", False),
        ("x86_64", "fpu avx2 fma", "model_int8.onnx", False),
        ("x86_64", "fpu avx2 fma", "model.onnx", False),
    ],
)
def test_a_processor_on_which_whole_numbers_saturate_is_told(
    exported, tmp_path, monkeypatch, caplog, machine, flags, file, warns
):
    graph = exported("hubert")[1] / file
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: spectre_v1\n")
    monkeypatch.setattr("cmkd.export.runtime.CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: machine)
    caplog.clear()
    OnnxStudent(graph)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warns
    assert ("this processor has no VNNI" in caplog.text and file in caplog.text) == warns


def test_convolutions_are_the_same_as_products(exported):
    model = onnx.load(exported("hubert")[1] / "model.onnx")
    products = with_products(model)
    count = {
        name: [node.op_type for node in one.graph.node].count("Conv") for name, one in (("a", model), ("b", products))
    }
    assert count == {"a": 8, "b": 2}  # the first of seven, and the one for positions, stay
    sessions = [onnxruntime.InferenceSession(one.SerializeToString()) for one in (model, products)]
    for seconds in (0.1, 0.77, 3.001):
        wave = noise(seconds)
        first, second = (one.run(None, {"waveform": wave[None], "lengths": np.array([len(wave)])}) for one in sessions)
        for found, expected in zip(second, first, strict=True):
            np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)


def test_a_weight_beyond_fp16_is_refused(exported):
    model = onnx.load(exported("hubert")[1] / "model.onnx")
    tensor = next(tensor for tensor in model.graph.initializer if np.prod(tensor.dims) >= 1024)
    tensor.CopyFrom(onnx.numpy_helper.from_array(1e5 + onnx.numpy_helper.to_array(tensor), tensor.name))
    with pytest.raises(ValueError, match="holds 1000.., but fp16 ends at 65504"):
        with_half_weights(model)


@pytest.mark.slow
def test_a_weighted_layer_sum_attention_and_a_teacher_that_hears_are_exported(tmp_path):
    summed = student(ALL_CONFIGS["hubert-stable"], use_weighted_layer_sum=True)
    teacher = CMKDTeacherModel(CMKDTeacherConfig(speech_config=ALL_CONFIGS["wav2vec2"])).eval()
    attentive = student(ALL_CONFIGS["hubert"], summarizer="attention")
    listening = student(ALL_CONFIGS["moonshine"], word_pieces=["▁a", "b", "c"], use_weighted_layer_sum=True)
    models = {"summed": summed, "attentive": attentive, "teacher": teacher, "listening": listening}
    for name, model in models.items():
        save(model, "hubert", tmp_path / name)
        export_folder(str(tmp_path / name), tmp_path / f"{name}-onnx")
        wave = noise(1.7)
        waves = np.stack([wave, np.pad(wave[:9000], (0, len(wave) - 9000), constant_values=0.5)])
        scores, _ = OnnxStudent(tmp_path / f"{name}-onnx/model.onnx").run(waves, np.array([len(wave), 9000]))
        for row, heard in enumerate((wave, wave[:9000])):
            np.testing.assert_allclose(scores[row], by_torch(model, "hubert", heard)[0], atol=1e-5, rtol=0)


def test_what_is_no_student_is_not_exported(tmp_path, capsys):
    config = CMKDTeacherConfig(speech_config=ALL_CONFIGS["hubert"], text_config=TEXT)
    save(CMKDTeacherModel(config), "hubert", tmp_path / "teacher")
    BertModel(TEXT).save_pretrained(tmp_path / "bert")
    save(student(ALL_CONFIGS["hubert"]), "whisper", tmp_path / "extractor")
    save(student(ALL_CONFIGS["whisper"]), "whisper", tmp_path / "whisper")
    cases = [
        (["teacher"], "is a teacher that reads a transcript"),
        (["bert"], "is a 'bert' model: only students and teachers of CMKD are exported"),
        (["extractor"], "is of a WhisperFeatureExtractor, which gives input_features, but the hubert encoder takes"),
        (["whisper", "--revision", "main"], "revision is 'main', but .* is a folder, which has no revisions"),
        (["whisper", "--onnxruntime_web", "x.tgz"], "--onnxruntime_web is for the page: add --page"),
    ]
    for (name, *options), message in cases:
        with pytest.raises(SystemExit) as error:
            main(["export", str(tmp_path / name), str(tmp_path / "onnx"), *options])
        assert re.search(message, str(error.value.code) + capsys.readouterr().err), message
    assert not (tmp_path / "onnx").exists() or not list((tmp_path / "onnx").iterdir())


@pytest.mark.slow
def test_of_a_run_its_student_is_exported(tmp_path, capsys):
    run = tmp_path / "run"
    save(student(ALL_CONFIGS["hubert"]), "hubert", run / "finetune")
    with pytest.raises(
        SystemExit, match=r"has no student/ with a config.json: it has finetune; .*, such as .*finetune"
    ):
        main(["export", str(run), str(tmp_path / "onnx")])
    with pytest.raises(SystemExit, match="neither a config.json nor a stage of a run is in it"):
        main(["export", str(tmp_path), str(tmp_path / "onnx")])
    with pytest.raises(ValueError, match="run has no config.json with a model_type: name the folder of a checkpoint"):
        export_folder(str(run), tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()
    model = save(student(ALL_CONFIGS["hubert"], label_mean=(0.3, 0.5, 0.7)), "hubert", run / "student")
    main(["export", str(run), str(tmp_path / "onnx")])
    graph = OnnxStudent(tmp_path / "onnx" / "model.onnx")
    assert graph.identity == f"{folder_digest(run / 'student')}/fp32"
    assert folder_digest(run / "student") != folder_digest(run / "finetune")
    wave = noise(1.3)
    scores, _ = graph.run(wave[None], np.array([len(wave)]))
    np.testing.assert_allclose(scores[0], by_torch(model, "hubert", wave)[0], atol=1e-5)


@pytest.mark.parametrize("words", [["export", "student", "folder"], ["push-space", "user/page", "user/student"]])
def test_without_onnx_it_is_said_how_to_install_it(words, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SystemExit) as error:
        main(words)
    assert re.search(
        "The package onnx, which .*, is missing: pip install onnx", str(error.value.code) + capsys.readouterr().err
    )


@pytest.mark.slow
def test_the_command_says_what_it_wrote(tmp_path, capsys):
    save(student(ALL_CONFIGS["hubert"]), "hubert", tmp_path / "student")
    main(["export", str(tmp_path / "student"), str(tmp_path / "onnx"), "--fp16"])
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(": .*", "", line) for line in lines] == [str(tmp_path / "onnx" / FILES[n]) for n in ("fp32", "fp16")]
    assert re.search(r": fp32, 1\.\d MB, at most \d\.\de-0[678] from torch$", lines[0])
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {
        "model.onnx",
        "model_fp16.onnx",
        "onnx_cmkd.py",
        "windows_cmkd.py",
        "audio_cmkd.py",
        "requirements.txt",
    }


ALONE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "cmkd", "scipy", "datasets"):
            raise ImportError(f"{name} is not to be imported here")
sys.meta_path.insert(0, Refuse())
import runpy
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("name", ["hubert", "whisper"])
def test_the_folder_scores_without_torch_and_without_this_package(name, exported, tmp_path):
    model, folder = exported(name)
    soundfile.write(tmp_path / "speech.wav", noise(1.5), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "short.wav", noise(0.05), RATE)
    files = [str(tmp_path / "speech.wav"), str(tmp_path / "short.wav"), str(tmp_path / "none.wav")]
    command = [sys.executable, "-I", "-c", ALONE, str(folder / "onnx_cmkd.py"), str(folder / "model.onnx"), *files]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=900)
    assert result.returncode == 3, result.stderr
    (line,) = result.stdout.splitlines()
    answer = json.loads(line)
    assert list(answer["scores"].values()) == pytest.approx(by_torch(model, name, noise(1.5))[0], abs=1e-5)
    assert "audio of 0.050 s is too short" in result.stderr and "there is no such file" in result.stderr


def test_its_requirements_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = [*project["dependencies"], *project["optional-dependencies"]["onnx"]]
    assert [line for line in REQUIREMENTS if line not in known] == []


@pytest.mark.slow
def test_whisper_with_real_weights_scores_real_speech_as_in_torch(shared_dir, tmp_path):
    torch.manual_seed(0)
    encoder = shared_dir / "models/openai/whisper-tiny.en"
    model = CMKDStudentModel.from_pretrained_encoder(str(encoder))
    model.save_pretrained(tmp_path / "student")
    AutoFeatureExtractor.from_pretrained(encoder).save_pretrained(tmp_path / "student")
    export_folder(str(tmp_path / "student"), tmp_path / "onnx")
    found = OnnxStudent(tmp_path / "onnx/model.onnx")
    score = SpeechEmotionPipeline(model=model, feature_extractor=AutoFeatureExtractor.from_pretrained(encoder))
    paths = sorted((shared_dir / "data/librispeech").glob("*.flac"))[:3]
    assert paths
    answers = [score(path, window=5.0) for path in paths]
    for path, expected in zip(paths, answers, strict=True):
        answer = found(path, window=5.0)
        for window, wanted in zip([answer, *answer["timeline"]], [expected, *expected["timeline"]], strict=True):
            assert window["scores"] == pytest.approx(wanted["scores"], abs=1e-5)
    assert np.std([list(answer["scores"].values()) for answer in answers], axis=0).max() > 3e-4
