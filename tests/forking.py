"""`subprocess` for Python's own commands, without importing torch and Lightning anew: forks of a server.

A fork takes milliseconds where an interpreter takes five seconds of a core until it trains. It begins as
`python` does: with the arguments, folder, environment and files it is given, default signal handlers, and
no module of ours. It is a child of the process that started it, and what it starts in turn is forked too,
as Lightning's process for a second device is. Elsewhere than on Linux, processes are ordinary ones.
"""

import builtins
import ctypes
import gc
import importlib
import json
import multiprocessing.process
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import numpy

LIBRARIES = (
    "argcomplete", "lightning", "lightning.pytorch.loggers", "omegaconf", "PIL.Image", "PIL.ImageDraw",
    "pytorch_optimizer", "pywt", "rich.console", "rich.progress", "rich.table", "safetensors.torch",
    "scipy.fft", "scipy.stats", "tensorboard.plugins.custom_scalar.layout_pb2",
    "tensorboard.plugins.hparams.api_pb2", "torch", "torch.distributed", "torch.func",
    "torch.utils.tensorboard", "torchdiffeq", "torchmetrics", "urllib.request", "webdataset",
)  # fmt: skip
NAME, SUBREAPER = 15, 36  # of prctl
MOST = 200_000  # bytes of a request


def prctl(option: int, value: Any) -> None:
    """Linux's, of this process."""
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """`subprocess.Popen`, of a fork where the command is `python -m …`, `-c …` or a script."""

    def _execute_child(self, args: Any, *rest: Any) -> None:
        # In the order of Popen's own method, its one place where a process is started.
        executable, preexec, _, kept, folder, environment, _, _, shell, *pipes = rest[:15]
        python = isinstance(args, list) and args[0] == sys.executable
        if not python or executable or preexec or kept or shell or sys.platform != "linux":
            super()._execute_child(args, *rest)
            return
        request = {
            "arguments": [os.fspath(argument) for argument in args[1:]],
            "folder": os.fspath(folder or os.getcwd()),
            "environment": dict(os.environ if environment is None else environment),
            "session": rest[20],
        }
        files = [pipe if pipe >= 0 else own for own, pipe in enumerate((pipes[0], pipes[3], pipes[5]))]
        server = own_server()
        prctl(SUBREAPER, 1)  # a fork's parent ends at once; then the fork is this process's child
        try:
            socket.send_fds(server, [json.dumps(request).encode()], files)
            self.pid = int(server.recv(100))
        finally:
            prctl(SUBREAPER, 0)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def run(
    command: list[str], *, capture_output: bool = False, timeout: float | None = None, **options: Any
) -> "subprocess.CompletedProcess[Any]":
    """`subprocess.run`, which looks at no status."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **options) as process:
        try:
            out, error = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, error)


_servers: dict[int, socket.socket] = {}
"""Of each process the way to its server: a fork has a copy of its parent's too."""


def own_server() -> socket.socket:
    """The way to this process's server, which is started where there is none."""
    if os.getpid() not in _servers:
        _servers[os.getpid()], theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
    return _servers[os.getpid()]


def serve(requests: socket.socket) -> dict[str, Any]:
    """Fork whenever asked to; only forks return, with what they shall do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    while True:
        content, files, _, _ = socket.recv_fds(requests, MOST, 3)
        if not content:  # the process that asks has ended
            os._exit(0)
        reading, writing = os.pipe()
        between = os.fork()
        if between == 0:
            forked = os.fork()
            if forked == 0:
                break
            os.write(writing, str(forked).encode())
            os._exit(0)
        os.waitpid(between, 0)
        requests.send(os.read(reading, 100))
        for file in (reading, writing, *files):
            os.close(file)
    while os.getppid() != parent:
        time.sleep(0.001)
    for target, file in enumerate(files):
        os.dup2(file, target)
    requests.close()
    for file in (reading, writing, *files):
        os.close(file)
    request: dict[str, Any] = json.loads(content)
    return request


def begin(request: dict[str, Any]) -> None:
    """Make this process as one that begins."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if request["session"]:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed()
    numpy.random.seed(int.from_bytes(os.urandom(4)))
    multiprocessing.process.ORIGINAL_DIR = os.getcwd()  # which "" stands for in what spawned processes import
    rank_zero = importlib.import_module("lightning.fabric.utilities.rank_zero")
    rank_zero.rank_zero_only.rank = rank_zero._get_rank() or 0  # which is read as Lightning is imported
    unbuffered = bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    for file, name in ((1, "stdout"), (2, "stderr")):
        by_lines = 1 if file == 2 or os.isatty(file) else -1
        stream = open(file, "w", by_lines, closefd=False)  # noqa: SIM115
        stream.reconfigure(write_through=unbuffered)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def fork_server() -> dict[str, Any] | None:
    """Start this process's server, as long as it is new itself; that server's forks return a request."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        nothing = os.open(os.devnull, os.O_RDWR)
        for file in range(3):
            os.dup2(nothing, file)
        return serve(theirs)
    theirs.close()
    _servers[os.getpid()] = ours
    return None


def execute(arguments: list[str]) -> None:
    """Do what `python arguments` does."""
    kind, *rest = arguments
    first = {"-m": os.getcwd(), "-c": ""}.get(kind, os.path.dirname(os.path.abspath(kind)))
    places = [os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.path[:] = [first, *places, *sys.path[1:]]
    prctl(NAME, (rest[1] if len(rest) > 1 else "python").encode()[:15])  # as ps shows it
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        module = type(sys)("__main__")
        module.__dict__["__builtins__"] = builtins
        sys.modules["__main__"] = module
        exec(compile(rest[0], "<string>", "exec"), module.__dict__)  # noqa: S102 - a test's own
    else:
        sys.argv = arguments
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()  # what is shared with all forks need not be looked through when one ends
    request: dict[str, Any] | None = serve(socket.socket(fileno=int(sys.argv[1])))
    while request is not None:
        begin(request)
        arguments = request["arguments"]
        request = fork_server()
    subprocess.Popen = Popen  # type: ignore[misc]
    execute(arguments)
