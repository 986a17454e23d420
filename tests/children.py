"""Run a function in a child process that shares the loaded libraries, to test faults and kills quickly."""

import json
import os
import resource
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

# Threads and CUDA do not survive a fork; the tests use one thread on the CPU.
forks = pytest.mark.skipif(not hasattr(os, "fork") or torch.cuda.is_available(), reason="needs a fork of torch")


class Child:
    """A child process in its own process group, which runs a function and reports its outcome."""

    def __init__(self, function, *arguments):
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setpgid(0, 0)
                # A fork breaks torch's thread pool. It is renewed here, before two threads try to do so at once.
                torch.set_num_threads(1)
                outcome = ["returned", function(*arguments)]
            except BaseException as error:
                outcome = [type(error).__name__, str(error)]
            try:
                os.write(writer, json.dumps(outcome).encode())
            finally:
                os._exit(0)
        os.close(writer)

    def kill(self):
        """Kill the process group with SIGKILL."""
        with suppress(OSError):
            os.setpgid(self.pid, self.pid)  # if the child has not done so yet
        os.killpg(self.pid, signal.SIGKILL)
        self._end()

    def outcome(self):
        """Wait for the end; return ["returned", value] or [name of the error, message], or None after a kill."""
        return self._end()

    def _end(self):
        with os.fdopen(self._reader, "rb") as stream:
            content = stream.read()
        os.waitpid(self.pid, 0)
        return json.loads(content) if content else None


@contextmanager
def running(function, *arguments, until):
    """Run a function in a child process; it is stopped once `until` holds, and killed after the block."""
    child = Child(function, *arguments)
    try:
        for _ in range(60_000):
            if until():
                break
            time.sleep(0.001)
        time.sleep(0.05)  # a lock file exists for a moment before it is locked
        os.kill(child.pid, signal.SIGSTOP)
        yield child
    finally:
        child.kill()


def hold(manager):
    """Enter a context manager, and stay inside until the process is killed."""
    with manager:
        signal.pause()


def outcome_of(function, *arguments):
    """Run a function in a child process and return its outcome."""
    return Child(function, *arguments).outcome()


@contextmanager
def limited(kind, value):
    """Lower a limit of this process, such as resource.RLIMIT_FSIZE, inside the block."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def next_file():
    """Return the file descriptor that the next opened file will get."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    return descriptor


def address_space():
    """Return the size of this process's memory in bytes, as RLIMIT_AS counts it."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
