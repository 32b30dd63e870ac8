"""Options about the machine: how a run lies on its devices, and which other processes take part."""

import argparse
from typing import TYPE_CHECKING

from jaxlm.axes import parse_axes
from jaxlm.cli.usage import Parser, Usage, whole
from jaxlm.errors import UserError

if TYPE_CHECKING:
    from jaxlm.hosts import Peers
    from jaxlm.train.machine import Machine


def add_machine_options(parser: Parser) -> None:
    """The options; none of them changes what is computed."""
    add_mesh_option(parser)
    add_memory_options(parser)
    text = "HOST:PORT of process 0, where nothing (Slurm, Open MPI, a TPU pod) tells the processes of each other"
    parser.add_argument("--coordinator", metavar="HOST:PORT", help=text)
    parser.add_argument("--processes", type=whole(1), metavar="N", help="how many processes there are")
    parser.add_argument("--process", type=whole(0), metavar="I", help="which one this is, from 0")
    text = "end the process if no step is done for so many minutes (default: never)"
    parser.add_argument("--hang", type=float, default=0.0, metavar="M", help=text)


def add_memory_options(parser: Parser) -> None:
    """`--split-moments` and `--remat`."""
    text = "split the optimizer's state over data too: less memory, a little more traffic"
    parser.add_argument("--split-moments", action="store_true", help=text)
    text = "compute again, in the backward pass, what of each layer (default: as the model says)"
    parser.add_argument("--remat", choices=("none", "dots", "full"), help=text)


def add_mesh_option(parser: Parser) -> None:
    """`--mesh`."""
    text = "devices along each axis, as in data=2,fsdp=4 (axes: data, fsdp, sequence, tensor; -1: the rest)"
    parser.add_argument("--mesh", type=_axes, metavar="AXES", help=text)


def read_machine(options: argparse.Namespace) -> tuple["Machine", "Peers | None"]:
    """What the options say. Raises Usage where they say only a part of it."""
    from jaxlm.hosts import Peers
    from jaxlm.train.machine import Machine

    feeding = options.threads, options.workers, 60 * options.hang
    machine = Machine(options.mesh, options.split_moments, options.remat, *feeding)
    given = options.coordinator, options.processes, options.process
    if all(one is None for one in given):
        return machine, None
    if any(one is None for one in given) or options.process >= options.processes:
        raise Usage(
            "--coordinator HOST:PORT, --processes N and --process I (0 to N - 1) go together: found "
            f"--coordinator {given[0]} --processes {given[1]} --process {given[2]}"
        )
    return machine, Peers(*given)


def _axes(text: str) -> dict[str, int]:
    try:
        return parse_axes(text)
    except UserError as error:
        raise Usage(str(error)) from None
