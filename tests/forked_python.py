"""A `python` that starts at once: every script runs in a fork of one process in which the libraries are imported.

`ForkedPython` writes a folder with `bin/python`, which launchers take for an environment's (CAUSALDIFFAE_VENV). Scripts
that have an entry in `extra` get its arguments behind their own; pip installs nothing; whatever else is asked of it
(`-c`, `-m`, scripts under mpiexec) the real interpreter does.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

LIBRARIES = (
    "torch",
    "torchvision",
    "jsonargparse",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "networkx",
    "scipy.stats",
    "skimage.metrics",
    "skimage.morphology",
    "sklearn.ensemble",
    "blobfile",
    "PIL.Image",
)
_SHIM = """\
#!{python} -IS
import json, os, socket, sys
arguments, extra, before = sys.argv[1:], {extra!r}, {before!r}
if arguments[:3] == ["-m", "pip", "install"]:
    sys.exit("pip: this environment is complete, nothing is installed into it")
name = os.path.basename(arguments[0]) if arguments else ""
names = [" ".join([name, *arguments[1:count]]) for count in (1, 2, 3)]
arguments += [word for each in dict.fromkeys(names) for word in extra.get(each, [])]
if not name.endswith(".py") or name in {slow!r} or "PMI_RANK" in os.environ:
    os.execv({python!r}, [{python!r}, *arguments])
asked = {{"argv": arguments, "cwd": os.getcwd(), "environ": dict(os.environ)}}
asked["before"] = next((before[each] for each in names if each in before), "")
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
    connection.connect({address!r})
    socket.send_fds(connection, [json.dumps(asked).encode()], [0, 1, 2])
    answer = connection.recv(16)
sys.exit(int(answer) if answer else "the script died of a signal")
"""


class ForkedPython:
    """The environment's folder and the process that forks; a context manager.

    Args:
        folder: is made; holds `bin/python`.
        extra: arguments by the name of a script, or by its name and its first one or two arguments.
        before: likewise, code that runs before the script, for what no argument can bound.
        unforked: names of scripts that the real interpreter runs, servers for instance, which are sent signals.
    """

    def __init__(
        self,
        folder: Path,
        extra: Mapping[str, Sequence[str]],
        before: Mapping[str, str],
        unforked: Sequence[str] = (),
    ) -> None:
        self.folder, self.address = folder, str(folder / "socket")
        (folder / "bin").mkdir(parents=True)
        shim = folder / "bin" / "python"
        table = {name: list(arguments) for name, arguments in extra.items()}
        known = {"extra": table, "before": dict(before), "slow": list(unforked), "address": self.address}
        shim.write_text(_SHIM.format(python=sys.executable, **known), encoding="utf-8")
        shim.chmod(0o755)

    def __enter__(self) -> ForkedPython:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).resolve()), self.address]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # scripts that were given up live in its group
        self._process.wait()


def serve(address: str) -> None:
    """Imports, then forks for every connection, for ever."""
    for name in LIBRARIES:
        import_module(name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen(16)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                answer(connection)
            connection.close()


def answer(connection: socket.socket) -> None:
    """Runs one script as `__main__` on the asker's standard streams, and tells its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    asked = json.loads(message)
    os.environ.clear()
    os.environ.update(asked["environ"])
    os.chdir(asked["cwd"])
    code = run_script(asked["argv"], asked["before"])
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError):  # whoever asked has given up
        connection.send(str(code).encode())
    os._exit(code)


def run_script(argv: list[str], before: str) -> int:
    """Runs the code, then the script; the exit code that the interpreter would have had."""
    ours = str(Path(__file__).parent)
    paths = [*filter(None, os.environ.get("PYTHONPATH", "").split(":")), *(path for path in sys.path if path != ours)]
    sys.argv, sys.path[:] = argv, [str(Path(argv[0]).resolve().parent), *paths]
    code: Any = 0
    try:
        exec(before, {})
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    return code if isinstance(code, int) else 0 if code is None else 1


if __name__ == "__main__":
    serve(sys.argv[1])
