"""`jaxlm embed D < in`: a vector for each line, or one for each of its tokens.

With --out FILE.npy the vectors are an array (lines, D). With FILE.npz they are "vectors" and, with --pooling token, the
array (tokens, D) of all lines, "offsets" where each line begins and "pieces" what stands at each place. Without --out
they are JSON lines: {"text", "vector"}, or {"text", "pieces", "vectors"}. A blank line has the vector of the marks.
"""

from pathlib import Path
from typing import Any

from jaxlm.cli import output
from jaxlm.cli.options import load_trained, workdir_parser
from jaxlm.cli.parser import COMMANDS, CommandParser, UsageError, int_at_least
from jaxlm.cli.stdin_lines import StdinLines, count_truncated

POOLING_CHOICES = ("token", "first", "mean", "max", "last")
"""As `jaxlm.inference.embed` has them; here for an error without JAX."""


def main(argv: list[str]) -> int:
    """Read standard input to its end, write the vectors."""
    options = _parser().parse(argv)
    kind = options.out.suffix if options.out else ""
    if options.out and kind not in (".npy", ".npz"):
        raise UsageError(f"--out {options.out}: expected a name that ends in .npy or .npz")
    if kind == ".npy" and options.pooling == "token":
        raise UsageError(
            "--pooling token gives lines of different lengths: write them to a .npz file, or as JSON lines"
        )
    trained = load_trained(options)

    from jaxlm.inference.embed import EVAL_BATCH_TOKENS, TextEmbedder, token_strings
    from jaxlm.models.properties import max_input_positions

    embed = TextEmbedder(options.pooling, options.layer, options.batch_tokens or EVAL_BATCH_TOKENS)
    source, clock, cut = StdinLines(options.on_bad_line), output.Clock(), 0
    limit = max_input_positions(trained.model)
    found: list[Any] = []
    names: list[list[str]] = []
    for lines in source.batches():
        vectors = embed(trained, lines)
        cut += count_truncated(lines, trained.tokenizer, limit, with_markers=True) if limit else 0
        told = [token_strings(trained, line) if options.pooling == "token" else [] for line in lines]
        if options.out:
            found, names = found + vectors, names + told
            continue
        for line, vector, own in zip(lines, vectors, told, strict=True):
            record = {"pieces": own, "vectors": vector.tolist()} if own else {"vector": vector.tolist()}
            output.write_line(output.json_line({"text": line, **record}))
    if options.out:
        _save_vectors(options.out, found, names if options.pooling == "token" else None)
    if cut:
        output.print_stderr(
            f"{cut:,} lines were longer than the {limit} tokens that the model reads and were cut there"
        )
    output.print_stderr(clock.summary(source.num_lines))
    return 0


def _parser() -> CommandParser:
    parser = workdir_parser("embed", COMMANDS["embed"] + ": N lines in, N vectors out, in order.")
    text = "one vector a line: of the first or the last position, or the mean or the largest of all; or one a token"
    parser.add_argument("--pooling", choices=POOLING_CHOICES, default="mean", help=text + " (default: mean)")
    text = "the layer after which it is read; 0 is the embeddings (default: the last)"
    parser.add_argument("--layer", type=int_at_least(0), metavar="K", help=text)
    parser.add_argument("--out", type=Path, metavar="FILE", help="FILE.npy or FILE.npz (default: JSON lines on stdout)")
    text = "a line that is not UTF-8: stop (the default), or put U+FFFD for its bad bytes"
    parser.add_argument("--on-bad-line", choices=("error", "replace"), default="error", help=text)
    return parser


def _save_vectors(path: Path, vectors: list[Any], names: list[list[str]] | None) -> None:
    """An .npy with one vector a line, or an .npz; with `names` of tokens, vectors of tokens and where lines begin."""
    import numpy as np

    if path.suffix == ".npy":
        np.save(path, np.stack(vectors) if vectors else np.zeros((0, 0), np.float32))
    elif names is None:
        np.savez(path, vectors=np.stack(vectors))
    else:
        offsets = np.cumsum([0, *map(len, vectors)])
        pieces = np.array([name for line in names for name in line])
        np.savez(path, vectors=np.concatenate(vectors), offsets=offsets, pieces=pieces)
