"""Stored features: computed once for what they depend on, whole or not at all, and never silently wrong."""

import errno
import os
import shutil
import subprocess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch
from small_models import WAVEFORM_CONFIGS, student
from stored_features import Part, check, load, make_inputs, make_rows

from cmkd.features import store as feature_store
from cmkd.features.store import FrozenPart, Storage, StoredFeatures, audio_keys, cut_into_files, frozen_features


@pytest.fixture(autouse=True)
def one_utterance_a_file(monkeypatch):
    monkeypatch.setattr(feature_store, "CHUNK", 1)


def files(folder: Path) -> list[Path]:
    return sorted((folder / "cache").rglob("*.safetensors"))


def test_computed_once_for_what_they_depend_on(tmp_path):
    rows, part = make_rows(tmp_path), Part()
    check(load(tmp_path, part, rows=rows))
    check(load(tmp_path, part, rows=rows))
    assert part.calls == 5
    with torch.no_grad():
        part.trained.fill_(1.0)  # which no stored output depends on, as after a stage of training
    check(load(tmp_path, part, rows=rows))
    assert part.calls == 5
    fields = part.encoder.config.to_dict()
    with mock.patch.object(type(part.encoder.config), "to_dict", lambda config: dict(reversed(fields.items()))):
        check(load(tmp_path, part, rows=rows))  # as the configuration of a checkpoint that was loaded again
    assert part.calls == 5
    load(tmp_path, part, rows=rows, settings="b")
    assert part.calls == 10
    with torch.no_grad():
        part.scale.fill_(3.0)
    check(load(tmp_path, part, rows=rows), scale=3.0)
    assert part.calls == 15
    soundfile.write(tmp_path / "1.wav", np.zeros(500), 16000)
    load(tmp_path, part, rows=rows)
    assert part.calls == 16  # that utterance alone
    part.encoder.config.hidden_act = "relu"
    load(tmp_path, part, rows=rows)
    assert part.calls == 21


def test_a_trained_model_finds_what_was_stored_before_its_training(tmp_path):
    """A real student: neither its top layer nor how much each layer counts changes the output of the layers below."""
    model = student(WAVEFORM_CONFIGS["hubert"], num_trainable_layers=1, use_weighted_layer_sum=True)
    part = FrozenPart(model.speech_encoder, model.extract_speech_features, "a", "speech")
    rows, inputs = make_rows(tmp_path, 1), [torch.zeros(1000)]
    frozen_features(rows, inputs, audio_keys(rows), part, Storage(tmp_path / "cache"))
    (before,) = files(tmp_path)
    with torch.no_grad():
        model.speech_encoder.layer_weights += 1
        for parameter in model.speech_encoder.layers[-1].parameters():
            parameter += 1
    frozen_features(rows, inputs, audio_keys(rows), part, Storage(tmp_path / "cache"))
    assert files(tmp_path) == [before]
    with torch.no_grad():
        next(model.speech_encoder.layers[0].parameters()).add_(1)
    frozen_features(rows, inputs, audio_keys(rows), part, Storage(tmp_path / "cache"))
    assert len(files(tmp_path)) == 2


def test_folds_and_splits_share_what_they_have_in_common(tmp_path):
    rows, part = make_rows(tmp_path), Part()
    load(tmp_path, part, rows=rows.select(range(3)), inputs=make_inputs()[:3])
    stored = load(tmp_path, part, rows=rows.select(range(1, 5)), inputs=make_inputs()[1:])
    assert part.calls == 5
    for found, expected in zip(stored, make_inputs()[1:], strict=True):
        torch.testing.assert_close(found, 2 * expected[:, None].repeat(1, 2))


def test_files_are_of_about_the_size_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(feature_store, "CHUNK", 32)
    starts, digests = cut_into_files([f"utterance {index}" for index in range(10_000)])
    sizes = np.diff(starts)
    assert starts[0] == 0 and starts[-1] == 10_000 and len(digests) == len(set(digests)) == len(sizes)
    assert sizes.max() == 64 and 24 < sizes.mean() < 32
    assert cut_into_files([]) == ([0], [])
    one, other = cut_into_files(["a", "b"]), cut_into_files(["b", "a"])
    assert set(one[1]).isdisjoint(other[1])


def test_in_bfloat16_they_take_half_the_space(tmp_path):
    exact, rounded = load(tmp_path, Part()), load(tmp_path, Part(), dtype="bfloat16")
    for one, other in zip(exact, rounded, strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one.bfloat16().float(), other)
    values = {folder: sum(part.values[:].nbytes for part in opened(folder)) for folder in (exact, rounded)}
    assert values[exact] == 2 * values[rounded]


def opened(stored: StoredFeatures):
    """The arrays of a store's files."""
    from types import SimpleNamespace

    from safetensors import safe_open

    for path in stored.paths:
        yield SimpleNamespace(values=safe_open(path, "pt").get_tensor("values"))


