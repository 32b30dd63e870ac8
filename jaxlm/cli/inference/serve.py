"""`jaxlm serve D`: an HTTP server of a trained model, and a page to try it."""

import importlib.util
import socket

from jaxlm.cli import output
from jaxlm.cli.options import experiment_with_options, load_pipeline, workdir_parser
from jaxlm.cli.parser import COMMANDS, CommandParser, UsageError, positive_number
from jaxlm.errors import UserError


def main(argv: list[str]) -> int:
    """Load the model and answer requests until SIGTERM or Ctrl-C."""
    options = _parser().parse(argv)
    if None in map(importlib.util.find_spec, ("starlette", "uvicorn")):
        raise UserError("serve needs Starlette and uvicorn: pip install 'jaxlm[serve]'")
    if options.host not in ("127.0.0.1", "localhost", "::1") and not options.token:
        raise UsageError(f"--host {options.host} lets other machines in: give --token TEXT too")
    try:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listener = socket.create_server((options.host, options.port), family=family)
    except OSError as error:
        raise UserError(f"cannot listen on {options.host}, port {options.port}: {error.strerror or error}") from None
    clock = output.Clock()
    pipeline = load_pipeline(options, experiment_with_options(options))
    from jaxlm.serving.answers import Answers
    from jaxlm.serving.app import App, serve
    from jaxlm.serving.fields import Limits

    limits = Limits(options.max_body_kb * 1000, options.max_texts, options.max_requests, options.timeout)
    answers = Answers(pipeline, options.workdir.resolve().name, limits, options.batch)
    host = f"[{options.host}]" if ":" in options.host else options.host
    output.print_stderr(f"checkpoints {pipeline.steps} loaded in {clock.seconds:.1f} s: {', '.join(answers.endpoints)}")
    output.print_stderr(f"serving at http://{host}:{listener.getsockname()[1]}; Ctrl-C ends")
    serve(App(answers, limits, options.token), listener)
    return 0


def _parser() -> CommandParser:
    parser = workdir_parser("serve", COMMANDS["serve"], "model")
    parser.add_argument("--host", default="127.0.0.1", metavar="H", help="address to listen on (default: 127.0.0.1)")
    parser.add_int("--port", "port to listen on, 0: any that is free", minimum=0, default=8000, maximum=65535)
    parser.add_argument("--token", metavar="TEXT", help="token that requests must send; other hosts need one")
    parser.add_int("--batch", "lines that are translated at a time, for all requests together", default=8)
    parser.add_int("--max-requests", "requests in progress at most, waiting ones included", default=256)
    parser.add_int("--max-texts", "texts of a request at most", default=64)
    parser.add_int("--max-body-kb", "kilobytes of a request at most", default=256)
    parser.add_argument("--timeout", type=positive_number, default=60, metavar="S", help="seconds of an answer at most")
    return parser
