"""`jaxlm launch tpu|slurm|gke EXPERIMENT --workdir D`: run `jaxlm train` on other machines.

It checks the options, fills in the files of `launch/` in a clone of jaxlm, and calls them or `tpu_setup.sh`. The
words after `--` are the options of `jaxlm train`; they are checked before anything is launched. See docs/launch.md.
"""

import argparse
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from jaxlm.cli import experiments
from jaxlm.cli.parser import COMMANDS, CommandParser, UsageError
from jaxlm.cli.training.train import check_train_options
from jaxlm.errors import UserError

CLONE = Path(__file__).resolve().parents[3]

PREEMPTED = 75
"""The exit code of `tpu_setup.sh wait` if the slice was lost before the run ended."""


def main(argv: list[str]) -> int:
    """Launch, or print the commands. Returns the exit code of the called command."""
    platforms = {"tpu": _launch_tpu, "slurm": _launch_slurm, "gke": _launch_gke}
    if not argv:
        raise UsageError(f"expected a platform: {', '.join(platforms)} (`jaxlm launch tpu --help` lists its options)")
    platform, arguments = argv[0], argv[1:]
    if platform in ("-h", "--help"):
        usage = (
            f"usage: jaxlm launch {'|'.join(platforms)} EXPERIMENT --workdir D [options] [-- options of jaxlm train]"
        )
        print(f"{usage}\n\n{COMMANDS['launch']}\n\n`jaxlm launch tpu --help` lists the options of a platform.")
        return 0
    if platform not in platforms:
        raise UsageError(f"no platform {platform!r} (the platforms are {', '.join(platforms)})")
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return platforms[platform](arguments[:end], arguments[end + 1 :])


def _parser(platform: str, summary: str) -> CommandParser:
    usage = f"jaxlm launch {platform} EXPERIMENT --workdir D [options] [-- options of jaxlm train]"
    parser = CommandParser(f"launch {platform}", summary, usage=usage)
    parser.add_argument("experiment", metavar="EXPERIMENT", help="module or file.py, optionally :VARIANT")
    parser.add_argument("--workdir", metavar="D", required=True, help="folder of the run, on the slice or cluster")
    parser.add_argument("--name", metavar="NAME", help="name of the slice or job (default: last part of the workdir)")
    parser.add_int("--max-restarts", "maximum number of restarts after a machine ended the run", minimum=0, default=50)
    parser.add_flag("--dry-run", "print the commands or the manifest, run nothing")
    return parser


def _parse(parser: CommandParser, args: list[str], train_args: list[str]) -> argparse.Namespace:
    """The options, with a name that is valid on all platforms. Raises UsageError for an invalid command."""
    try:
        options = parser.parse(args)
    except UsageError as error:
        raise UsageError(f"{error}; put the options of `jaxlm train` after --") from None
    if re.match(r"\w{2,}:/", options.workdir):
        raise UsageError(f"--workdir {options.workdir}: expected a folder; mount a bucket as a folder (docs/launch.md)")
    name = options.name or re.sub(r"[^a-z0-9]+", "-", Path(options.workdir).name.lower()).strip("-")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,50}[a-z0-9])?", name):
        expected = "expected at most 52 lower-case letters, digits and dashes, the first a letter"
        raise UsageError(f"--name {name!r}: {expected}")
    options.name, options.experiment = name, experiments.resolve_experiment(options.experiment)
    if train_args:
        check_train_options(options.experiment, train_args)
    return options


def _clone_file(name: str) -> Path:
    if not (CLONE / name).is_file():
        needed = "`jaxlm launch` needs a clone of jaxlm, installed with pip install -e ."
        raise UserError(f"{CLONE} has no {name}: {needed}")
    return CLONE / name


def _run_command(command: Sequence[str], stdin: str | None = None) -> int:
    try:
        code = subprocess.run(command, input=stdin, text=True, check=False).returncode
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not on the PATH: install it, or launch from a machine that has it") from None
    return code if code >= 0 else 128 - code


LOCATION_OPTIONS = {
    "--zone": "Google Cloud zone (default: that of `gcloud config`)",
    "--project": "Google Cloud project (default: that of `gcloud config`)",
}

MACHINE_OPTIONS = {
    "--runtime": "software version of the TPU machines (default: depends on --type)",
    "--network": "Google Cloud network (default: that of gcloud)",
    "--subnetwork": "Google Cloud subnetwork (default: that of gcloud)",
    "--valid-until": "give up if no slice is granted within this time (6h, 2d)",
}


