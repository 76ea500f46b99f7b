"""One machine's part of a training or sweep as a job of submitit, for Slurm or for this machine.

submitit starts it once on every machine. There it runs train_net.py in a process of its own, asks
that to stop when the scheduler does, and lets the job be started again to go on.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

from submitit import JobEnvironment
from submitit.core.logger import get_logger
from submitit.helpers import DelayedSubmission

__all__ = ["Training", "TrainingFailed", "launch_options"]

# Of the job's log; nothing else is set up in its processes.
logger = get_logger()

_POLL_SECONDS = 0.1
_SECONDS_FOR_LAST_LINES = 5
# submitit's local executor kills a second after Ctrl-C, and what we leave behind would run on.
_SECONDS_AT_CTRL_C = 0.5
_INPUT_ERROR = 2
# From asking a job to end to taking it away: KillWait or, if it is preempted, GraceTime.
_SECONDS_FOR_SLURM = 600
# As train_net.py ends at SIGTERM; or as it is ended, before its first iteration.
_STOPPED = (128 + signal.SIGTERM, -signal.SIGTERM)
_NUM_LAST_LINES = 20
_NUM_LAST_BYTES = 8192


# submitit takes down what is an Exception; Python ends with the status of what is a SystemExit.
class TrainingFailed(RuntimeError, SystemExit):
    """A training that has not ended well; its exit status becomes that of the job."""

    def __init__(self, message: str, status: int) -> None:
        """
        Args:
            message: Says what happened.
            status: Exit status of the process; below 0 the signal that has ended it.
        """
        super().__init__(message)
        self.code = 128 - status if status < 0 else status


def launch_options(environment: JobEnvironment) -> list[str]:
    """Tells train_net.py which of the machines of a job this one is, and where to find the first.

    Args:
        environment: Of a job that has one task on each machine.
    """
    if environment.num_tasks == 1:
        return ["--dist-url", "auto"]
    # Tasks beside each other on one machine stand for several: submitit's local executor.
    host = environment.hostnames[0] if environment.num_nodes > 1 else "127.0.0.1"
    # The same on all machines, another one for the next job, and below the range from which Linux
    # takes ports for outgoing connections.
    port = 10000 + int(environment.raw_job_id) % 20000
    return [
        *("--num-machines", str(environment.num_tasks)),
        *("--machine-rank", str(environment.global_rank)),
        *("--dist-url", f"tcp://{host}:{port}"),
    ]


class Training:
    """What submitit runs on each machine of a job; :meth:`checkpoint` is called to interrupt it."""

    def __init__(self, command: Sequence[str], overrides: Sequence[str], grace: int) -> None:
        """
        Args:
            command: Runs train_net.py, with all options but those that name the machines.
            overrides: Of the config; they come last.
            grace: Seconds between the signal that a job has to end and its end.
        """
        self._command = list(command)
        self._overrides = list(overrides)
        self._grace = grace
        self._process: subprocess.Popen[bytes] | None = None
        self._status: int | None = None
        self._asked = False
        self._last = b""
        self._copied = False

    def __call__(self) -> None:
        """Runs the training to its end.

        Raises:
            TrainingFailed: If that is not a good one.
        """
        environment = JobEnvironment()
        # In place of submitit's handler, which ignores it. Schedulers send it to this process
        # alone, to all, or as a warning some time ahead of the signal that submitit waits for.
        signal.signal(signal.SIGTERM, self._pass_on)
        self._start(environment)
        try:
            self._wait()
        except KeyboardInterrupt:
            self._stop(_SECONDS_AT_CTRL_C)
            raise
        if self._status == 0:
            return
        if self._status in _STOPPED and environment.cluster == "slurm":
            # Preempted or cancelled, or told to end by the first machine. Slurm starts a job again
            # that it takes away, but not one that has ended in the meantime.
            patience = max(self._grace, _SECONDS_FOR_SLURM)
            logger.warning("The training has stopped; waiting %d s for Slurm.", patience)
            time.sleep(patience)
        raise self._failure()

    def command(self, environment: JobEnvironment) -> list[str]:
        """What is started on this machine."""
        return [*self._command, *launch_options(environment), *self._overrides]

    def checkpoint(self) -> DelayedSubmission:
        """Interrupts the training, in a signal handler of submitit on the first machine.

        Returns:
            What goes on with it when the job is started again.

        Raises:
            TrainingFailed: If it has failed on its own, or cannot save.
        """
        already = self._status
        # Time is left to ask for the job to be started again.
        self._stop(max(self._grace - 30, self._grace / 2))
        if already not in (None, 0, *_STOPPED) or self._status == _INPUT_ERROR:
            raise self._failure()
        return DelayedSubmission(Training(self._command, self._overrides, self._grace))

    def _start(self, environment: JobEnvironment) -> None:
        command = self.command(environment)
        # The signal to interrupt goes to all processes of a job, and would end those of the
        # training: they start with it blocked. To here it comes late.
        interrupting = {getattr(signal, f"SIG{environment.USR_SIG}")}
        signal.pthread_sigmask(signal.SIG_BLOCK, interrupting)
        try:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            # Not by its methods: none of them can be called in a signal handler that interrupts
            # another of them.
            threading.Thread(target=self._note_end, daemon=True).start()
            threading.Thread(target=self._copy, daemon=True).start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupting)
        logger.info(
            "Machine %d of %d, process %d: started process %d: %s",
            environment.global_rank,
            environment.num_tasks,
            os.getpid(),
            self._process.pid,
            command,
        )
        if self._asked:
            self._ask()

    def _note_end(self) -> None:
        self._status = self._process.wait()

    def _copy(self) -> None:
        """Copies what the training prints to the log of the job, and keeps the end of it."""
        while printed := self._process.stdout.read1(_NUM_LAST_BYTES):
            self._last = (self._last + printed)[-_NUM_LAST_BYTES:]
            sys.stdout.buffer.write(printed)
            sys.stdout.buffer.flush()
        self._copied = True

    def _wait(self, patience: float | None = None) -> None:
        _wait_until(lambda: self._status is not None, patience)

    def _pass_on(self, _signum: int, _frame: FrameType | None) -> None:
        if not self._asked:
            self._ask()

    def _ask(self) -> None:
        self._asked = True
        if self._process is not None and self._status is None:
            self._process.terminate()

    def _stop(self, patience: float) -> None:
        """Lets the training save and end; if it takes too long, the last checkpoint has to do."""
        if self._process is None or self._status is not None:
            return
        if not self._asked:
            self._ask()
        self._wait(patience)
        if self._status is None:
            logger.warning("The training has not ended within %d s and is killed.", patience)
            self._process.kill()
            self._wait()

    def _failure(self) -> TrainingFailed:
        # Data workers that are left behind may hold the end of the output open.
        _wait_until(lambda: self._copied, _SECONDS_FOR_LAST_LINES)
        status = self._status
        if status in _STOPPED:
            message = "The training was asked to stop; submit it again with --resume to go on."
            last_lines = []
        else:
            message = f"The training ended with status {status}; its last lines:"
            last_lines = self._last.decode(errors="replace").splitlines()[-_NUM_LAST_LINES:]
        # The log has the lines.
        logger.error(message.partition(";")[0] if last_lines else message)
        return TrainingFailed("\n".join([message, *last_lines]), status)


def _wait_until(is_over: Callable[[], bool], patience: float | None) -> None:
    deadline = None if patience is None else time.monotonic() + patience
    while not is_over() and (deadline is None or time.monotonic() < deadline):
        time.sleep(_POLL_SECONDS)
