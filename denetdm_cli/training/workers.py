"""Many runs at once, a worker process each, as one stream of events."""

import multiprocessing
import signal
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
from denetdm_cli.utils.cpu import cores
from denetdm_cli.utils.errors import RankError, UserError, from_os_error


@dataclass(frozen=True)
class Failed:
    """A run that cannot go on; the others do."""

    what: str
    fix: str
    exit_code: int


@dataclass(frozen=True)
class Ended:
    """A run whose process has ended: with everything done, or stopped by a signal where `signal` is not 0."""

    signal: int = 0


News = Event | Failed | Ended


@dataclass(frozen=True)
class Plan:
    """How many runs are trained at a time.

    Attributes:
        workers: processes.
        threads: of each, on the CPU.
        devices: which they take turns with.
    """

    workers: int
    threads: int
    devices: tuple[str, ...]


def plan(jobs: Sequence[Job], workers: int | None) -> Plan:
    """As many runs at a time as there are GPUs, or else as have a core of their own for each of their threads.

    Args:
        jobs: all of one device and number of threads.
        workers: how many at a time are asked for; None is what is best.
    """
    config, there = jobs[0].config, cores()
    gpus = torch.cuda.device_count() if config.device in ("auto", "cuda") else 0
    if gpus:
        count = min(workers or gpus, len(jobs))
        return Plan(count, config.threads or max(1, there // count), tuple(f"cuda:{k}" for k in range(gpus)))
    count = min(workers or max(1, there // max(config.threads, 1)), there, len(jobs))
    return Plan(count, min(config.threads or there, max(1, there // count)), (config.device,))


def train_all(jobs: Sequence[Job], how: Plan) -> Generator[tuple[int, News], None, None]:
    """Train runs whose data sets are there, and tell what happens: which of the jobs, and what.

    Raises:
        Stopped: a signal asked for it; every run has kept its state before this is raised.
    """
    signals.raise_swallowed()
    context = multiprocessing.get_context("spawn")
    to_come = deque(enumerate(jobs))
    free = deque(range(how.workers))
    active: dict[Connection, tuple[int, int, BaseProcess]] = {}
    try:
        while to_come or active:
            while to_come and free:
                number, job = to_come.popleft()
                slot = free.popleft()
                ours, theirs = context.Pipe(duplex=False)
                device = how.devices[slot % len(how.devices)]
                placed = job.config.model_copy(update={"threads": how.threads, "device": device})
                process: BaseProcess = context.Process(
                    target=_work, args=(replace(job, config=placed), theirs), name=job.name
                )
                with signals.deferred():  # a process that is started is one that is stopped
                    process.start()
                    active[ours] = (number, slot, process)
                theirs.close()
            for number, slot, news in _news(active):
                if isinstance(news, Ended | Failed):
                    free.append(slot)
                yield number, news
    finally:
        for _, _, process in active.values():
            process.terminate()  # which stops it with its state kept
        while active:
            for _ in _news(active):
                pass


def _news(active: dict[Connection, tuple[int, int, BaseProcess]]) -> Iterator[tuple[int, int, News]]:
    """What has come in from the processes at work; those that have ended are taken out."""
    came = wait(list(active))
    for ready in [connection for connection in active if connection in came]:
        number, slot, process = active[ready]
        try:
            news: News = ready.recv()
        except EOFError:
            process.join()
            code = process.exitcode or 0
            reason = f"signal {-code}" if code < 0 else f"code {code}"
            news = Failed(
                f"the process of {process.name} ended with {reason} and said nothing",
                "Where memory ran out (signal 9), give a smaller --workers. The same command goes on from the last "
                "state that was written.",
                RankError.exit_code if code < 0 else 1,
            )
        if isinstance(news, Ended | Failed):
            process.join()
            ready.close()
            del active[ready]
        yield number, slot, news


def _work(job: Job, out: Connection) -> None:
    """Train one run in a process of its own, which ends when nobody listens any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one passes it on
    signals.terminate_with_parent()
    with suppress(BrokenPipeError):
        _tell(job, out)


def _tell(job: Job, out: Connection) -> None:
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
        told = from_os_error(error)
        out.send(Failed(told.what, told.fix, told.exit_code))
