"""An experiment on two lines of a file, for commands that take an experiment."""

from pathlib import Path

from jaxlm import Bytes, Decoder, Experiment, InstructionTuning, MessagesFile


def experiment() -> Experiment:
    """One dialogue of four turns."""
    rows = MessagesFile(str(Path(__file__).with_suffix(".json")))
    return Experiment(InstructionTuning(rows, rows, rows), Decoder(260, 8, 2, 8, 1), Bytes(), best_metric="valid/nll")
