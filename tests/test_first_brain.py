"""The benchmark of the first brain reads what the command says."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import first_brain

from brainldm_core import cli, sample_command


def test_the_benchmark_reads_the_last_line_of_the_command():
    ends = {"start and imports": 2.0, "weights": 2.5, "sampling": 10.5, "writing": 10.7}
    for count in (1, 4):
        said = sample_command._in_words(ends, count)
        parts = first_brain.told(f"brains: 4 brains; look at brains/montage.png\n{said}\n")
        assert parts == {
            "start and imports": 2.0,
            "weights": 0.5,
            "sampling": 8.0,
            "writing": 0.2,
            "first volume": 10.7,
        }
        assert ("all 4, measured, after" in said) == (count == 4)


def test_every_way_is_a_call_that_the_command_takes():
    for options in first_brain.WAYS.values():
        assert cli.build_parser().parse_args(["sample", *options]).n in (1, 4)
    assert first_brain.spread([3.0, 1.0, 2.0]) == {"median_s": 2.0, "range_s": [1.0, 3.0], "n": 3}