def test_they_travel_to_workers_as_paths(tmp_path):
    stored = load(tmp_path, Part())
    sent = ForkingPickler.dumps(stored)
    assert len(sent) < 2000
    check(ForkingPickler.loads(sent))


def test_an_interrupted_job_goes_on_where_it_stopped(tmp_path):
    rows, part = make_rows(tmp_path), Part()

    def interrupted(inputs):
        if part.calls == 3:
            raise KeyboardInterrupt
        return part.run(inputs)

    with pytest.raises(KeyboardInterrupt):
        load(tmp_path, part, rows=rows, run=interrupted)
    assert len(files(tmp_path)) == 3
    check(load(tmp_path, part, rows=rows))
    assert part.calls == 3 + 2


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "empty", "not safetensors"])
def test_a_damaged_file_is_named_and_computed_anew(tmp_path, damage, capsys):
    rows, part = make_rows(tmp_path), Part()
    path = load(tmp_path, part, rows=rows).paths[1]
    content = bytearray(path.read_bytes())
    if damage == "flipped bit":
        content[-3] ^= 1
    path.write_bytes({"truncated": content[:-4], "empty": b"", "not safetensors": b"x" * 100}.get(damage, content))
    check(load(tmp_path, part, rows=rows))
    assert part.calls == 5 + 1
    assert f"{path} is damaged" in capsys.readouterr().out


def test_a_full_disk_is_said_and_what_is_stored_is_used(tmp_path, monkeypatch):
    rows, part = make_rows(tmp_path), Part()
    save_file = feature_store.save_file

    def full(tensors, path, metadata):
        if len(files(tmp_path)) == 2:
            Path(path).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(tensors, path, metadata)

    monkeypatch.setattr(feature_store, "save_file", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 100, 0))
    with pytest.raises(OSError, match=r"disk is full: .*safetensors .*--cache_limit_gb 0"):
        load(tmp_path, part, rows=rows)
    left = [path.suffix for path in (tmp_path / "cache").rglob("*.*")]
    assert sorted(left) == [".json", ".safetensors", ".safetensors"]  # nothing half-written lies about
    monkeypatch.setattr(feature_store, "save_file", save_file)
    check(load(tmp_path, part, rows=rows))
    assert part.calls == 5 + 1


def test_beyond_the_limit_nothing_is_stored_and_it_is_said(tmp_path, capsys):
    needed = sum(8 * len(values) for values in make_inputs())  # 120 bytes, as the longest utterance suggests too
    assert load(tmp_path, Part(), limit_gb=0.9 * needed / 1e9) is None
    assert files(tmp_path) == []
    assert "more than cache_limit_gb=1.08e-07" in capsys.readouterr().out
    check(load(tmp_path, Part(), limit_gb=1.1 * needed / 1e9))
    # What other entries take counts too.
    assert load(tmp_path, Part(), settings="b", limit_gb=2 * needed / 1e9) is None


class InputsWithTheirProcess(list):
    """Each has the number of the process that made it as one more value."""

    def __getitem__(self, index):
        return torch.cat([super().__getitem__(index), torch.tensor([float(os.getpid())])])


def test_other_processes_may_make_the_inputs(tmp_path):
    made_by = []
    part = Part()

    def run(values):
        made_by.append(int(values[0, -1]))
        return part.run(values[:, :-1])

    state = torch.get_rng_state()
    check(load(tmp_path, part, inputs=InputsWithTheirProcess(make_inputs()), run=run, workers=2))
    assert len(set(made_by)) == 2 and os.getpid() not in made_by
    assert torch.equal(torch.get_rng_state(), state)  # training draws what it draws without stored features


def test_an_error_names_the_utterance(tmp_path):
    def fail(inputs):
        raise ValueError("too short")

    with pytest.raises(ValueError, match="Utterance 'u0': too short"):
        load(tmp_path, Part(), run=fail)


def test_out_of_memory_names_the_utterance(tmp_path):
    def fail(inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MemoryError, match="utterance 'u0' of 0.1 s"):
        load(tmp_path, Part(), run=fail)


TWO_JOBS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
import stored_features
from cmkd.features import store as feature_store
feature_store.CHUNK = 1
rows = stored_features.Dataset.load_from_disk(sys.argv[3])
stored_features.check(stored_features.load(Path(sys.argv[1]), stored_features.Part(), rows=rows))
"""


@pytest.mark.slow
def test_several_jobs_may_fill_one_folder_at_once(python, tmp_path):
    make_rows(tmp_path).save_to_disk(str(tmp_path / "rows"))
    arguments = [str(tmp_path), str(Path(__file__).parent), str(tmp_path / "rows")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    jobs = [subprocess.Popen([python.executable, "-c", TWO_JOBS, *arguments], env=environment) for _ in range(3)]
    assert [job.wait(timeout=900) for job in jobs] == [0, 0, 0]
    assert len(files(tmp_path)) == 5
