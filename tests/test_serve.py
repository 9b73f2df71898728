"""The door: what it refuses, and one real process from start to SIGTERM."""

import importlib.util
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from onerec.bundle import Bundle

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def serve():
    spec = importlib.util.spec_from_file_location("serve", ROOT / "serve.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_missing_bundle_is_an_error(serve, tmp_path, capsys):
    assert serve.main(["--bundle", str(tmp_path / "none")]) == 1
    assert "none: found no manifest.json, expected a finished 'bundle' artefact." in capsys.readouterr().err


def test_a_damaged_bundle_is_an_error(serve, small_bundle, tmp_path, capsys):
    folder = shutil.copytree(small_bundle, tmp_path / "bundle")
    (folder / "model.safetensors").write_bytes(b"")
    assert serve.main(["--bundle", str(folder)]) == 1
    assert re.search(
        r"error: .*model\.safetensors: found hash .* expected .* changed or damaged", capsys.readouterr().err
    )


@pytest.mark.parametrize("package", ["fastapi", "uvicorn"])
def test_without_the_extra_the_error_names_it(serve, small_bundle, monkeypatch, capsys, package):
    for name in [name for name in sys.modules if name.startswith("onerec.serving.") and "server" not in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert serve.main(["--bundle", str(small_bundle)]) == 1
    error = capsys.readouterr().err
    assert f"needs the package {package}" in error
    assert ".[serve]" in error


def test_an_address_in_use_and_a_bad_limit_are_errors(serve, small_bundle, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert serve.main(["--bundle", str(small_bundle), "--port", port]) == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err
    assert serve.main(["--bundle", str(small_bundle), "--port", "99999"]) == 1
    assert "cannot listen on 127.0.0.1 port 99999" in capsys.readouterr().err
    assert serve.main(["--bundle", str(small_bundle), "--set", "max_beam=3"]) == 1
    assert "Did you mean 'max_beams'?" in capsys.readouterr().err


def words(instruction: str, stage: str) -> list[str]:
    """The command that an instruction of a stage of the container gives as JSON."""
    text = (ROOT / "Dockerfile").read_text().partition(f" AS {stage}\n")[2].replace("\\\n", "")
    found = re.search(rf"^{instruction}(?: .*?)? (\[.*\])$", text, re.MULTILINE)
    assert found is not None
    command: list[str] = json.loads(found[1])
    assert command[0] == ".venv/bin/python"
    return [sys.executable, *command[1:]]


def health_check(address: str) -> list[str]:
    """What the container asks of its server, sent to one that listens elsewhere."""
    *first, program = words("HEALTHCHECK", "serve")
    assert "http://127.0.0.1:8000/" in program
    return [*first, program.replace("http://127.0.0.1:8000", address)]


def test_the_container_serves_by_words_that_are_understood(serve, capsys):
    assert serve.main([*words("CMD", "serve")[2:], "--set", "no_limit=3"]) == 1
    assert "no_limit" in capsys.readouterr().err  # all the other words were read


def test_a_real_process_answers_and_stops_on_sigterm(small_bundle, tmp_path):
    command = [sys.executable, str(ROOT / "serve.py"), "--bundle", str(small_bundle), "--port", "0", "--logs", "json"]
    command += ["--set", "batch_wait_ms=700", "--histories", str(tmp_path / "histories.sqlite")]
    log = tmp_path / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        line = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert address is not None, line + log.read_text()
        with httpx.Client(base_url=address[0], timeout=120) as client:  # it listens before it accepts
            answer = client.post("/v1/recommend", json={"history": [103, 104], "k": 3})
            ready = client.get("/readyz")
            assert subprocess.run(health_check(address[0]), check=False).returncode == 0
            refused = client.post("/v1/recommend", content=b"x" * 10_000_000)
            with ThreadPoolExecutor() as others:  # a request waits for company when the server is told to stop
                headers = {"x-request-id": "the-last-one"}
                last = others.submit(client.post, "/v1/recommend", json={"history": []}, headers=headers)
                time.sleep(0.3)
                process.send_signal(signal.SIGTERM)
                assert last.result().status_code == 200
        assert process.wait(timeout=120) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
    gone = subprocess.run(health_check(address[0]), check=False, capture_output=True, text=True)
    assert gone.returncode == 1
    assert "Connection refused" in gone.stderr
    expected = Bundle.load(small_bundle).recommender().recommend([[3, 4]], 3, exclude_seen=True)
    assert [item["id"] - 100 for item in answer.json()["items"]] == expected.items_BK[0].tolist()
    assert ready.json()["bundle"] == answer.json()["bundle"]
    assert refused.status_code == 413
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert "Application shutdown complete." in [line["message"] for line in lines]
    assert [line["status"] for line in lines if line["message"].startswith("POST")] == [200, 413, 200]
    assert lines[-1]["message"].startswith("Finished server process")
    assert [line["ms"] > 0 for line in lines if line.get("request_id") == "the-last-one"] == [True]
    assert not any("exception" in line for line in lines)
