"""TensorBoard and Weights & Biases, from packages that are installed only where they are wanted."""

import os
import platform
import time
import uuid
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from denetdm_cli.config.load import to_yaml
from denetdm_cli.training.run_folder import RunFolder
from denetdm_cli.training.tracking import Opener, recorded, scalars
from denetdm_cli.utils.errors import ConfigError
from denetdm_cli.utils.files import write_text

_SECONDS_FOR_NETWORK = 30.0


class TensorBoard:
    """An event file in the run folder. A resumed run begins it anew, so that no epoch is in it twice."""

    def __init__(self, folder: RunFolder) -> None:
        place = folder.path / "tensorboard"
        place.mkdir(exist_ok=True)
        for old in place.glob("events.out.tfevents.*"):
            old.unlink()
        self.place = str(place)
        self._events = import_module("tensorboard.compat.proto.event_pb2")
        self._summary = import_module("torch.utils.tensorboard.summary")
        # Not torch's SummaryWriter: it writes in a thread, where a full disk ends in a traceback and not in a warning.
        name = f"events.out.tfevents.{time.time():.0f}.{platform.node()}.{os.getpid()}"
        writer = import_module("tensorboard.summary.writer.record_writer").RecordWriter
        self._file = writer((place / name).open("xb"))
        self._write(file_version="brain.Event:2")
        # A TensorBoard that is open forgets at this what it read from the file before.
        self._write(step=1, session_log=self._events.SessionLog(status=self._events.SessionLog.START))
        text = to_yaml(folder.config())
        as_code = "".join(f"    {line}\n" for line in text.splitlines())
        self._write(summary=self._summary.text("config", as_code))
        self._file.flush()

    def log(self, record: Mapping[str, Any]) -> None:
        """Write an epoch, and see that it is on its way to the disk."""
        for name, value in scalars(record):
            if name != "epoch":
                self._write(step=record["epoch"], summary=self._summary.scalar(name, value))
        self._file.flush()

    def close(self, *, complete: bool) -> None:
        """Close the file."""
        del complete  # an event file has no such field
        self._file.close()

    def _write(self, **content: Any) -> None:
        self._file.write(self._events.Event(wall_time=time.time(), **content).SerializeToString())


class WeightsAndBiases:
    """A run of W&B under one identifier, however often it is stopped; without a login it stays on this machine."""

    def __init__(self, folder: RunFolder) -> None:
        wandb = import_module("wandb")
        silence = {"silent": True, "console": "off"}  # it must not write among results, nor capture what is written
        settings = wandb.setup(wandb.Settings(**silence)).settings
        mode = settings.mode
        if mode in ("online", "run", "shared") and not wandb.login(prompt=False, verify=False):
            mode = "offline"
        self._run = wandb.init(
            project=settings.project or "denetdm",
            name="/".join(folder.path.parts[-3:]),
            id=_identifier(folder),
            config=folder.config().model_dump(mode="json"),
            dir=None if "WANDB_DIR" in os.environ else str(folder.path),
            mode=mode,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(**silence, init_timeout=_SECONDS_FOR_NETWORK, finish_timeout=_SECONDS_FOR_NETWORK),
        )
        self._first = self._run.step  # of a resumed run the server has the epochs before it
        here = Path(self._run.dir).parent
        self.place = f"{here}, not uploaded (wandb sync does that)" if mode == "offline" else self._run.url or mode

    def log(self, record: Mapping[str, Any]) -> None:
        """Hand an epoch over, unless W&B has it."""
        if record["epoch"] >= self._first:
            self._run.log(dict(scalars(record)), step=record["epoch"], commit=True)

    def close(self, *, complete: bool) -> None:
        """End the run; one that was stopped counts as failed until it is resumed."""
        self._run.finish(exit_code=0 if complete else 1)


def _identifier(folder: RunFolder) -> str:
    """Kept in the run folder; a new one where no epoch is complete, for such a run is begun, or begun anew."""
    file = folder.path / "wandb-id"
    if not (recorded(folder) and file.exists()):
        write_text(file, f"{uuid.uuid4().hex}\n")
    return file.read_text(encoding="utf-8").strip()


_KNOWN: dict[str, tuple[Opener, str]] = {
    "tensorboard": (TensorBoard, "tensorboard.summary.writer.record_writer"),
    "wandb": (WeightsAndBiases, "wandb.sdk"),
}
"""By name: what opens it, and a module that its package has; W&B leaves folders `wandb`, which count as packages."""


def chosen(given: Sequence[str]) -> dict[str, Opener]:
    """The trackers that --track names; each text has one or several, with commas between them.

    Raises:
        ConfigError: there is no such tracker, or its package is not installed.
    """
    openers: dict[str, Opener] = {}
    for name in (part.strip() for text in given for part in text.split(",")):
        if name not in _KNOWN:
            raise ConfigError(f"--track: {name!r} is no tracker", f"Known are {', '.join(_KNOWN)}.")
        openers[name], module = _KNOWN[name]
        try:
            import_module(module)
        except Exception as error:  # a package can fail in many ways while it is imported
            raise ConfigError(
                f"--track {name}: the package cannot be imported ({error})",
                f"Install it: pip install 'denetdm[{name}]'. Or leave it out; metrics.jsonl is always written.",
            ) from None
    return openers
