"""Python and commands without their seconds of imports: one process has imported all and forks for each.

``python warm.py FOLDER vision`` writes ``python`` and the commands into FOLDER and serves them until no
process holds a lock of FOLDER/in_use; so for ``translation``, and for ``torch``, which has imported torch
alone and has no commands. Each is the real entry point in a process of its own, with the caller's arguments,
folder, environment, files and process group. It ends with its caller, and a signal to it is sent on.
"""

import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
from pathlib import Path

from coe_core.support.command import status_of

ENTRIES = {  # fairseq first: then the import of the plugin registers it
    "translation": {
        **{
            f"fairseq-{name}": f"fairseq_cli.{name}:cli_main"
            for name in ("preprocess", "train", "generate", "interactive")
        },
        "coe-translation": "translation.commands.cli:main",
    },
    "vision": {"coe-vision": "vision.commands.cli:main"},
    "torch": {},
}
IMPORTED = {
    "torch": ("torch",),
    "translation": (
        *("matplotlib.pyplot", "sentencepiece", "translation.evaluation.calibrate"),
        *("translation.evaluation.decode_all", "translation.evaluation.table"),
    ),
    "vision": (
        "lightning.pytorch",
        *("vision.training.train", "vision.networks.network"),
    ),
}
CLIENT = """#!{python} -S
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
call = json.dumps([sys.argv, os.getcwd(), dict(os.environ), os.getpgrp()]).encode()
socket.send_fds(server, [len(call).to_bytes(4, "big")], [0, 1, 2])
server.sendall(call)
worker = int.from_bytes(server.recv(4), "big")
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: os.kill(worker, number))
sys.exit(int(server.recv(3) or b"137"))
"""


def serve(folder: Path, adapter: str) -> None:
    entries = ENTRIES[adapter]
    for module in (*(entry.partition(":")[0] for entry in entries.values()), *IMPORTED[adapter]):
        importlib.import_module(module)
    gc.freeze()  # or every copy would write to all pages, and so copy them
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "socket"))
    server.listen()
    for name in (*entries, "python"):
        text = CLIENT.format(python=sys.executable, address=str(folder / "socket"))
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    threading.Thread(target=end_unused, args=(folder,), daemon=True).start()
    while True:
        caller, _ = server.accept()
        if os.fork() == 0:
            status = 9
            server.close()
            try:
                status = answer(caller, entries)
            finally:
                caller.send(str(status).encode())
                os._exit(0)
        caller.close()


def end_unused(folder: Path) -> None:
    with (folder / "in_use").open("ab") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
    os._exit(0)


def answer(caller: socket.socket, entries: dict[str, str]) -> int:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, files, _, _ = socket.recv_fds(caller, 4, 3)
    call = b""
    while len(call) < int.from_bytes(size, "big"):
        call += caller.recv(1 << 16)
    sys.argv, folder, environment, group = json.loads(call)
    with contextlib.suppress(
        PermissionError
    ):  # a group of another session; it still ends with its caller
        os.setpgid(0, group)
    for place, file in enumerate(files):
        os.dup2(file, place)
        os.close(file)
    sys.stdin, sys.stdout, sys.stderr = (
        open(place, mode, closefd=False, errors="backslashreplace" if place == 2 else None)  # noqa: SIM115
        for place, mode in enumerate("rww")
    )
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    caller.send(os.getpid().to_bytes(4, "big"))
    ended = lambda: caller.recv(1) or os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    threading.Thread(target=ended, daemon=True).start()
    return status_of(lambda: call_entry(Path(sys.argv[0]).name, entries))


def call_entry(name: str, entries: dict[str, str]) -> int | None:
    """The command's function, or what Python would run."""
    if name != "python":
        module, _, function = entries[name].partition(":")
        return getattr(importlib.import_module(module), function)()
    words = sys.argv[1:]
    while words[0] in ("-u", "-W"):
        words = words[1 + (words[0] == "-W") :]
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        main = type(sys)("__main__")
        sys.modules["__main__"] = main
        exec(compile(words[1], "-c", "exec"), vars(main))
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
    return None


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2])
