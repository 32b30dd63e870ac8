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

import jaxlm
from jaxlm.cli import catalogue
from jaxlm.cli.tpu_slice import GKE, tpu_slice
from jaxlm.cli.train import check
from jaxlm.cli.usage import VERBS, Parser, Usage, whole
from jaxlm.errors import UserError

CLONE = Path(jaxlm.__file__).resolve().parents[1]
PREEMPTED = 75
"""The exit code of `tpu_setup.sh wait` when the slice, not the run, has ended."""


def main(argv: list[str]) -> int:
    """Launch, or print how; the exit code of what was called."""
    verbs = {"tpu": _tpu, "slurm": _slurm, "gke": _gke}
    if not argv or argv[0] in ("-h", "--help"):
        text = f"usage: jaxlm launch {'|'.join(verbs)} EXPERIMENT --workdir D [options] [-- options of jaxlm train]"
        if not argv:
            raise Usage(f"expected a place to launch to: {', '.join(verbs)} (`jaxlm launch tpu --help`, ...)")
        print(f"{text}\n\n{VERBS['launch']}. `jaxlm launch tpu --help` and so on have the options.")
        return 0
    where, words = argv[0], argv[1:]
    if where not in verbs:
        raise Usage(f"no place {where!r} to launch to (the places are {', '.join(verbs)})")
    cut = words.index("--") if "--" in words else len(words)
    return verbs[where](words[:cut], words[cut + 1 :])


def _parser(where: str, summary: str) -> Parser:
    usage = f"jaxlm launch {where} EXPERIMENT --workdir D [options] [-- options of jaxlm train]"
    parser = Parser(f"launch {where}", summary, usage=usage)
    parser.add_argument("experiment", metavar="EXPERIMENT", help="module or file.py, with :VARIANT or not")
    parser.add_argument("--workdir", metavar="D", required=True, help="folder of the run, over there")
    parser.add_argument("--name", metavar="NAME", help="of the slice or job (default: the workdir's last part)")
    text = "start again at most so often when the machine ended the run (default: 50)"
    parser.add_argument("--restarts", type=whole(0), default=50, metavar="N", help=text)
    parser.add_argument("--dry-run", action="store_true", help="print what would be run or applied, run nothing")
    return parser


def _parse(parser: Parser, words: list[str], train: list[str]) -> argparse.Namespace:
    """The options, with a name that every one of the three takes, and an experiment that exists and takes `train`."""
    try:
        options = parser.parse(words)
    except Usage as error:
        raise Usage(f"{error}; options of `jaxlm train` stand after --") from None
    if re.match(r"\w{2,}:/", options.workdir):
        raise Usage(f"--workdir {options.workdir}: expected a folder; a bucket is mounted as one (docs/launch.md)")
    name = options.name or re.sub(r"[^a-z0-9]+", "-", Path(options.workdir).name.lower()).strip("-")
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,50}[a-z0-9])?", name):
        raise Usage(f"--name {name!r}: expected lower-case letters, digits and dashes, a letter first, 52 at most")
    options.name, options.experiment = name, catalogue.resolve(options.experiment)
    if train:
        check(options.experiment, train)
    return options


def _file(name: str) -> Path:
    if not (CLONE / name).is_file():
        raise UserError(
            f"{CLONE} has no {name}: `jaxlm launch` needs a clone of jaxlm, installed with pip install -e ."
        )
    return CLONE / name


def _call(command: Sequence[str], stdin: str | None = None) -> int:
    try:
        code = subprocess.run(command, input=stdin, text=True, check=False).returncode
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not on this machine's PATH: install it, or launch where it is") from None
    return code if code >= 0 else 128 - code


PLACE = {
    "--zone": "of Google Cloud (default: that of `gcloud config`)",
    "--project": "likewise",
}
MACHINE = {
    "--runtime": "version of the machines' image (default: by the type)",
    "--network": "(default: gcloud's)",
    "--subnetwork": "(default: gcloud's)",
    "--valid-until": "give up when no slice came within this time (6h, 2d)",
}


def _tpu(words: list[str], train: list[str]) -> int:
    parser = _parser("tpu", "Make a Cloud TPU slice, install jaxlm on it, train there, and see it through.")
    parser.add_argument("--type", required=True, help="v4-8, v5litepod-16, v5p-8, v6e-8, ...")
    for option, text in (PLACE | MACHINE).items():
        parser.add_argument(option, metavar=option.strip("-").upper(), help=text)
    parser.add_argument("--spot", action="store_true", help="cheaper; asked for again when it is taken away")
    parser.add_argument("--internal-ips", action="store_true", help="no external addresses")
    text = "Cloud Storage bucket to keep the run in: a relative workdir then lies there"
    parser.add_argument("--bucket", metavar="BUCKET", help=text)
    parser.add_argument("--detach", action="store_true", help="do not wait for the end, nor ask for a lost slice again")
    options = _parse(parser, words, train)
    _check_slice(options)
    script = str(_file("tpu_setup.sh"))
    inside = options.bucket and not options.workdir.startswith("/")
    folder = f"../bucket/{options.workdir}" if inside else options.workdir
    place = _given(options, PLACE) + ["--internal-ips"] * options.internal_ips + ["--dry-run"] * options.dry_run
    machine = ["--type", options.type, *_given(options, MACHINE), *["--spot"] * options.spot]
    steps = [
        ["queue", options.name, *machine, "--replace", *place],
        ["setup", options.name, *place, *_given(options, {"--bucket": ""})],
        ["run", options.name, *place, "--restarts", str(options.restarts), "--"],
        ["wait", options.name, *place],
    ]
    steps[2] += ["jaxlm", "train", options.experiment, "--workdir", folder, *train]
    code = 0
    for _ in range(1 + options.restarts):
        for step in steps[:3] if options.detach else steps:
            if options.dry_run:
                print(f"# {shlex.join(['./tpu_setup.sh', *step])}", flush=True)
            code = _call([script, *step])
            if code:
                break
        if code != PREEMPTED:
            break
    return code


