"""`coe-vision serve`: what it refuses before anything is loaded, its socket, its life and end."""

import re
import shutil
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from coe_core.serving import process
from coe_core.serving.options import host_names
from vision.errors import RunError
from vision.prediction.predictor import Predictor
from vision.serve.app import create_app


def test_a_run_without_calibration(trained, tmp_path):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(RunError, match="stored: none; run `coe-vision calibrate` first"):
        create_app(Predictor(tmp_path))


def test_refused_before_anything_is_loaded(cli, trained, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments, message in [
            ([trained, "--port", port], f"cannot listen on 127.0.0.1:{port}: Address already in"),
            ([trained, "--port", 70000], "ports are 0 (a free one) to 65535"),
            ([trained, "--port", -1], "ports are 0 (a free one) to 65535"),
            ([trained, "--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid:8000"),
            ([trained, "--host", "x" * 300], "cannot listen on xxx"),
            ([trained, "--host", "203.0.113.7", "--port", 0], "cannot listen on 203.0.113.7:0: "),
            ([trained, "--port", 0, "--max-requests", 0], "must be at least 1, got 0"),
            ([trained, "--port", 0, "--max-requests", 10**12], "needs 4,000,000,000,160 open files"),
            ([trained, "--port", 0, "--max-bytes", "much"], "'much' is no size"),
            ([trained, "--port", 0, "--max-bytes", "inf"], "'inf' is no size"),
            ([trained, "--port", 0, "--max-memory", "0"], "a size must be at least one byte"),
            ([trained, "--port", 0, "--window", -1], "must be in [0, "),
            ([trained, "--port", 0, "--window", "nan"], "must be in [0, "),
            ([trained, "--port", 0, "--body-seconds", "inf"], "must be in (0, 86400]"),
            ([trained, "--port", 0, "--predict-seconds", 0], "must be in (0, 86400]"),
            ([trained, "--port", 0, "--host-names", "http://a"], "'http://a' is no host name"),
            ([trained, "--port", 0, "--host-names", "a,,b"], "'' is no host name"),
            ([trained, "--port", 0, "--at", "bset"], "no operating point 'bset'; stored: best"),
            (["nothing", "--port", 0], "there is no checkpoint nothing"),
        ]:  # fmt: skip
            assert cli("serve", *arguments) == 2
            error = capsys.readouterr().err
            assert message in error
            assert error.count("\n") == 1


def test_host_names():
    assert host_names("a.lan, *") == ("a.lan", "*")
    assert process.own_names("coe.lan") == ("coe.lan",)
    assert process.own_names("0.0.0.0") == process.own_names("::") == (socket.gethostname(),)


def test_addresses_of_ipv4():
    with process.listen("localhost", 0) as listening:
        assert listening.family == socket.AF_INET
    with process.listen("0.0.0.0", 0) as listening:
        port = listening.getsockname()[1]
        assert process.address(listening) == (
            f"http://127.0.0.1:{port} and this machine's other addresses"
        )


def ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not ipv6(), reason="no IPv6 here")
def test_addresses_of_ipv6():
    for host in ("::1", "[::1]"):
        with process.listen(host, 0) as listening:
            port = listening.getsockname()[1]
            assert process.address(listening) == f"http://[::1]:{port}"
            with pytest.raises(
                process.ServerError, match=rf"cannot listen on \[::1\]:{port}: Address already"
            ):
                process.listen(host, port)
    with process.listen("::", 0) as listening:
        port = listening.getsockname()[1]
        assert process.address(listening).startswith(f"http://[::1]:{port} and")
        for host in ("::1", "127.0.0.1"):
            socket.create_connection((host, port)).close()


@pytest.mark.process
def test_the_command_serves_and_stops(trained, images):
    command = [sys.executable, "-m", "vision", "serve", str(trained), "--port", "0", "--at", "half"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        address = re.search(r"at (http://127\.0\.0\.1:\d+)", line)[1]
        reply = httpx.post(f"{address}/predict", content=images[0], timeout=30)
        assert reply.json()["budget"] == "half"
        reply = httpx.get(f"{address}/health", headers={"host": "evil.example"})
        assert reply.status_code == 400
        reply = httpx.post(f"{address}/predict", content=b"", headers={"origin": "http://e.vil"})
        assert reply.status_code == 403
        half = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
        half.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n")
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) in (0, -signal.SIGTERM)
        half.close()
    finally:
        server.kill()
        errors = server.communicate()[1]
    assert "Traceback" not in errors