def _launch_tpu(args: list[str], train_args: list[str]) -> int:
    parser = _parser("tpu", "create a Cloud TPU slice, install jaxlm on it, and train there until the run ends")
    parser.add_argument("--type", required=True, help="accelerator type: v4-8, v5litepod-16, v5p-8, v6e-8, ...")
    for option, text in (LOCATION_OPTIONS | MACHINE_OPTIONS).items():
        parser.add_argument(option, metavar=option.strip("-").upper(), help=text)
    parser.add_flag("--spot", "use a spot slice: cheaper, and requested again after it is preempted")
    parser.add_flag("--internal-ips", "use no external IP addresses")
    text = "Cloud Storage bucket for the run: a relative workdir is then a folder of the bucket"
    parser.add_argument("--bucket", metavar="BUCKET", help=text)
    parser.add_flag("--detach", "do not wait for the end of the run, and do not replace a lost slice")
    options = _parse(parser, args, train_args)
    _check_slice(options)
    script = str(_clone_file("tpu_setup.sh"))
    in_bucket = options.bucket and not options.workdir.startswith("/")
    folder = f"../bucket/{options.workdir}" if in_bucket else options.workdir
    location = _given_options(options, LOCATION_OPTIONS)
    location += ["--internal-ips"] * options.internal_ips + ["--dry-run"] * options.dry_run
    machine = ["--type", options.type, *_given_options(options, MACHINE_OPTIONS), *["--spot"] * options.spot]
    steps = [
        ["queue", options.name, *machine, "--replace", *location],
        ["setup", options.name, *location, *_given_options(options, {"--bucket": ""})],
        ["run", options.name, *location, "--max-restarts", str(options.max_restarts), "--"],
        ["wait", options.name, *location],
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
    """Raises UsageError for mistakes that would otherwise show up on the slice, minutes later."""
    hosts = parse_tpu_type(options.type).hosts
    if not options.bucket and not options.workdir.startswith("/") and (hosts > 1 or options.spot):
        reason = f"{options.type} has {hosts} hosts, which need one folder for all"
        reason = reason if hosts > 1 else "a spot slice is lost with its disk"
        raise UsageError(f"{reason}: give --bucket, or an absolute --workdir on a disk that outlives the slice")
    module, colon, variant = options.experiment.partition(":")
    file = (experiments.experiment_modules().get(module) or Path(module)).resolve()
    if not file.is_relative_to(CLONE):
        raise UsageError(f"{file} is not in {CLONE}, which is copied to the slice: copy it to {CLONE / 'experiments'}")
    if module.endswith(".py"):
        options.experiment = f"{file.relative_to(CLONE)}{colon}{variant}"


def _launch_slurm(args: list[str], train_args: list[str]) -> int:
    parser = _parser("slurm", "submit a job that trains, and that resumes after preemption or the time limit")
    parser.add_int("--nodes", "number of nodes", default=1)
    parser.add_int("--gpus-per-node", "GPUs per node, with one task for each", minimum=0, default=0)
    parser.add_int("--cpus-per-task", "CPUs per task (default: that of the cluster)")
    for option, text in {"--time": "time limit (12:00:00)", "--partition": "partition", "--account": "account"}.items():
        parser.add_argument(option, metavar=option.strip("-").upper(), help=text)
    parser.add_list("--sbatch", "another option of sbatch, such as --sbatch=--qos=low", metavar="OPTION")
    options = _parse(parser, args, train_args)
    tasks = max(options.gpus_per_node, 1)
    command = ["sbatch", f"--job-name={options.name}", f"--nodes={options.nodes}", f"--ntasks-per-node={tasks}"]
    for option in ("gpus_per_node", "cpus_per_task", "time", "partition", "account"):
        if value := getattr(options, option):
            command.append(f"--{option.replace('_', '-')}={value}")
    script = str(_clone_file("launch/slurm.sbatch"))
    command += [f"--export=ALL,JAXLM_RESTARTS={options.max_restarts}", *options.sbatch, script]
    command += [sys.executable, "-m", "jaxlm", "train", options.experiment, "--workdir", options.workdir, *train_args]
    if options.dry_run:
        print(shlex.join(command))
        return 0
    return _run_command(command)


def _launch_gke(args: list[str], train_args: list[str]) -> int:
    text = "train on TPU slices of a Kubernetes cluster with JobSet; relative paths are on the volume of --claim"
    parser = _parser("gke", text)
    parser.add_argument("--type", required=True, help="accelerator type: v4-8, v5litepod-16, v5p-8, v6e-8, ...")
    parser.add_argument("--image", required=True, help="container image with jaxlm (built from launch/Dockerfile)")
    parser.add_argument("--claim", required=True, help="name of a persistent volume claim that every host can write to")
    parser.add_argument("--topology", default="", metavar="AxB", help="topology of a slice (default: that of --type)")
    parser.add_int("--num-slices", "number of slices", default=1)
    parser.add_argument("--namespace", default="default", help="Kubernetes namespace (default: default)")
    parser.add_flag("--spot", "use spot machines")
    options = _parse(parser, args, train_args)
    command = ["jaxlm", "train", options.experiment, "--workdir", options.workdir, *train_args]
    manifest = _jobset_manifest(options, command)
    if options.dry_run:
        print(manifest, end="")
        return 0
    return _run_command(["kubectl", "apply", "-f", "-"], manifest)


def _to_yaml(value: Any) -> str:
    """The value as JSON, which is YAML if the characters that YAML takes for line breaks or refuses are escaped."""
    text = json.dumps(value, ensure_ascii=False)
    if lone := re.search("[\ud800-\udfff]", text):
        raise UsageError(f"{value!r:.60}: the byte {ord(lone[0]) & 0xFF:#x} is not UTF-8, which a manifest must be")
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _jobset_manifest(options: argparse.Namespace, command: list[str]) -> str:
    """launch/jobset.yaml with its placeholders filled in."""
    shape = parse_tpu_type(options.type, options.topology)
    if shape.generation not in GKE_ACCELERATORS or not shape.topology:
        reason = "the type is not on GKE" if shape.generation not in GKE_ACCELERATORS else "give --topology"
        raise UsageError(f"the topology of the {shape.chips} chips of {options.type} is unknown: {reason}")
    nodes = {"cloud.google.com/gke-tpu-accelerator": GKE_ACCELERATORS[shape.generation]}
    nodes["cloud.google.com/gke-tpu-topology"] = shape.topology
    if options.spot:
        nodes["cloud.google.com/gke-spot"] = "true"
    chips = shape.chips // shape.hosts
    values = {"name": options.name, "namespace": options.namespace, "image": options.image, "claim": options.claim}
    values |= {"restarts": options.max_restarts, "slices": options.num_slices, "hosts": shape.hosts, "chips": chips}
    # Kubernetes replaces $(NAME) by an environment variable of the pod, and $$ by $.
    values |= {"command": [word.replace("$", "$$") for word in command], "nodes": nodes}
    filled = {name: _to_yaml(value) for name, value in values.items()}
    return Template(_clone_file("launch/jobset.yaml").read_text(encoding="utf-8")).substitute(filled)


GKE_ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5litepod": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
"""Generation -> its name on GKE, in the label `cloud.google.com/gke-tpu-accelerator`."""

TOPOLOGIES_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")

TOPOLOGIES_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")

DEFAULT_TOPOLOGIES = {"v4": TOPOLOGIES_3D, "v5p": TOPOLOGIES_3D, "v5litepod": TOPOLOGIES_2D, "v6e": TOPOLOGIES_2D}
"""Generation -> default topologies, one for each number of chips."""


@dataclass(frozen=True)
class TPUSlice:
    """`hosts` machines with `chips // hosts` chips each; `topology` is "" if it is unknown.

    The number in a type counts chips for v5e (`v5litepod`) and v6e; for v5p and older types it counts cores, two per
    chip. Sources: the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" of the Cloud TPU documentation.
    """

    generation: str
    chips: int
    hosts: int
    topology: str


def parse_tpu_type(name: str, topology: str = "") -> TPUSlice:
    """The slice of an accelerator type of gcloud (`v5litepod-16`). Raises UserError for an unknown type."""
    match = re.fullmatch(r"(v[234]|v5litepod|v5p|v6e)-([1-9]\d*)", name)
    if match is None:
        hint = f": gcloud names it v5litepod-{name[4:]}" if name.startswith("v5e-") else ""
        raise UserError(f"no TPU type {name!r}{hint} (expected a type such as v4-8, v5litepod-16, v5p-8 or v6e-8)")
    generation, count = match[1], int(match[2])
    is_2d = generation in ("v5litepod", "v6e")
    chips = count if is_2d else count // 2
    default = (shape for shape in DEFAULT_TOPOLOGIES.get(generation, ()) if _num_chips(shape) == chips)
    shape = topology or next(default, "")
    if shape and _num_chips(shape) != chips:
        problem = f"--topology {topology} does not have the {chips} chips of {name}"
        raise UserError(f"{problem}: expected a product of {chips}")
    hosts = 1 if is_2d and chips <= 8 else math.ceil(chips / 4)
    return TPUSlice(generation, chips, hosts, shape)


def _num_chips(topology: str) -> int:
    return math.prod(map(int, re.findall(r"\d+", topology)))