def _given(options: argparse.Namespace, names: dict[str, str]) -> list[str]:
    values = {name: getattr(options, name.strip("-").replace("-", "_")) for name in names}
    return [word for name, value in values.items() if value for word in (name, value)]


def _check_slice(options: argparse.Namespace) -> None:
    """What would otherwise be found out on the slice, minutes later."""
    hosts = tpu_slice(options.type).hosts
    if not options.bucket and not options.workdir.startswith("/") and (hosts > 1 or options.spot):
        why = (
            f"{options.type} has {hosts} hosts, which need one folder for all" if hosts > 1 else "a spot slice is lost"
        )
        why += " with its disk" if hosts == 1 else ""
        raise Usage(f"{why}: give --bucket, or an absolute --workdir on a disk that outlives the slice")
    where, colon, variant = options.experiment.partition(":")
    file = (catalogue.modules().get(where) or Path(where)).resolve()
    if not file.is_relative_to(CLONE):
        raise Usage(f"{file} is not in {CLONE}, which is what goes to the slice: copy it to {CLONE / 'experiments'}")
    if where.endswith(".py"):
        options.experiment = f"{file.relative_to(CLONE)}{colon}{variant}"


def _slurm(words: list[str], train: list[str]) -> int:
    parser = _parser("slurm", "Submit a job that trains, and goes on when it was preempted or ran out of time.")
    parser.add_argument("--nodes", type=whole(1), default=1, metavar="N", help="(default: 1)")
    text = "that many GPUs, and a task for each, on every node (default: 0, and one task)"
    parser.add_argument("--gpus-per-node", type=whole(0), default=0, metavar="N", help=text)
    parser.add_argument("--cpus-per-task", type=whole(1), metavar="N", help="(default: the cluster's)")
    for option, text in {"--time": "limit (12:00:00)", "--partition": "", "--account": ""}.items():
        parser.add_argument(option, metavar=option.strip("-").upper(), help=text)
    text = "one more option of sbatch, as --sbatch=--qos=low; may be repeated"
    parser.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help=text)
    options = _parse(parser, words, train)
    tasks = max(options.gpus_per_node, 1)
    command = ["sbatch", f"--job-name={options.name}", f"--nodes={options.nodes}", f"--ntasks-per-node={tasks}"]
    for option in ("gpus_per_node", "cpus_per_task", "time", "partition", "account"):
        if value := getattr(options, option):
            command.append(f"--{option.replace('_', '-')}={value}")
    command += [f"--export=ALL,JAXLM_RESTARTS={options.restarts}", *options.sbatch, str(_file("launch/slurm.sbatch"))]
    command += [sys.executable, "-m", "jaxlm", "train", options.experiment, "--workdir", options.workdir, *train]
    if options.dry_run:
        print(shlex.join(command))
        return 0
    return _call(command)


def _gke(words: list[str], train: list[str]) -> int:
    parser = _parser("gke", "Train on TPU slices of a Kubernetes cluster with JobSet; relative paths lie on the claim.")
    parser.add_argument("--type", required=True, help="v4-8, v5litepod-16, v5p-8, v6e-8, ...")
    parser.add_argument("--image", required=True, help="container image with jaxlm (launch/Dockerfile)")
    parser.add_argument("--claim", required=True, help="persistent volume claim that every host can write")
    parser.add_argument("--topology", default="", metavar="AxB", help="(default: the usual one of the type)")
    parser.add_argument("--slices", type=whole(1), default=1, metavar="N", help="(default: 1)")
    parser.add_argument("--namespace", default="default", help="(default: default)")
    parser.add_argument("--spot", action="store_true", help="on spot machines")
    options = _parse(parser, words, train)
    manifest = _manifest(options, ["jaxlm", "train", options.experiment, "--workdir", options.workdir, *train])
    if options.dry_run:
        print(manifest, end="")
        return 0
    return _call(["kubectl", "apply", "-f", "-"], manifest)


def _manifest(options: argparse.Namespace, command: list[str]) -> str:
    """launch/jobset.yaml, filled in. Values are JSON, which YAML reads as it is."""
    shape = tpu_slice(options.type, options.topology)
    if shape.generation not in GKE or not shape.topology:
        known = "the type is not on GKE" if shape.generation not in GKE else "give --topology"
        raise Usage(f"how the {shape.chips} chips of {options.type} are wired is not known here: {known}")
    nodes = {"cloud.google.com/gke-tpu-accelerator": GKE[shape.generation]}
    nodes["cloud.google.com/gke-tpu-topology"] = shape.topology
    if options.spot:
        nodes["cloud.google.com/gke-spot"] = "true"
    chips = shape.chips // shape.hosts
    values = {"name": options.name, "namespace": options.namespace, "image": options.image, "claim": options.claim}
    values |= {"restarts": options.restarts, "slices": options.slices, "hosts": shape.hosts, "chips": chips}
    # Kubernetes would put variables of the pod in the place of $(NAME).
    values |= {"command": [word.replace("$(", "$$(") for word in command], "nodes": nodes}
    filled = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    return Template(_file("launch/jobset.yaml").read_text(encoding="utf-8")).substitute(filled)
