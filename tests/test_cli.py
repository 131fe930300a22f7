"""The command line: what a user can mend is one line and exit code 2."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from brainldm_core import cli

COMMANDS = ("doctor", "prepare", "train", "samples", "miniature", "sample", "release", "run", "book")
COMMANDS += ("publish", "sync", "data")


def call(capsys, *words) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_help_is_quick_and_names_every_command():
    code = "import sys; from brainldm_core.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'pandas', 'numpy', 'monai', 'nibabel', 'pydantic'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(re.search(rf"\n    {name}\s", done.stdout) for name in COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "autoencoder", "--bogus"],
        ["train", "autoencoder", "--prof", "smoke"],  # no abbreviations
        ["train", "transformer"],
        ["sample", "--sex", "X"],
        ["paint"],
        [],
    ],
)
def test_unknown_words_and_options_are_errors(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
    assert "usage: brainldm" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        (["train", "autoencoder", "--profile", "huge"], "profile 'huge' is unknown; choose one of"),
        (["train", "autoencoder", "--profile", "own.yaml"], "own.yaml: no such profile file"),
        (["train", "autoencoder", "--cohort", "mars"], "cohort 'mars' is unknown; choose atlas"),
        (["train", "autoencoder", "--cohort", "../x"], "cohort name '../x'"),
        (["train", "autoencoder", "--profile", "smoke"], "smoke-atlas/cohort: this stage is not finished"),
        (["run", "all", "--cohort", "mars"], "cohort 'mars' is unknown; choose atlas"),
        (["run", "all", "--bids", "nowhere"], "nowhere: no such folder"),
        (["run", "99_nothing"], "notebook '99_nothing' is unknown; choose one of 00_"),
        (["run", "00", "--set", "sed=1"], "no parameter sed; it has profile"),
        (["run", "00", "--sweep", "seed=a"], "--sweep seed=a: write whole numbers"),
        (["run", "00", "--sweep", "steps=1"], "--sweep steps=1: write whole numbers"),
        (["prepare", "bids"], "prepare bids: which folder?"),
        (["prepare", "atlas", "somewhere"], "prepare atlas: takes no folder"),
        (["prepare", "atlas", "--cohort", "anatomies"], "prepare atlas: takes no --out or other --cohort"),
        (["prepare", "atlas", "--bias-correction"], "prepare atlas: simulated brains take no options of bids"),
        (["prepare", "anatomies"], "cohort 'anatomies' needs label maps"),
        (["prepare", "anatomies", "nowhere"], "nowhere: no such folder of label maps"),
        (["run", "all", "--cohort", "anatomies"], "cohort 'anatomies' needs label maps"),
        (["sample", "--n", "0"], "--n 0: ask for at least one brain"),
        (["sample", "--age", "old"], "'old': not a quantity in years"),
        (["sample", "--ventricles", "45kg"], "'45kg': not a quantity in ml"),
        (["sample", "--weights", "nowhere"], "nowhere: holds no trained weights"),
        (["publish", "nothing"], "nothing: not a run"),
        (["data", "fetch", "nobody"], "data set 'nobody' has no manifest"),
        (["data", "fetch", "ukbiobank"], "ukbiobank: cannot be fetched. Only by application"),
        (["data", "fetch", "sfcn", "--from", "nowhere"], "--from nowhere: no such folder"),
        (["data", "verify", "sfcn", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_what_a_user_can_mend_is_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRAINLDM_DATA", str(tmp_path))
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("brainldm: ") and message in err and err.count("\n") == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []  # nothing half-written


def test_a_run_folder_of_another_profile_is_refused(capsys, tmp_path):
    own = tmp_path / "own.yaml"
    text = (Path(cli.__file__).parent / "profiles" / "smoke.yaml").read_text()
    runs = ["--runs", tmp_path / "runs", "--profile", own]
    own.write_text(text)
    cohort = tmp_path / "runs" / "smoke-atlas" / "cohort"
    cohort.mkdir(parents=True)
    assert "not finished" in call(capsys, "train", "autoencoder", *runs)[2]
    own.write_text(text.replace("train: 6", "train: 7"))
    code, _, err = call(capsys, "train", "autoencoder", *runs)
    assert code == 2 and "was made with other settings of profile 'smoke'" in err


def test_full_disk_interrupt_and_faults(capsys, monkeypatch):
    def fail(error):
        def function(_):
            raise error

        monkeypatch.setattr(cli.commands, "run_doctor", function)

    fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "volume.nii.gz"))
    assert call(capsys, "doctor") == (
        2,
        "",
        "brainldm: volume.nii.gz: no space left; free some, then start again to go on\n",
    )
    fail(KeyboardInterrupt())
    assert call(capsys, "doctor")[0] == 130
    fail(ZeroDivisionError("a fault of ours keeps its traceback"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])
    fail(RuntimeError("and so does one of a library"))
    with pytest.raises(RuntimeError):
        cli.main(["doctor"])


def test_doctor_says_what_is_there_and_what_is_missing(capsys, monkeypatch):
    from brainldm_core import doctor

    monkeypatch.setattr(doctor, "OPTIONAL_PROGRAMS", {"no-such-program": "nothing at all"})
    code, out, _ = call(capsys, "doctor")
    assert code == 0
    for line in ("python ", "torch ", "GPU ", "processor ", "disk ", "book "):
        assert f"\n{line}" in "\n" + out
    assert "no-such-program is missing: nothing at all" in out
    monkeypatch.setattr(doctor, "CORE", ("no-such-package",))
    code, out, _ = call(capsys, "doctor")
    assert code == 1 and "missing: no-such-package; run 'make setup'" in out
