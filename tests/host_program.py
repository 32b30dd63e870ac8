"""What each of two processes does in the tests of hosts: they meet, agree, add up at every step, and one has a mishap.

Arguments: the process's number, the port where they meet, the mishap. What is printed is JSON.
"""

import json
import os
import signal
import sys
import time

import jax
import numpy as np

from jaxlm import hosts
from jaxlm.errors import UserError
from jaxlm.parallel import data_mesh
from jaxlm.placing import put_batch, row_share
from jaxlm.train.stopping import asked_to_stop, signals

number, port, mishap = int(sys.argv[1]), sys.argv[2], sys.argv[3]


def fails_on_the_last() -> int:
    if number == 1:
        raise UserError("no data here")
    return 3


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


hosts.connect(hosts.Peers(f"127.0.0.1:{port}", 2, number))
mesh, total = data_mesh(), jax.jit(lambda x: x.sum())
say(share=row_share(mesh), met=hosts.check("config", {"jax": jax.__version__}))
say(dealt=hosts.dealt(["a", "b", "c"], lambda items: [[item, number] for item in items]))
say(long=[len(text) for text in hosts.exchange("x" * (3_000_000 + number))], first=hosts.from_first(number))
try:
    hosts.together(fails_on_the_last)
except hosts.Agreed as error:
    say(agreed=str(error))
with hosts.as_one(), signals() as stopped:
    for step in range(1, 300):
        time.sleep(0.02)
        assert float(total(put_batch(np.full((1, 2), number + 1.0, np.float32), mesh))) == 6.0
        if number == 1 and step == 20:
            if mishap in ("SIGTERM", "SIGINT", "SIGKILL"):
                os.kill(os.getpid(), getattr(signal, mishap))
            if mishap == "full disk":
                raise UserError("the disk is full")
        if reason := asked_to_stop(stopped, step, mishap == "clock" and number == 0 and step > 20):
            say(stopped=reason, step=step)
            break
