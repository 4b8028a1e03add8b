"""Flags that print something and end: versions, and what shells need to complete commands."""

from __future__ import annotations

import subprocess

import pytest

from bench.cli.main import main


def test_the_versions_that_figures_stand_on(capsys):
    from importlib import metadata

    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    said = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert said["prunebench"] == metadata.version("prunebench")
    assert said["torch"] == metadata.version("torch")
    assert set(said) == {"prunebench", "torch", "transformers", "lm_eval", "python"}


COMPLETE = """
source "$1"
function=$(complete -p prunebench | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=(prunebench "$2" "$3"); COMP_CWORD=$(( ${3:+1} + 1 ))
$function
echo "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete_commands_and_flags(shell, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--print-completion", shell])
    assert ended.value.code == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("prunebench", "serve-speed", "methods", "print-completion"))
    if shell != "bash":
        return
    assert "_shtab_prunebench_export___to_COMPGEN=_shtab_compgen_files" in script
    file = tmp_path / "completion"
    file.write_text(script, encoding="utf-8")
    for words, completed in ((("simi", ""), "similarity"), (("run", "--meth"), "--methods")):
        command = ["bash", "-c", COMPLETE, "bash", str(file), *words]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert found.stdout.split() == [completed], found.stderr


def test_another_shell_is_refused_with_those_that_there_are(capsys):
    assert main(["--print-completion", "ksh"]) == 2
    assert "choose from" in capsys.readouterr().err
