"""`jaxlm embed D < in`: a vector for each line, or one for each of its tokens.

With --out FILE.npy the vectors are an array (lines, D). With FILE.npz they are "vectors" and, with --pool token, the
array (tokens, D) of all lines, "offsets" where each line begins and "pieces" what stands at each place. Without --out
they are JSON lines: {"text", "vector"}, or {"text", "pieces", "vectors"}. A blank line has the vector of the marks.
"""

from pathlib import Path
from typing import Any

from jaxlm.cli import output
from jaxlm.cli.lines import Input, beyond
from jaxlm.cli.trained import open_run, workdir_parser
from jaxlm.cli.usage import VERBS, Parser, Usage, whole

POOLS = ("token", "first", "mean", "max", "last")
"""As `jaxlm.tasks.embedding` has them; here for an error without JAX."""


def main(argv: list[str]) -> int:
    """Read standard input to its end, write the vectors."""
    options = _parser().parse(argv)
    kind = options.out.suffix if options.out else ""
    if options.out and kind not in (".npy", ".npz"):
        raise Usage(f"--out {options.out}: expected a name that ends in .npy or .npz")
    if kind == ".npy" and options.pool == "token":
        raise Usage("--pool token gives lines of different lengths: write them to a .npz file, or as JSON lines")
    trained = open_run(options)
    import numpy as np

    from jaxlm.models.reach import reach
    from jaxlm.tasks.embedding import TOKENS, Embedding, pieces

    embed = Embedding(options.pool, options.layer, options.batch_tokens or TOKENS)
    parts = trained.experiment.model, trained.params, trained.tokenizer
    source, clock, cut = Input(options.on_bad_line), output.Clock(), 0
    limit = reach(trained.experiment.model)
    found: list[Any] = []
    names: list[list[str]] = []
    for lines in source.chunks():
        vectors = embed(*parts, lines)
        cut += beyond(lines, trained.tokenizer, limit, marked=True) if limit else 0
        told = [pieces(*parts, line) if options.pool == "token" else [] for line in lines]
        if options.out:
            found, names = found + vectors, names + told
            continue
        for line, vector, own in zip(lines, vectors, told, strict=True):
            record = {"pieces": own, "vectors": vector.tolist()} if own else {"vector": vector.tolist()}
            output.emit(output.to_json({"text": line, **record}))
    if kind == ".npy":
        np.save(options.out, np.stack(found) if found else np.zeros((0, 0), np.float32))
    elif kind == ".npz" and options.pool == "token":
        offsets = np.cumsum([0, *map(len, found)])
        flat = np.array([name for own in names for name in own])
        np.savez(options.out, vectors=np.concatenate(found), offsets=offsets, pieces=flat)
    elif kind == ".npz":
        np.savez(options.out, vectors=np.stack(found))
    if cut:
        output.note(f"{cut:,} lines were longer than the {limit} tokens that the model reads and were cut there")
    output.note(clock.sentence(source.count))
    return 0


def _parser() -> Parser:
    parser = workdir_parser("embed", VERBS["embed"] + ": N lines in, N vectors out, in order.")
    text = "one vector a line: of the first or the last position, or the mean or the largest of all; or one a token"
    parser.add_argument("--pool", choices=POOLS, default="mean", help=text + " (default: mean)")
    text = "the layer after which it is read; 0 is the embeddings (default: the last)"
    parser.add_argument("--layer", type=whole(0), metavar="K", help=text)
    parser.add_argument("--out", type=Path, metavar="FILE", help="FILE.npy or FILE.npz (default: JSON lines on stdout)")
    text = "a line that is not UTF-8: stop (the default), or put U+FFFD for its bad bytes"
    parser.add_argument("--on-bad-line", choices=("error", "replace"), default="error", help=text)
    return parser
