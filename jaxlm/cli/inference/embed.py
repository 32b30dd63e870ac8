"""`jaxlm embed D < in`: a vector for each line, or one for each of its tokens.

With --out FILE.npy the vectors are an array (lines, D). With FILE.npz they are "vectors" and, with --pooling token, the
array (tokens, D) of all lines, "offsets" (the first row of each line) and "pieces" (the token of each row). Without
--out they are JSON lines: {"text", "vector"}, or {"text", "pieces", "vectors"}. A blank line has the vector of the
special tokens.
"""

from pathlib import Path
from typing import Any

from jaxlm.cli import output
from jaxlm.cli.options import load_pipeline, workdir_parser
from jaxlm.cli.parser import COMMANDS, CommandParser, UsageError, choice_of
from jaxlm.cli.stdin_lines import MEGABYTE, StdinLines, add_stdin_options, count_truncated


def main(argv: list[str]) -> int:
    """Read standard input to its end, write the vectors."""
    options = _parser().parse(argv)
    suffix = options.out.suffix if options.out else ""
    if options.out and suffix not in (".npy", ".npz"):
        raise UsageError(f"--out {options.out}: expected a name that ends in .npy or .npz")
    if suffix == ".npy" and options.pooling == "token":
        raise UsageError("--pooling token gives lines of different lengths: write them to a .npz file or as JSON lines")
    pipeline = load_pipeline(options)

    from jaxlm.inference.embed import EVAL_BATCH_TOKENS, token_strings, unwrap_trunk
    from jaxlm.models.finetune_heads import is_encoder
    from jaxlm.models.properties import max_input_positions

    source = StdinLines(options.on_bad_line, max_line_bytes=options.max_line_mb * MEGABYTE)
    clock, num_truncated = output.Clock(), 0
    limit, batch_tokens = max_input_positions(pipeline.model), options.batch_tokens or EVAL_BATCH_TOKENS
    has_markers = is_encoder(unwrap_trunk(pipeline).model)
    all_vectors: list[Any] = []
    all_pieces: list[list[str]] = []
    for lines in source.batches():
        vectors = pipeline.embed(lines, options.pooling, options.layer, batch_tokens=batch_tokens)
        num_truncated += count_truncated(lines, pipeline.tokenizer, limit, has_markers) if limit else 0
        pieces = [token_strings(pipeline, line) if options.pooling == "token" else [] for line in lines]
        if options.out:
            all_vectors.extend(vectors)
            all_pieces.extend(pieces)
            continue
        for line, vector, names in zip(lines, vectors, pieces, strict=True):
            record = {"pieces": names, "vectors": vector.tolist()} if names else {"vector": vector.tolist()}
            output.write_line(output.json_line({"text": line, **record}))
    if options.out:
        _save_vectors(options.out, all_vectors, all_pieces if options.pooling == "token" else None)
    if num_truncated:
        read = f"the {limit} tokens that the model reads and were cut there"
        output.print_stderr(f"{num_truncated:,} lines were longer than {read}")
    output.print_stderr(clock.summary(source.num_lines))
    return 0


def _parser() -> CommandParser:
    parser = workdir_parser("embed", COMMANDS["embed"] + ": one vector per line of standard input, in order")
    text = "pooling over the positions of a line: first, last, mean (the default) or max; token: one vector per token"
    pooling = choice_of("jaxlm.inference.embed", "POOLING_MODES", "mean")
    parser.add_argument("--pooling", type=pooling, default="mean", metavar="P", help=text)
    text = "layer whose output is pooled; 0 is the embeddings (default: the last)"
    parser.add_int("--layer", text, minimum=0, metavar="K")
    parser.add_argument("--out", type=Path, metavar="FILE", help="FILE.npy or FILE.npz (default: JSON lines on stdout)")
    add_stdin_options(parser)
    return parser


def _save_vectors(path: Path, vectors: list[Any], pieces: list[list[str]] | None) -> None:
    """An .npy or .npz with a vector for each line; with `pieces` a vector for each token and the offsets of lines."""
    import numpy as np

    if path.suffix == ".npy":
        np.save(path, np.stack(vectors) if vectors else np.zeros((0, 0), np.float32))
    elif pieces is None:
        np.savez(path, vectors=np.stack(vectors))
    else:
        offsets = np.cumsum([0, *map(len, vectors)])
        names = np.array([name for line in pieces for name in line])
        np.savez(path, vectors=np.concatenate(vectors), offsets=offsets, pieces=names)
