"""Jobs on real clusters, of several nodes on this machine, that lose nodes, processes and the driver."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stn_infer.api.run import run
from tests.api.cluster.test_model import write_model
from tests.support.paths import ROOT

TOTAL, ROWS = 5000, 64
OPTIONS = ("--preprocess", "0..1", "--shard-rows", str(ROWS))

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed; pip install 'ray[data]'"
)
needs_store = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("moto", "flask", "s3fs"))),
    reason="a server of S3's interface is not installed; pip install s3fs 'moto[server]'",
)

# Ends each process that opens an image of this name, as a library that crashes on it would.
CRASH = """
import os, sys
sys.addaudithook(lambda event, given: os._exit(1) if event == "open" and str(given[0]).endswith("crash.png") else None)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and images in which the test runs; one is damaged, and one ends whoever opens it."""
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    for i in range(TOTAL):
        path = tmp_path / "images" / f"{i:05}.png"
        Image.fromarray(random.integers(0, 256, (4, 5), np.uint8)).save(path)
    (tmp_path / "images" / "00777.png").write_bytes(b"damaged")
    write_model(tmp_path / "model.onnx")
    (tmp_path / "crash").mkdir()
    (tmp_path / "crash" / "sitecustomize.py").write_text(CRASH)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    paths = os.pathsep.join([more.pop("PYTHONPATH", ""), str(ROOT)]).strip(os.pathsep)
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **more}


def ledger(folder: Path) -> list[dict[str, str]]:
    found = []
    for path in sorted(folder.glob("ledger-*.csv")):
        with path.open(newline="") as file:
            found += list(csv.DictReader(file))
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
@needs_ray
def test_rows_are_those_of_one_machine_whatever_is_lost(place: Path) -> None:
    """A raylet is killed and a node is removed in the middle, and one image ends each process that opens it."""
    (place / "images" / "03000.png").rename(place / "images" / "03000-crash.png")
    arguments = [sys.executable, "-m", "tests.support.ray_nodes", "model.onnx", "images", "spread"]
    done = subprocess.run(
        arguments, env=environment(PYTHONPATH=f"{place}/crash"), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"ok": TOTAL - 1 - ROWS, "failed": 1 + ROWS, "total": TOTAL, "lost": ["killed", "removed"]}
    run("model.onnx", "images", "alone", preprocess="0..1", shard_rows=ROWS)
    alone, spread = contents(place / "alone"), contents(place / "spread")
    shard = 3000 // ROWS
    lost = {f"ledger-{shard:05}.csv", f"predictions-{shard:05}.csv"}
    assert alone.keys() == spread.keys()
    assert {name for name in alone if alone[name] != spread[name]} == lost
    names = [row["input"] for row in ledger(place / "spread")]
    assert names == [row["input"] for row in ledger(place / "alone")] and len(set(names)) == TOTAL
    errors = {row["error"] for row in ledger(place / "spread") if int(row["shard"]) == shard}
    assert len(errors) == 1 and "ended 3 times without an answer" in errors.pop()


@pytest.fixture
def store() -> Iterator[dict[str, str]]:
    """A server with S3's interface and an empty bucket: the environment of its clients."""
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < end and server.poll() is None, "the server does not start"
                time.sleep(0.1)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            boto3.client("s3").create_bucket(Bucket="bucket")
            yield settings
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
@needs_ray
@needs_store
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_job_in_an_object_store_whose_driver_is_killed(place: Path, store: dict[str, str]) -> None:
    """Its workers end with it, half-written objects do not exist, and the resumed job takes what is complete."""
    import boto3

    client = boto3.client("s3")
    for path in sorted((place / "images").iterdir())[:800]:
        client.put_object(Bucket="bucket", Key=f"photos/{path.name}", Body=path.read_bytes())
    command = [sys.executable, "-m", "stn_infer", "run", "model.onnx", "s3://bucket/photos", "-o", "s3://bucket/out"]
    command += [*OPTIONS[:2], "--shard-rows", "16", "--ray"]

    def names() -> list[str]:
        found = client.list_objects_v2(Bucket="bucket", Prefix="out/").get("Contents", [])
        return [entry["Key"].removeprefix("out/") for entry in found]

    driver = subprocess.Popen(command, env=environment(**store), stderr=subprocess.PIPE)
    end = time.monotonic() + 200
    while sum(name.startswith("ledger") for name in names()) < 5:
        assert time.monotonic() < end and driver.poll() is None, driver.communicate()
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    after = names()
    assert "run.lock" in after
    assert 5 <= sum(name.startswith("ledger") for name in after) < 50

    done = subprocess.run([*command, "--resume"], env=environment(**store), capture_output=True, text=True, timeout=280)
    assert done.returncode == 4, done.stderr
    assert "799 predicted, 1 failed" in done.stdout and "of them before" in done.stdout
    run("model.onnx", "images/00[0-7]*.png", "alone", preprocess="0..1", shard_rows=16)
    expected = {name: content for name, content in contents(place / "alone").items() if name != "run.json"}
    assert sorted(names()) == sorted([*expected, "run.json"]), "and no lock"
    for name, content in expected.items():
        found = client.get_object(Bucket="bucket", Key=f"out/{name}")["Body"].read()
        assert found.replace(b"s3://bucket/photos", b"images") == content, name
