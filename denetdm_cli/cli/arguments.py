"""Options that several commands have."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Rule = Literal["last", "valid", "paper"]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one configuration key; may be repeated.")
]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
ProcessesOption = Annotated[
    int | None,
    typer.Option("--nproc", min=1, help="Processes that train one run together, as torchrun starts them: one a GPU."),
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Of several runs, how many at a time (default: one a GPU, or as CPUs allow).")
]
DataRootOption = Annotated[str | None, typer.Option(help="Folder of the data sets (default: data).", metavar="DIR")]
OutOption = Annotated[str | None, typer.Option(help="Where run folders go (default: runs).", metavar="DIR")]
EpochsOption = Annotated[int | None, typer.Option(help="Epochs of this stage.")]
BatchSizeOption = Annotated[int | None, typer.Option(help="Images a training step.")]
SelectOption = Annotated[
    Rule | None,
    typer.Option(
        "--select", help="Epoch to report: last, valid (best on held-out images), paper (SELECTED ON TEST DATA)."
    ),
]
SourceOption = Annotated[
    Path | None,
    typer.Option(help="Local copy of the raw images: a folder, an archive or a CSV file.", metavar="PATH"),
]
ResumeOption = Annotated[
    Literal["auto", "must", "never"],
    typer.Option(help="Go on with a stopped run: auto (where there is one), must (else refuse) or never (refuse)."),
]
PrecisionOption = Annotated[
    Literal["fp32", "bf16"] | None, typer.Option(help="Of a training step; bf16 is autocast, for GPUs.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Start anew and delete the run that is there.")]
