"""What a program that a model has written may do, and how its process ends."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from bench.system import program_guard, programs
from bench.system.programs import is_passed
from methods.errors import UserError

COMPUTING = """
from collections import Counter
from typing import *
import re, math, heapq
assert Counter("aab").most_common(1) == [("a", 2)]
assert re.sub("a+", "b", "caat") == "cbt" and math.isqrt(17) == 4
"""
REFUSED = {  # each would come to its end where it were allowed
    "reads a file": "open('{there}').read()",
    "reads a file by another way": "import os\nos.read(os.open('{there}', os.O_RDONLY), 1)",
    "writes a file": "open('{new}', 'w').write('x')",
    "makes a folder": "import os\nos.mkdir('{new}')",
    "removes a file": "import os\nos.remove('{there}')",
    "renames a file": "import os\nos.rename('{there}', '{new}')",
    "makes a pipe by its name": "import os\nos.mkfifo('{new}')",
    "lists a folder": "import os\nos.listdir('/')",
    "opens a socket": "import _socket\n_socket.socket()",
    "imports sockets": "import socket",
    "starts a program": "import subprocess\nsubprocess.run(['true'])",
    "runs a shell": "import os\nos.system('true')",
    "becomes another program": "import os\nos.execv('/bin/true', ['true'])",
    "bears processes": "import os\nwhile os.fork() >= 0: pass",
    "starts a thread": "import _thread\n_thread.start_new_thread(print, ())",
    "sends a signal": "import os\nos.kill({parent}, 0)",
    "calls C": "import ctypes",
    "takes the memory": "len([0] * 10**9)",
    "ends as if all were well": "import os\nos._exit(0)",
    "exits": "raise SystemExit(0)",
    "reads what is typed": "input()",
    "is wrong": "assert 1 + 1 == 3",
    "is none": "def (",
}


def test_a_program_that_computes_comes_to_its_end():
    assert is_passed(COMPUTING)
    assert is_passed("print('x' * 10**6)\nx = {'b', 'a'}\nassert __name__ != '__main__'")


@pytest.fixture
def open_folder():
    """A folder that every user may write to, so that no right alone refuses anything."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@pytest.mark.parametrize("what", REFUSED)
def test_a_program_gets_nothing_but_the_processor(what, open_folder):
    there, new = open_folder / "there", open_folder / "new"
    there.write_text("x")
    assert not is_passed(REFUSED[what].format(there=there, new=new, parent=os.getpid()))
    assert [path.name for path in open_folder.iterdir()] == ["there"]


def test_a_program_sees_no_variable_of_this_process(monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    assert is_passed("import os\nassert 'SECRET' not in os.environ")


def test_text_has_the_same_order_in_a_set_every_time():
    letters, environment = "list(set('abcdefgh'))", {"PYTHONHASHSEED": "0"}
    command = [sys.executable, "-c", f"print({letters})"]
    order = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert is_passed(f"assert {letters} == {order}")


def test_an_endless_loop_ends_by_its_seconds_of_the_processor(monkeypatch, tmp_path):
    script = tmp_path / "guard.py"
    script.write_text(Path(program_guard.__file__).read_text().replace("SECONDS, MEMORY = 6", "SECONDS, MEMORY = 1"))
    monkeypatch.setattr(program_guard, "__file__", str(script))
    codes, run = [], subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *given, **named: codes.append(run(*given, **named)) or codes[0])
    assert not is_passed("try:\n while True: pass\nfinally:\n pass")
    assert -codes[0].returncode in (signal.SIGXCPU, signal.SIGKILL)


def test_a_program_that_waits_is_ended_by_the_clock(monkeypatch):
    monkeypatch.setattr(programs, "SILENCE", 0.5)
    start = time.monotonic()
    assert not is_passed("import time\ntime.sleep(30)")
    assert time.monotonic() - start < 20


def test_a_system_that_leaves_files_or_processes_is_refused(monkeypatch, tmp_path):
    """Of each limit alone, so that the trial sees both."""
    text = Path(program_guard.__file__).read_text()
    for limit in ("NOFILE", "NPROC"):
        script = tmp_path / f"{limit}.py"
        script.write_text(text.replace(f"resource.RLIMIT_{limit}: 0", f"resource.RLIMIT_{limit}: 10**3"))
        monkeypatch.setattr(program_guard, "__file__", str(script))
        with pytest.raises(UserError, match="leaves them files or processes"):
            is_passed("")
