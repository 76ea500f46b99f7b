"""A program as its users start it, and its processes as the system shows them."""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from snnet_vitdet.errors import InputError

__all__ = ["Member", "Run"]

# What a worker of a data loader takes to notice that its parent is gone is 5 s.
_GONE_SECONDS = 30

# In the command line of a process that multiprocessing has not forked but started.
_SPAWNED = "spawn_main"


@dataclass(frozen=True)
class Member:
    """A living process.

    Attributes:
        pid: Its id.
        parent: The id of its parent.
        command: Its command line, one text.
    """

    pid: int
    parent: int
    command: str


class Run:
    """A program in a session of its own, with its output in a file.

    Attributes:
        started: When it started, in seconds since the epoch.
        log: The file of its output.
    """

    def __init__(self, command: Sequence[str], log: Path, largest_file: int | None = None) -> None:
        """
        Args:
            command: The program and its arguments.
            log: Where its output goes.
            largest_file: No process may write a file of more bytes: as good as a full disk.

        Raises:
            InputError: If the system does not show processes as files.
        """
        if not os.path.isdir("/proc/self"):
            raise InputError("the processes of a training are read from /proc: soak on Linux")

        def prepare() -> None:
            # Whatever runs in the background ignores Ctrl-C, and hands that on.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if largest_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

        environment = {"OMP_NUM_THREADS": "1", **os.environ, "CUDA_VISIBLE_DEVICES": ""}
        self.log = log
        self.started = time.time()
        with open(log, "wb") as output:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=prepare,
            )
        self.pid = self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status, negative for the signal that ended it; None while it runs."""
        return self._process.poll()

    def output(self) -> str:
        """What it has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def members(self) -> list[Member]:
        """Its living processes, the first one included, in the order of their ids."""
        members = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                stat = Path("/proc", entry, "stat").read_text()
                command = Path("/proc", entry, "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            # Behind the name, which may have any character: state, parent, group, session.
            state, parent, _, session = stat.rpartition(")")[2].split()[:4]
            if int(session) == self.pid and state not in "ZX":
                text = command.replace(b"\0", b" ").decode(errors="replace")
                members.append(Member(int(entry), int(parent), text))
        return sorted(members, key=lambda member: member.pid)

    def trainers(self) -> list[Member]:
        """The processes that train: those that a launcher has started, or the first one alone."""
        return self._trainers_among(self.members())

    def workers(self) -> list[Member]:
        """The workers of data loaders: copies of a process that trains, or started by it."""
        members = self.members()
        commands = {trainer.pid: trainer.command for trainer in self._trainers_among(members)}
        return [
            m
            for m in members
            if m.parent in commands and (m.command == commands[m.parent] or _SPAWNED in m.command)
        ]

    def _trainers_among(self, members: Sequence[Member]) -> list[Member]:
        started = [m for m in members if m.parent == self.pid and _SPAWNED in m.command]
        return started or [m for m in members if m.pid == self.pid]

    def send(self, signum: int, pid: int | None = None) -> bool:
        """Sends a signal to one of its processes, or to all; whether there was any."""
        try:
            if pid is None:
                os.killpg(self.pid, signum)
            else:
                os.kill(pid, signum)
        except ProcessLookupError:
            return False
        return True

    def wait(self, seconds: float) -> int | None:
        """Waits for its end; the exit status, None if it did not end."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def wait_until_gone(self, seconds: float = _GONE_SECONDS) -> list[Member]:
        """Waits until none of its processes is left; those that are after all."""
        deadline = time.monotonic() + seconds
        while (left := self.members()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def end(self) -> None:
        """Kills what is left of it."""
        self.send(signal.SIGKILL)
        self._process.wait()
        self.wait_until_gone()
