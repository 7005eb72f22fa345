"""`coe-translation serve`: what it refuses before anything is loaded, its life and end."""

import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest


def test_refused_in_one_line(said, trained_run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for options, message in (
            ((trained_run, "--port", port), f"cannot listen on 127.0.0.1:{port}: Address already"),
            ((trained_run, "--port", 70000), "ports are 0 (a free one) to 65535"),
            ((trained_run, "--port", 0, "--max-tokens", 0), "must be at least 1, got 0"),
            ((trained_run, "--port", 0, "--max-sentences", 0), "must be at least 1, got 0"),
            ((trained_run, "--port", 0, "--max-bytes", "much"), "'much' is no size"),
            ((trained_run, "--port", 0, "--host-names", "http://a"), "'http://a' is no host name"),
            ((tmp_path / "no", "--port", 0), "no such run, export or checkpoint"),
            (
                (trained_run / "networks/team.pt", "--port", 0),
                "name the folder that fairseq-preproc",
            ),
        ):
            status, out, err = said("serve", *options)
            assert (status, out) == (2, "")
            assert message in err
            assert err.count("\n") == 1


@pytest.mark.process
def test_the_command_serves_and_stops(trained_run):
    command = [sys.executable, "-m", "translation.commands.cli", "serve", str(trained_run)]
    server = subprocess.Popen(
        [*command, "--port", "0", "--device", "cpu", "--at", "macs=70%"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = re.search(r"at (http://127\.0\.0\.1:\d+)", server.stdout.readline())[1]
        reply = httpx.post(f"{address}/translate", json={"text": "zwei Tage"}, timeout=30).json()
        assert (reply["budget"], len(reply["sentences"])) == ("macs=70%", 1)
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) in (0, -signal.SIGTERM)
    finally:
        server.kill()
        errors = server.communicate()[1]
    assert "Traceback" not in errors
