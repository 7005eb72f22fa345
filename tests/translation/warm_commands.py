"""The recipes' commands without their seconds of imports: one process has imported all and forks for each.

``python warm_commands.py FOLDER`` writes the commands into FOLDER and serves them until its input ends. A
command is the real entry point, in a process of its own, with the caller's arguments, folder, environment,
files and process group.
"""

import importlib
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path

ENTRIES = {  # fairseq first: then the import of the plugin registers it
    **{
        f"fairseq-{name}": f"fairseq_cli.{name}:cli_main"
        for name in ("preprocess", "train", "generate", "interactive")
    },
    "coe-translation": "translation.commands.cli:main",
}
IMPORTED = (
    *(entry.partition(":")[0] for entry in ENTRIES.values()),
    *(
        "matplotlib.pyplot",
        "sentencepiece",
        "translation.evaluation.decode_all",
        "translation.evaluation.table",
    ),
    "translation.evaluation.calibrate",
)
CLIENT = """#!{python} -S
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
call = json.dumps([sys.argv, os.getcwd(), dict(os.environ), os.getpgrp()]).encode()
socket.send_fds(server, [len(call).to_bytes(4, "big")], [0, 1, 2])
server.sendall(call)
sys.exit(int(server.recv(1) or b"9"))
"""


def serve(folder: Path) -> None:
    for module in IMPORTED:
        importlib.import_module(module)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "socket"))
    server.listen()
    for name in ENTRIES:
        text = CLIENT.format(python=sys.executable, address=str(folder / "socket"))
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    while True:
        caller, _ = server.accept()
        if os.fork() == 0:
            status = 9
            try:
                status = answer(caller)
            finally:
                caller.send(str(status).encode())
                os._exit(0)
        caller.close()


def answer(caller: socket.socket) -> int:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, _, _ = socket.recv_fds(caller, 4, 3)
    call = b""
    while len(call) < int.from_bytes(size, "big"):
        call += caller.recv(1 << 16)
    sys.argv, folder, environment, group = json.loads(call)
    os.setpgid(0, group)
    for place, file in enumerate(files):
        os.dup2(file, place)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    module, _, function = ENTRIES[Path(sys.argv[0]).name].partition(":")
    try:
        status = getattr(importlib.import_module(module), function)() or 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 0 if left.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
