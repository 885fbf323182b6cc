"""Many runs at a time, each in a worker process, as one stream of events."""

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from denetdm_cli.data.store import open_dataset
from denetdm_cli.training.events import Event
from denetdm_cli.training.pipeline import Job
from denetdm_cli.utils import signals
from denetdm_cli.utils.cpu import available_cores
from denetdm_cli.utils.errors import RankError, UserError, from_os_error
from denetdm_cli.utils.log import show_warnings
from denetdm_cli.utils.memory import announce_processes

SECONDS_TO_STOP = 60.0
"""From TERM to KILL: a worker finishes its step and writes its resume state in a fraction of it."""

_MOST_RUNS_PER_GPU = 4
_BYTES_PER_RUN = 2 << 30
"""GPU memory of a perceptron run besides its images: the CUDA context, and a network far smaller than that."""


@dataclass(frozen=True)
class Failed:
    """The run ended with an error; the other runs continue."""

    what: str
    fix: str
    exit_code: int


@dataclass(frozen=True)
class Ended:
    """The process of a run has ended: the run is complete, or a signal stopped it where `signal` is not 0."""

    signal: int = 0


News = Event | Failed | Ended


@dataclass(frozen=True)
class Plan:
    """How many runs are trained at a time.

    Attributes:
        workers: number of processes.
        threads: CPU threads of each.
        devices: worker k computes on device k modulo their number.
    """

    workers: int
    threads: int
    devices: tuple[str, ...]


def plan(jobs: Sequence[Job], workers: int | None) -> Plan:
    """Choose how many runs are trained at a time.

    A convolutional run has a GPU to itself. Up to four perceptron runs share one, as far as CPU cores and GPU memory
    allow. Without a GPU every run has a core for each of its threads.

    Args:
        jobs: all with the same device and number of threads.
        workers: number of runs at a time; None chooses it.
    """
    config, available = jobs[0].config, available_cores()
    gpus = _gpus(config.device)
    if gpus:
        count = min(workers or len(gpus) * _runs_per_gpu(jobs, len(gpus)), len(jobs))
        return Plan(count, config.threads or max(1, available // count), gpus)
    count = min(workers or max(1, available // max(config.threads, 1)), available, len(jobs))
    return Plan(count, min(config.threads or available, max(1, available // count)), (config.device,))


def train_all(jobs: Sequence[Job], how: Plan) -> Generator[tuple[int, News], None, None]:
    """Train runs whose data sets exist, and yield their events, each with the index of its job.

    Where the generator is closed or a signal stops it, every worker gets TERM, on which it writes its resume state. A
    worker that has not ended after `SECONDS_TO_STOP` is killed, with a warning that names its run.

    Raises:
        Stopped: a signal asked for it; raised when every worker has ended.
    """
    signals.raise_swallowed()
    context = multiprocessing.get_context("spawn")
    queue = deque(enumerate(jobs))
    free = deque(range(how.workers))
    active: dict[Connection, tuple[int, int, BaseProcess]] = {}
    try:
        while queue or active:
            while queue and free:
                number, job = queue.popleft()
                slot = free.popleft()
                receiver, sender = context.Pipe(duplex=False)
                device = how.devices[slot % len(how.devices)]
                placed = job.config.model_copy(update={"threads": how.threads, "device": device})
                process: BaseProcess = context.Process(
                    target=_work, args=(replace(job, config=placed), sender, how), name=job.name
                )
                with signals.deferred():  # so that every started process is in `active`
                    process.start()
                    active[receiver] = (number, slot, process)
                sender.close()
            for number, slot, news in _receive(active):
                if isinstance(news, Ended | Failed):
                    free.append(slot)
                yield number, news
    finally:
        with signals.deferred():  # a second signal does not cut the time in which workers write their state
            _stop(active)


def _gpus(device: str) -> tuple[str, ...]:
    """The GPUs that a configured device stands for, by name."""
    if device in ("auto", "cuda"):
        return tuple(f"cuda:{k}" for k in range(torch.cuda.device_count()))
    return (device,) if device.startswith("cuda:") else ()


def _runs_per_gpu(jobs: Sequence[Job], gpus: int) -> int:
    if any(job.config.model.convolutional for job in jobs):
        return 1
    images = max(sum(file.stat().st_size for file in job.dataset_path.rglob("images.npy")) for job in jobs)
    # Not the free memory: asking for it would put a CUDA context of this process on every GPU.
    memory = min(torch.cuda.get_device_properties(k).total_memory for k in range(torch.cuda.device_count()))
    return max(1, min(_MOST_RUNS_PER_GPU, available_cores() // gpus, memory // (_BYTES_PER_RUN + images)))


def _receive(
    active: dict[Connection, tuple[int, int, BaseProcess]], seconds: float | None = None
) -> Iterator[tuple[int, int, News]]:
    """Wait, at most for `seconds`, and yield what the workers have sent; those that have ended leave `active`."""
    ready = wait(list(active), seconds)
    for receiver in [connection for connection in active if connection in ready]:
        number, slot, process = active[receiver]
        try:
            news: News = receiver.recv()
        except EOFError:
            process.join()
            code = process.exitcode or 0
            reason = f"signal {-code}" if code < 0 else f"code {code}"
            news = Failed(
                f"the process of {process.name} ended with {reason} and without a message",
                "Where memory ran out (signal 9), give a smaller --workers. The same command resumes from the last "
                "state that was written.",
                RankError.exit_code if code < 0 else 1,
            )
        if isinstance(news, Ended | Failed):
            process.join()
            receiver.close()
            del active[receiver]
        yield number, slot, news


def _stop(active: dict[Connection, tuple[int, int, BaseProcess]]) -> None:
    """Send TERM to the workers, wait until they have ended, and kill those that hang."""
    for _, _, process in active.values():
        process.terminate()
    deadline = time.monotonic() + SECONDS_TO_STOP
    while active and (seconds := deadline - time.monotonic()) > 0:
        for _ in _receive(active, seconds):
            pass
    for receiver, (_, _, process) in active.items():
        process.kill()
        process.join()
        receiver.close()
        show_warnings(
            [
                f"the process of {process.name} did not stop within {SECONDS_TO_STOP:.0f} s and was killed; "
                "the same command resumes the run from the last state that was written"
            ]
        )
    active.clear()


def _work(job: Job, out: Connection, how: Plan) -> None:
    """Train one run in this process; it ends when the receiver of its events is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process, and the parent sends TERM
    signals.terminate_with_parent()
    announce_processes(how.workers, len(how.devices))
    with suppress(BrokenPipeError):
        _send_events(job, out)


def _send_events(job: Job, out: Connection) -> None:
    try:
        with signals.handlers((*signals.DEFAULT, *job.config.stop_signals)):
            for event in job.events(open_dataset(job.dataset_path)):
                out.send(event)
        out.send(Ended())
    except signals.Stopped as stop:
        out.send(Ended(stop.number))
    except UserError as error:
        out.send(Failed(error.what, error.fix, error.exit_code))
    except BrokenPipeError:
        raise
    except OSError as error:
        failure = from_os_error(error)
        out.send(Failed(failure.what, failure.fix, failure.exit_code))
