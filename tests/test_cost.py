"""What a stage cost: all of its sessions, and the device's memory."""

import json
import os
import time
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState

import train_distill
from cmkd.runs.cost import SessionCost
from cmkd.runs.folder import begin_stage, complete_stage, record_session
from cmkd.runs.recipe import Recipe


def cost(seconds: float, memory: float, device: str = "cpu", of_device: float | None = None) -> dict:
    peaks = {"peak_memory_gb": memory, "peak_device_memory_gb": of_device}
    return {"seconds": seconds, **peaks, "processes": 1, "device": device}


def test_all_sessions_of_a_stage_are_summed_up(tmp_path):
    """Interrupted twice, and killed once before training began."""
    given = Recipe(corpus={"name": "toys"}, output_dir=str(tmp_path))
    for session in (cost(10.0, 1.5), cost(2.5, 3.0, "cuda", 5.5), None):
        begin_stage(tmp_path, "audio", given, "1.0")
        if session is not None:
            record_session(tmp_path, "audio", cost(1.0, 0.1))
            record_session(tmp_path, "audio", session)  # of the same session, later
    begin_stage(tmp_path, "audio", given, "1.0")
    complete_stage(tmp_path, "audio", cost(4.0, 2.0, "cuda", 4.5))
    state = json.loads((tmp_path / "audio/stage.json").read_text())
    assert state["schema_version"] == 1
    assert state["complete"] and len(state["sessions"]) == 3
    found = {name: state[name] for name in ("seconds", "peak_memory_gb", "peak_device_memory_gb", "device")}
    assert found == {"seconds": 16.5, "peak_memory_gb": 3.0, "peak_device_memory_gb": 5.5, "device": "cpu, cuda"}
    begin_stage(tmp_path, "audio", given.model_copy(update={"overwrite": True}), "1.0")
    assert json.loads((tmp_path / "audio/stage.json").read_text())["sessions"] == [None]


@pytest.mark.slow
def test_a_stage_that_is_interrupted_twice_has_three_sessions(recipe, tmp_path, monkeypatch):
    """Every session takes a tenth of a second longer than it would, on a clock of our own."""
    arguments = [str(recipe), "--output_dir", str(tmp_path), "--stages", "audio"]
    step = train_distill.CMKDTrainer.training_step
    clock = [0.0]
    monkeypatch.setattr("cmkd.runs.cost.time", SimpleNamespace(monotonic=lambda: clock[0]))
    for last in (4, 7, 99):  # steps, of which an epoch has 4

        def interrupted(self, *given, last=last, **options):
            clock[0] += 10
            if self.state.global_step == last:
                raise KeyboardInterrupt
            return step(self, *given, **options)

        monkeypatch.setattr(train_distill.CMKDTrainer, "training_step", interrupted)
        if last < 99:
            with pytest.raises(KeyboardInterrupt):
                train_distill.main(arguments)
        else:
            train_distill.main(arguments)
    state = json.loads((tmp_path / "audio/stage.json").read_text())
    found = json.loads((tmp_path / "results.json").read_text())["cost"]
    total = [session["seconds"] for session in state["sessions"]]
    assert len(total) == 3 and all(seconds > 0 for seconds in total) and sum(total) == clock[0]
    assert found["seconds"] == {"audio": clock[0]} and found["sessions"] == {"audio": 3}
    assert found["peak_memory_gb"] == max(session["peak_memory_gb"] for session in state["sessions"])


def test_the_memory_of_the_device_is_that_of_the_session(monkeypatch):
    """A stand-in for a GPU that had 9 GB in use before, and 3 GiB at most since."""
    peaks = [9 * 2**30]
    device = torch.device("cuda", 0)
    module = SimpleNamespace(
        reset_peak_memory_stats=lambda given: peaks.clear() if given == device else None,
        max_memory_allocated=lambda given: max(peaks),
    )
    monkeypatch.setattr(torch, "get_device_module", lambda given: module)
    monkeypatch.setattr(PartialState(), "device", device)
    session = SessionCost(print)
    peaks += [2**30, 3 * 2**30]
    found = session.so_far()
    assert (found["peak_device_memory_gb"], found["device"]) == (3.0, "cuda")


def test_a_process_without_a_gpu_has_no_memory_of_one():
    before = time.monotonic()
    session = SessionCost(print)
    buffer = os.urandom(50 * 2**20)
    found = session.so_far()
    assert found["peak_device_memory_gb"] is None and found["device"] == "cpu"
    assert found["peak_memory_gb"] * 2**30 > len(buffer)
    assert 0 <= found["seconds"] <= time.monotonic() - before + 0.1
