"""`jaxlm launch tpu|slurm|gke EXPERIMENT --workdir D`: `jaxlm train` on machines elsewhere.

The work is done by `tpu_setup.sh` and the files of `launch/` in a clone; this verb checks, fills in and calls. What
stands after `--` goes to `jaxlm train` as it is, and is read here first. docs/launch.md has the way from a laptop to
each of the three.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template

from jaxlm.cli import experiments
from jaxlm.cli.parser import COMMANDS, CommandParser, UsageError, int_at_least
from jaxlm.cli.tpu_types import GKE_ACCELERATORS, parse_tpu_type
from jaxlm.cli.training.train import check_train_options
from jaxlm.errors import UserError

CLONE = Path(__file__).resolve().parents[3]

PREEMPTED = 75
"""The exit code of `tpu_setup.sh wait` when the slice, not the run, has ended."""


def main(argv: list[str]) -> int:
    """Launch, or print how; the exit code of what was called."""
    verbs = {"tpu": _launch_tpu, "slurm": _launch_slurm, "gke": _launch_gke}
    if not argv or argv[0] in ("-h", "--help"):
        text = f"usage: jaxlm launch {'|'.join(verbs)} EXPERIMENT --workdir D [options] [-- options of jaxlm train]"
        if not argv:
            raise UsageError(f"expected a place to launch to: {', '.join(verbs)} (`jaxlm launch tpu --help`, ...)")
        print(f"{text}\n\n{COMMANDS['launch']}. `jaxlm launch tpu --help` and so on have the options.")
        return 0
    where, words = argv[0], argv[1:]
    if where not in verbs:
        raise UsageError(f"no place {where!r} to launch to (the places are {', '.join(verbs)})")
    cut = words.index("--") if "--" in words else len(words)
    return verbs[where](words[:cut], words[cut + 1 :])


def _parser(platform: str, summary: str) -> CommandParser:
    usage = f"jaxlm launch {platform} EXPERIMENT --workdir D [options] [-- options of jaxlm train]"
    parser = CommandParser(f"launch {platform}", summary, usage=usage)
    parser.add_argument("experiment", metavar="EXPERIMENT", help="module or file.py, with :VARIANT or not")
    parser.add_argument("--workdir", metavar="D", required=True, help="folder of the run, over there")
    parser.add_argument("--name", metavar="NAME", help="of the slice or job (default: the workdir's last part)")
    text = "start again at most so often when the machine ended the run (default: 50)"
    parser.add_argument("--max-restarts", type=int_at_least(0), default=50, metavar="N", help=text)
    parser.add_argument("--dry-run", action="store_true", help="print what would be run or applied, run nothing")
    return parser


def _parse(parser: CommandParser, args: list[str], train_args: list[str]) -> argparse.Namespace:
    """The options, with a name that every one of the three takes, and an experiment that exists and takes `train`."""
    try:
        options = parser.parse(args)
    except UsageError as error:
        raise UsageError(f"{error}; options of `jaxlm train` stand after --") from None
    if re.match(r"\w{2,}:/", options.workdir):
        raise UsageError(f"--workdir {options.workdir}: expected a folder; a bucket is mounted as one (docs/launch.md)")
    name = options.name or re.sub(r"[^a-z0-9]+", "-", Path(options.workdir).name.lower()).strip("-")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,50}[a-z0-9])?", name):
        raise UsageError(f"--name {name!r}: expected lower-case letters, digits and dashes, a letter first, 52 at most")
    options.name, options.experiment = name, experiments.resolve_experiment(options.experiment)
    if train_args:
        check_train_options(options.experiment, train_args)
    return options


def _clone_file(name: str) -> Path:
    if not (CLONE / name).is_file():
        raise UserError(
            f"{CLONE} has no {name}: `jaxlm launch` needs a clone of jaxlm, installed with pip install -e ."
        )
    return CLONE / name


def _run_command(command: Sequence[str], stdin: str | None = None) -> int:
    try:
        code = subprocess.run(command, input=stdin, text=True, check=False).returncode
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not on this machine's PATH: install it, or launch where it is") from None
    return code if code >= 0 else 128 - code


LOCATION_OPTIONS = {
    "--zone": "of Google Cloud (default: that of `gcloud config`)",
    "--project": "likewise",
}

MACHINE_OPTIONS = {
    "--runtime": "version of the machines' image (default: by the type)",
    "--network": "(default: gcloud's)",
    "--subnetwork": "(default: gcloud's)",
    "--valid-until": "give up when no slice came within this time (6h, 2d)",
}


def _launch_tpu(args: list[str], train_args: list[str]) -> int:
    parser = _parser("tpu", "Make a Cloud TPU slice, install jaxlm on it, train there, and see it through.")
    parser.add_argument("--type", required=True, help="v4-8, v5litepod-16, v5p-8, v6e-8, ...")
    for option, text in (LOCATION_OPTIONS | MACHINE_OPTIONS).items():
        parser.add_argument(option, metavar=option.strip("-").upper(), help=text)
    parser.add_argument("--spot", action="store_true", help="cheaper; asked for again when it is taken away")
    parser.add_argument("--internal-ips", action="store_true", help="no external addresses")
    text = "Cloud Storage bucket to keep the run in: a relative workdir then lies there"
    parser.add_argument("--bucket", metavar="BUCKET", help=text)
    parser.add_argument("--detach", action="store_true", help="do not wait for the end, nor ask for a lost slice again")
    options = _parse(parser, args, train_args)
    _check_slice(options)
    script = str(_clone_file("tpu_setup.sh"))
    inside = options.bucket and not options.workdir.startswith("/")
    folder = f"../bucket/{options.workdir}" if inside else options.workdir
    place = (
        _given_options(options, LOCATION_OPTIONS)
        + ["--internal-ips"] * options.internal_ips
        + ["--dry-run"] * options.dry_run
    )
    machine = ["--type", options.type, *_given_options(options, MACHINE_OPTIONS), *["--spot"] * options.spot]
    steps = [
        ["queue", options.name, *machine, "--replace", *place],
        ["setup", options.name, *place, *_given_options(options, {"--bucket": ""})],
        ["run", options.name, *place, "--max-restarts", str(options.max_restarts), "--"],
        ["wait", options.name, *place],
    ]
    steps[2] += ["jaxlm", "train", options.experiment, "--workdir", folder, *train_args]
    code = 0
    for _ in range(1 + options.max_restarts):
        for step in steps[:3] if options.detach else steps:
            if options.dry_run:
                print(f"# {shlex.join(['./tpu_setup.sh', *step])}", flush=True)
            code = _run_command([script, *step])
            if code:
                break
        if code != PREEMPTED:
            break
    return code


def _given_options(options: argparse.Namespace, names: dict[str, str]) -> list[str]:
    values = {name: getattr(options, name.strip("-").replace("-", "_")) for name in names}
    return [word for name, value in values.items() if value for word in (name, value)]


def _check_slice(options: argparse.Namespace) -> None:
    """What would otherwise be found out on the slice, minutes later."""
    hosts = parse_tpu_type(options.type).hosts
    if not options.bucket and not options.workdir.startswith("/") and (hosts > 1 or options.spot):
        why = (
            f"{options.type} has {hosts} hosts, which need one folder for all" if hosts > 1 else "a spot slice is lost"
        )
        why += " with its disk" if hosts == 1 else ""
        raise UsageError(f"{why}: give --bucket, or an absolute --workdir on a disk that outlives the slice")
    where, colon, variant = options.experiment.partition(":")
    file = (experiments.experiment_modules().get(where) or Path(where)).resolve()
    if not file.is_relative_to(CLONE):
        raise UsageError(
            f"{file} is not in {CLONE}, which is what goes to the slice: copy it to {CLONE / 'experiments'}"
        )
    if where.endswith(".py"):
        options.experiment = f"{file.relative_to(CLONE)}{colon}{variant}"


def _launch_slurm(args: list[str], train_args: list[str]) -> int:
    parser = _parser("slurm", "Submit a job that trains, and goes on when it was preempted or ran out of time.")
    parser.add_argument("--nodes", type=int_at_least(1), default=1, metavar="N", help="(default: 1)")
    text = "that many GPUs, and a task for each, on every node (default: 0, and one task)"
    parser.add_argument("--gpus-per-node", type=int_at_least(0), default=0, metavar="N", help=text)
    parser.add_argument("--cpus-per-task", type=int_at_least(1), metavar="N", help="(default: the cluster's)")
    for option, text in {"--time": "limit (12:00:00)", "--partition": "", "--account": ""}.items():
        parser.add_argument(option, metavar=option.strip("-").upper(), help=text)
    text = "one more option of sbatch, as --sbatch=--qos=low; may be repeated"
    parser.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help=text)
    options = _parse(parser, args, train_args)
    tasks = max(options.gpus_per_node, 1)
    command = ["sbatch", f"--job-name={options.name}", f"--nodes={options.nodes}", f"--ntasks-per-node={tasks}"]
    for option in ("gpus_per_node", "cpus_per_task", "time", "partition", "account"):
        if value := getattr(options, option):
            command.append(f"--{option.replace('_', '-')}={value}")
    command += [
        f"--export=ALL,JAXLM_RESTARTS={options.max_restarts}",
        *options.sbatch,
        str(_clone_file("launch/slurm.sbatch")),
    ]
    command += [sys.executable, "-m", "jaxlm", "train", options.experiment, "--workdir", options.workdir, *train_args]
    if options.dry_run:
        print(shlex.join(command))
        return 0
    return _run_command(command)


def _launch_gke(args: list[str], train_args: list[str]) -> int:
    parser = _parser("gke", "Train on TPU slices of a Kubernetes cluster with JobSet; relative paths lie on the claim.")
    parser.add_argument("--type", required=True, help="v4-8, v5litepod-16, v5p-8, v6e-8, ...")
    parser.add_argument("--image", required=True, help="container image with jaxlm (launch/Dockerfile)")
    parser.add_argument("--claim", required=True, help="persistent volume claim that every host can write")
    parser.add_argument("--topology", default="", metavar="AxB", help="(default: the usual one of the type)")
    parser.add_argument("--num-slices", type=int_at_least(1), default=1, metavar="N", help="(default: 1)")
    parser.add_argument("--namespace", default="default", help="(default: default)")
    parser.add_argument("--spot", action="store_true", help="on spot machines")
    options = _parse(parser, args, train_args)
    manifest = _jobset_manifest(
        options, ["jaxlm", "train", options.experiment, "--workdir", options.workdir, *train_args]
    )
    if options.dry_run:
        print(manifest, end="")
        return 0
    return _run_command(["kubectl", "apply", "-f", "-"], manifest)


def _jobset_manifest(options: argparse.Namespace, command: list[str]) -> str:
    """launch/jobset.yaml, filled in. Values are JSON, which YAML reads as it is."""
    shape = parse_tpu_type(options.type, options.topology)
    if shape.generation not in GKE_ACCELERATORS or not shape.topology:
        known = "the type is not on GKE" if shape.generation not in GKE_ACCELERATORS else "give --topology"
        raise UsageError(f"how the {shape.chips} chips of {options.type} are wired is not known here: {known}")
    nodes = {"cloud.google.com/gke-tpu-accelerator": GKE_ACCELERATORS[shape.generation]}
    nodes["cloud.google.com/gke-tpu-topology"] = shape.topology
    if options.spot:
        nodes["cloud.google.com/gke-spot"] = "true"
    chips = shape.chips // shape.hosts
    values = {"name": options.name, "namespace": options.namespace, "image": options.image, "claim": options.claim}
    values |= {"restarts": options.max_restarts, "slices": options.num_slices, "hosts": shape.hosts, "chips": chips}
    # Kubernetes would put variables of the pod in the place of $(NAME).
    values |= {"command": [word.replace("$(", "$$(") for word in command], "nodes": nodes}
    filled = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    return Template(_clone_file("launch/jobset.yaml").read_text(encoding="utf-8")).substitute(filled)
