"""`jaxlm audit D`: the report on a corpus; --forget takes documents out, --document finds where a run read one."""

from pathlib import Path
from typing import Any

from jaxlm.cli import output
from jaxlm.cli.parser import COMMANDS, CommandParser, UsageError
from jaxlm.filesystem import write_atomic


def main(argv: list[str]) -> int:
    """Print one JSON object."""
    parser = CommandParser("audit", COMMANDS["audit"])
    parser.add_argument("folder", type=Path, metavar="D", help="a corpus; with --document the workdir of a run")
    parser.add_argument("--forget", metavar="FILE", help="remove the documents of this opt-out list from the corpus")
    parser.add_flag("--near", "with --forget: also near duplicates of its texts")
    parser.add_argument("--date", default="", metavar="DATE", help="with --forget: the date to note")
    parser.add_argument("--document", metavar="ID", help="print the steps at which the run read this document")
    options = parser.parse(argv)
    if options.forget and options.document:
        raise UsageError("--forget is for a corpus, --document for a run: choose one")
    if options.document:
        result: dict[str, Any] = _steps_of_document(options.folder, options.document)
    elif options.forget:
        from jaxlm.corpora.forget import forget
        from jaxlm.corpora.opt_out import OptOut

        result = forget(options.folder, OptOut(options.forget, options.date), options.near)
    else:
        from jaxlm.corpora.audit import audit_corpus, render_audit

        result = audit_corpus(options.folder)
        write_atomic(options.folder / "audit.html", render_audit(result, f"Corpus {options.folder.name}"))
        output.print_stderr(f"page: {options.folder / 'audit.html'}")
    output.write_line(output.json_line(result))
    return 0


def _steps_of_document(folder: Path, document: str) -> dict[str, Any]:
    """The steps, from 1, at which a run on shards read a document; exact, since batch k is a function of its number."""
    import numpy as np

    from jaxlm.corpora.passes import read_lines_of
    from jaxlm.data.batching.mixture import make_batches
    from jaxlm.data.files import ReadStats
    from jaxlm.data.sources.text import Shards
    from jaxlm.errors import UserError
    from jaxlm.workdir import Workdir

    workdir = Workdir(folder)
    experiment, tokenizer = workdir.read_experiment(), workdir.load_tokenizer()
    train: Any = getattr(experiment.task, "train", None)
    if not isinstance(train, Shards) or train.max_document_tokens:
        raise UserError(
            f"{folder} was not trained on whole documents of shards (Shards(D)): it knows no documents by id"
        )
    tables = [np.load(file)["id"] for file in sorted(train.folder.glob("*.docs.npy"))]
    ids = np.concatenate([np.zeros(0, "S16"), *tables])
    places = np.flatnonzero(ids == np.array(bytes.fromhex(document), "S16"))
    if not len(places):
        raise UserError(f"{train.folder} has no document {document}: ids are in NNNNN.docs.npy, and in the parts")
    columns = experiment.task.encode_train(tokenizer, workdir.train_data, ReadStats())
    batches: Any = make_batches(experiment.batching, columns, experiment.seed, tokenizer.special)
    with workdir.open_checkpoints(experiment, read_only=True) as checkpoints:
        last = max(checkpoints.steps(), default=0)
    first = max((line["after_step"] for line in read_lines_of(workdir.data_changes_file)), default=0)
    steps = [k + 1 for k in range(first, last) if batches.reads(k, int(places[0]))]
    known = {"steps_done": last} | ({"after_changed_data": first} if first else {})
    return {"document": document, "row": int(places[0])} | known | {"steps": steps}
