"""What tests of processes have other processes do. Imports nothing heavy, so that they start at once."""

from __future__ import annotations

import os
import signal
import struct
import sys
import time

from bench.system import worker
from methods import console


def finds(line, number):
    line.alive("while it counted")
    for index in range(number):
        line.send({"points": [index]})


def dies(line, number):
    finds(line, number)
    os.kill(os.getpid(), signal.SIGKILL)


def leaves(line):
    os._exit(7)


def hangs(line):
    line.send({"pid": os.getpid()})
    line.alive("while it slept")
    time.sleep(600)


def fails(line):
    line.alive("while it divided")
    raise ZeroDivisionError("by nothing\nand more")


def runs_out(line):
    raise MemoryError


def counts(line):
    """Tells its process number, and how many tasks have been done at this desk."""
    line.cache["tasks"] = line.cache.get("tasks", 0) + 1
    line.send({"pid": os.getpid(), "tasks": line.cache["tasks"]})


def knows(line, module):
    line.send({"knows": module in sys.modules})


def draws(line):
    """Tell whether a progress bar is drawn."""
    with console.make_bar(1, "drawing", "line") as bar:
        line.send({"quiet": bar.disable})


def hears_interrupts(line):
    line.send({"hears": signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())})


def naps(line, seconds):
    time.sleep(seconds)


def asks(line):
    line.send({"got": line.ask().recv()})


def times(line, *arguments):
    """Do what times a cell, and tell what it has imported for that, and how many models it has copied."""
    from bench.speed import timed_cell

    before, copied, copy = set(sys.modules), [], timed_cell.copy_to_own_memory
    timed_cell.copy_to_own_memory = lambda *models: copy(*models) or copied.extend(models)
    timed_cell._work(line, *arguments)
    line.send({"widths": {"imported": sorted(set(sys.modules) - before), "copied": len(copied)}})


def never_listens(line):
    line.pipe.send(("give", None))
    time.sleep(600)


def stops_in_a_message(line):
    """Announces 100 bytes, writes 10 of them, and waits."""
    os.write(line.pipe.fileno(), struct.pack("!i", 100) + bytes(10))
    time.sleep(600)


def sleeps(line):
    """Tells its process number and whether it is deaf to interrupts, and waits."""
    line.send({"pid": os.getpid(), "deaf": signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())})
    time.sleep(600)


def nests(line):
    """Has a process of its own, which tells its number and sleeps."""
    line.alive("while its child slept")
    worker.run(sleeps, (), limits=worker.Limits(), hear=line.send)


if __name__ == "__main__":  # a parent for the tests that interrupt or kill one
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored when the tests run in the background
    said = {"hear": lambda found: print(found["pid"], found["deaf"], flush=True)}
    import speed_children  # since a worker does not import what is the main module here

    worker.run(speed_children.sleeps, (), limits=worker.Limits(), **said)
    sys.exit("the child came to its end")
