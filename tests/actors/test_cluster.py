"""The session with real signals, the placement table, and the files that describe a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.placement import lacking, table, too_large, totals
from cluster.session import Stopped, _signals, nodes, resources

ROOT = Path(__file__).parents[2]
ROWS = [("generator", 2, 1.0, 1.0), ("scorer", 1, 0.5, 0.0), ("learner", 8, 4.0, 1.0)]


def test_totals_and_what_is_lacking() -> None:
    assert totals(ROWS) == {"CPU": 34.5, "GPU": 10.0}
    assert lacking({"CPU": 64.0, "GPU": 8.0}, totals(ROWS)) == ["GPU: wanted 10, the cluster has 8"]
    assert lacking({"CPU": 34.5, "GPU": 10.0}, totals(ROWS)) == []
    assert lacking({}, {"CPU": 0.0}) == []
    # ten tenths are one
    assert lacking({"CPU": 1.0}, totals([("scorer", 10, 0.1, 0.0)])) == []


def test_the_table_shows_every_role_and_both_sums() -> None:
    assert table(ROWS, {"CPU": 64.0}) == [
        "             count   CPU  GPU",
        "generator        2     2    2",
        "scorer           1   0.5    0",
        "learner          8    32    8",
        "wanted              34.5   10",
        "cluster has           64    0",
    ]


def test_an_actor_fits_on_one_node_or_nowhere() -> None:
    four = [{"CPU": 16.0, "GPU": 1.0}] * 4
    rows = [("generator", 1, 8.0, 4.0), ("scorer", 2, 16.0, 0.5), ("learner", 4, 1.0, 1.0)]
    assert lacking({"CPU": 64.0, "GPU": 16.0}, totals(rows)) == []
    assert too_large(four, rows) == [
        "generator: each wants 8 CPU and 4 GPU on one node, the largest of 4 has 16 CPU and 1 GPU"
    ]
    assert too_large([*four, {"CPU": 8.0, "GPU": 4.0}], rows) == []
    # CPUs of one node and GPUs of another do not make a node
    assert too_large([{"CPU": 64.0}, {"CPU": 4.0, "GPU": 4.0}], rows[:1]) == [
        "generator: each wants 8 CPU and 4 GPU on one node, the largest of 2 has 4 CPU and 4 GPU"
    ]
    assert too_large([{"CPU": 1.0}], [("scorer", 10, 0.1, 0.0), ("reference", 0, 9.0, 9.0)]) == []
    assert too_large([], rows[1:2]) == [
        "scorer: each wants 16 CPU and 0.5 GPU on one node, the largest of 0 has 0 CPU and 0 GPU"
    ]


@pytest.mark.usefixtures("cluster")
def test_nodes_are_those_of_the_cluster() -> None:
    (node,) = nodes()
    assert node["CPU"] == resources()["CPU"] == 2.0
    assert too_large(nodes(), [("learner", 1, 3.0, 0.0)]) != []


def test_a_signal_is_raised_at_once_and_the_handlers_of_before_come_back() -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    came: list[int] = []
    with pytest.raises(Stopped) as stopped, _signals(came):
        os.kill(os.getpid(), signal.SIGINT)
    assert came == [signal.SIGINT]
    assert stopped.value.code == 130
    assert str(stopped.value) == "stopped by SIGINT"
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_a_thread_no_handler_is_installed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[Any] = []

    def work() -> None:
        with _signals([]):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_stopped_job_closes_what_it_opened_and_says_how_it_ended(tmp_path: Path) -> None:
    """A driver of its own, waiting for an actor that never answers, gets SIGTERM as `ray job stop` sends it."""
    script = tmp_path / "driver.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, threading, time
            import ray
            from cluster.session import session

            with session(num_cpus=1, dashboard=False) as have:
                assert have["CPU"] == 1.0
                ref = ray.remote(lambda: time.sleep(600)).remote()
                threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
                try:
                    ray.get(ref)
                finally:
                    print("closed")
            """
        )
    )
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 143, done.stderr
    assert done.stdout == "closed\n"
    assert "stopped by SIGTERM: what is finished is recorded" in done.stderr


def test_an_address_without_a_cluster_is_said_plainly() -> None:
    code = "from cluster.session import start; start(address='127.0.0.1:1')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "no Ray cluster answers at 127.0.0.1:1" in done.stderr


# --- files ------------------------------------------------------------------------------------------------------------


def documents(path: str) -> list[Any]:
    return list(yaml.safe_load_all((ROOT / "cluster" / path).read_text(encoding="utf-8")))


def test_the_runtime_environment_is_one_that_ray_accepts() -> None:
    from ray.runtime_env import RuntimeEnv

    (runtime_env,) = documents("runtime_env.yaml")
    assert runtime_env["working_dir"] == "."
    assert runtime_env["env_vars"]["PYTHONPATH"] == "platform"
    RuntimeEnv(**{**runtime_env, "working_dir": str(ROOT)})


def test_every_manifest_asks_for_an_image_the_shared_folder_and_keeps_work_off_the_head() -> None:
    (job,) = documents("kuberay/rayjob.yaml")
    claim, standing = documents("kuberay/raycluster.yaml")
    assert (job["kind"], standing["kind"], claim["kind"]) == ("RayJob", "RayCluster", "PersistentVolumeClaim")
    for spec in (job["spec"]["rayClusterSpec"], standing["spec"]):
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert spec["authOptions"] == {"mode": "token"}
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            (pod,) = group["template"]["spec"]["containers"]
            assert {"name": "runs", "mountPath": "/mnt/rhumbline"} in pod["volumeMounts"]
            volumes = {v["name"]: v for v in group["template"]["spec"]["volumes"]}
            assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
            assert {m["name"] for m in pod["volumeMounts"]} == set(volumes)
        # a job is judged by the nodes that are there when it starts, and GPUs that the autoscaler may add are not
        assert all(group["minReplicas"] >= 1 for group in spec["workerGroupSpecs"])
    words = job["spec"]["entrypoint"].split()
    assert (ROOT / words[1]).is_file()
    assert (ROOT / words[words.index("--recipe") + 1]).is_file()
    assert "--resume" in words  # so that a retry goes on
    inner = yaml.safe_load(job["spec"]["runtimeEnvYAML"])
    assert inner["env_vars"]["PYTHONPATH"] == "platform"
    assert inner["working_dir"].removeprefix("local://") in (ROOT / "cluster" / "Dockerfile").read_text(
        encoding="utf-8"
    )


def test_the_launcher_file_fits_rays_own_schema() -> None:
    import json

    import jsonschema
    import ray.autoscaler

    (launcher,) = documents("ray-cluster.yaml")
    schema = Path(next(iter(ray.autoscaler.__path__))) / "ray-schema.json"
    jsonschema.validate(launcher, json.loads(schema.read_text(encoding="utf-8")))
    assert launcher["head_node_type"] in launcher["available_node_types"]
    assert launcher["available_node_types"]["head"]["resources"] == {"CPU": 0}
