"""The plan of a large release: products of rates, and words where there is no rate."""

import pytest

from brainldm_core import cli, release_plan
from brainldm_core.errors import BrainLDMError
from brainldm_core.records import write_json

RECORD = {"results": {"seconds_a_volume": 0.36, "bytes": 2_000_000, "volumes": 100}}
VOLUME = {"package": {"median_ms": 10.0}, "measuring": {"median_ms": 3590.0}, "reading": {"median_ms": 72.0}}
PHASES = {name: {"seconds": 60.0, "peak_mib": 512.0} for name in ("planning", "finishing", "verifying")}
BENCH = {
    "counted": {"unet_step_tflop": 1.5, "decode_tflop": 15.0},
    "volumes": {"1 mm": VOLUME | {"bytes_package": 2_000_000}},
    "book_keeping": [{"volumes": 1000, "phases": PHASES}, {"volumes": 100_000, "phases": PHASES}],
}


def amounts(folder, **more):
    rows = release_plan.plan_rows(**{"count": 100_000, "record": RECORD, "folder": folder} | more)
    return {row.what: row for row in rows}


def test_what_has_no_file_is_not_measured(tmp_path):
    found = amounts(tmp_path, record=None)
    assert {(row.amount, row.basis) for row in found.values()} == {("–", "not measured")} and len(found) == 3
    rows = list(amounts(tmp_path).values())
    assert [row.amount for row in rows[:3]] == ["10 hours of one process", "3", "2 GB"]


def test_products_of_measured_and_counted_rates(tmp_path):
    write_json(tmp_path / "benchmarks" / "release-cpu.json", BENCH)
    found = amounts(tmp_path)
    assert found["drawing at 1 mm"].basis == "not measured"
    floor = found["that work at 790 TFLOP/s, a floor"]
    assert floor.value == pytest.approx(100_000 * 30 / 790 / 3600) and floor.basis.startswith("counted")
    assert found["work at 1 mm, 10 steps and decoding"].amount == "3 EFLOP"
    assert found["measuring at 1 mm"].amount == "99.7 core hours"
    assert found["writers beside each GPU, to keep up"].value == 95  # 100 core hours beside the floor of 1.05
    assert found["storage at 1 mm"].amount == "0.2 TB"
    assert found["verifying, bookkeeping alone"].amount == "1 minutes"
    more = amounts(tmp_path, count=200_000, steps=20)
    assert more["verifying, bookkeeping alone"].value == 2
    assert more["work at 1 mm, 20 steps and decoding"].value == pytest.approx(9)


def test_a_card_that_was_measured_replaces_the_floor(tmp_path):
    write_json(tmp_path / "benchmarks" / "release-cpu.json", BENCH)
    for name, seconds, profile in (("bundle", 1.0, "paper"), ("tuned", 0.36, "paper"), ("small", 0.01, "demo")):
        made = {"seconds_a_volume": seconds, "profile": profile, "steps": 50}
        write_json(tmp_path / "gpu" / f"recipe-{name}.json", made)
    found = amounts(tmp_path)
    assert found["drawing at 1 mm, 50 steps"].amount == "10 GPU hours"
    assert "recipe-tuned" in found["drawing at 1 mm, 50 steps"].source
    assert found["shards of 4 hours at 1 mm, at least"].value == 3
    assert found["writers beside each GPU, to keep up"].value == 10


def test_the_command_and_the_table_say_the_same(capsys):
    assert cli.main(["release", "plan", "--n", "1000"]) == 0
    said = capsys.readouterr().out
    table = release_plan.markdown_table(release_plan.plan_rows(1000))
    assert said.startswith("1,000 volumes\n")
    for row in release_plan.plan_rows(1000):
        assert row.what in said and row.amount in said and f"| {row.what} | {row.amount} |" in table


@pytest.mark.parametrize("wrong", [{"count": 0}, {"hours": 0}, {"steps": 0}])
def test_an_empty_plan_is_an_error(tmp_path, wrong):
    with pytest.raises(BrainLDMError, match="more than 0"):
        amounts(tmp_path, **wrong)
