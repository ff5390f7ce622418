"""`cmkd predict --engine ray` on a cluster of two nodes on this machine, of which one is killed in the middle."""

import importlib.util
import os
from pathlib import Path

import pytest
from predictions import ROOT, rows, run, save_student, write

from cmkd.predict import pieces, plan
from cmkd.predict.store import Store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray, which takes long to import"),
]


@pytest.fixture(scope="module")
def cluster():
    """A head node, where the driver is; a node that is killed is given up when it has not answered for five seconds."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_raylet_start_wait_time_s", "300")
        patch.setenv("RAY_health_check_period_ms", "1000")
        memory = {"object_store_memory": 150 * 2**20, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **memory})
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def other(cluster):
    """A second node."""
    node = cluster.add_node(num_cpus=2, object_store_memory=150 * 2**20)
    yield node
    if node in cluster.worker_nodes:
        cluster.remove_node(node)


@pytest.mark.parametrize("is_killed", [False, True])
def test_rows_are_those_of_one_process_though_a_node_is_killed(is_killed, cluster, other, tmp_path, monkeypatch):
    """With one model on each node."""
    model = save_student(tmp_path / "model")
    for number in range(12):
        write(tmp_path / "in" / f"{number:02d}.flac", 1 + (number * 7 % 5), number, channels=1 + number % 2)
    (tmp_path / "in" / "03.flac").write_bytes(b"broken")
    write(tmp_path / "in" / "99.wav", 60, 99)
    monkeypatch.setattr(pieces, "PIECE_SECONDS", 5.0)  # in this process; workers take it from what they are sent
    monkeypatch.setattr(plan, "CHUNK_SOURCES", 2)
    options = {"window": 1, "timeline": True, "embeddings": True}
    run([tmp_path / "in"], model, tmp_path / "plain", **options)
    stored = []
    write_piece = Store.write_piece

    def write_and_kill(self, *arguments):
        write_piece(self, *arguments)
        stored.append(arguments)
        if is_killed and len(stored) == 1:
            cluster.remove_node(other, allow_graceful=False)

    monkeypatch.setattr(Store, "write_piece", write_and_kill)  # which is called in this process alone
    done = run([tmp_path / "in"], model, tmp_path / "ray", engine="ray", actor_cpus=2, **options)
    assert len(stored) >= 12
    for table in ("scores", "timeline", "errors"):
        assert rows(tmp_path / "ray", table) == rows(tmp_path / "plain", table) != []
    assert (done.rows, done.errors) == (12, 1)
    assert not list(Path(tmp_path / "ray/journal/pieces").glob("*/*"))


def test_a_model_that_fits_on_no_machine_is_refused(cluster, tmp_path):
    """Ray would wait for a larger one to join."""
    model, sound = save_student(tmp_path / "model"), write(tmp_path / "a.wav", 1)
    with pytest.raises(ValueError, match="actor_cpus is 3, but the machines of the cluster have 2 CPUs at most"):
        run([sound], model, tmp_path / "out", engine="ray", actor_cpus=3)


def test_without_ray_it_is_said_how_to_install_it(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"The package ray, which runs --engine ray, is missing: pip install ray"):
        run([write(tmp_path / "a.wav", 1)], save_student(tmp_path / "model"), tmp_path / "out", engine="ray")
