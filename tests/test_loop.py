"""The loop resumes bit for bit, averages as its formula says, and stops on a loss that is not a number."""

import csv
import os
import signal

import pytest
import torch

from brainldm_core import loop
from brainldm_core.errors import BrainLDMError
from brainldm_core.profiles import Optimisation

PLAN = Optimisation(
    steps=20, batch_size=4, learning_rate=0.05, warmup_steps=5, final_learning_rate_fraction=0.1, ema_decay=0.9,
    checkpoint_seconds=1e-9,
)  # fmt: skip
DATA = torch.linspace(-1, 1, 12)[:, None]


def train(folder, interrupt_at=None, fail_at=None, seed=0, how="kill"):
    torch.manual_seed(seed)
    network = torch.nn.Linear(1, 1)
    optimiser = torch.optim.AdamW(network.parameters(), PLAN.learning_rate)

    def step(index, generator):
        if index == interrupt_at:
            if how == "kill":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)
        batch = DATA[loop.draw_rows(len(DATA), PLAN.batch_size, seed, index)]
        noise = torch.randn(batch.shape, generator=generator) + torch.rand_like(batch)  # both kinds of draws
        loss = ((network(batch) - 3 * batch - 0.1 * noise) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return {"loss": loss * float("nan") if index == fail_at else loss}

    key = {"seed": seed}
    return loop.fit(folder, key, {"net": network}, {"net": optimiser}, "net", step, PLAN, seed, progress=False)


def losses(folder):
    with open(folder / loop.LOSSES, encoding="utf-8") as file:
        return [(row["step"], row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(("how", "error"), [("kill", KeyboardInterrupt), ("term", SystemExit)])
def test_twenty_steps_are_ten_a_kill_and_ten_more_bit_for_bit(tmp_path, how, error):
    whole = train(tmp_path / "whole")
    with pytest.raises(error):
        train(tmp_path / "parts", interrupt_at=10, how=how)
    assert (tmp_path / "parts" / loop.STATE).exists()
    resumed = train(tmp_path / "parts")
    assert all(torch.equal(value, resumed.weights[name]) for name, value in whole.weights.items())
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert resumed.earlier_seconds > 0


def test_state_of_another_training_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, interrupt_at=3)
    with pytest.raises(BrainLDMError, match="another training"):
        train(tmp_path, seed=1)


def test_a_loss_that_is_not_finite_stops_and_names_the_step(tmp_path):
    with pytest.raises(BrainLDMError, match="not finite at step 7"):
        train(tmp_path, fail_at=7)


def test_learning_rate_warms_up_and_falls_to_its_final_fraction():
    rates = [loop.learning_rate(PLAN, 1.0, step) for step in range(21)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[20] == pytest.approx(0.1)
    assert all(late <= early for early, late in zip(rates[5:], rates[6:], strict=False))


def test_average_replays_its_recurrence():
    network = torch.nn.Linear(1, 1)
    average = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    expected = 0.0
    for step in range(30):
        with torch.no_grad():
            network.weight.fill_(step)
        loop.ema_update(average, network, 0.9, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert float(average["weight"]) == pytest.approx(expected, rel=1e-5)


def test_every_epoch_visits_every_row_once():
    rows = torch.cat([loop.draw_rows(12, 4, 0, step) for step in range(6)])
    assert sorted(rows[:12].tolist()) == sorted(rows[12:].tolist()) == list(range(12))
    assert rows[:12].tolist() != rows[12:].tolist()


class Clock:
    """Time that passes by one second a step, and stands still while the program is not running."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


def train_for(folder, clock, budget, interrupt_at=None, steps=1000):
    torch.manual_seed(0)
    network = torch.nn.Linear(1, 1)
    optimiser = torch.optim.AdamW(network.parameters(), PLAN.learning_rate)
    plan, rates = PLAN.model_copy(update={"steps": steps}), []

    def step(index, generator):
        if index == interrupt_at:
            raise KeyboardInterrupt
        rates.append(optimiser.param_groups[0]["lr"])
        clock.now += 1
        loss = ((network(DATA) - torch.randn(DATA.shape, generator=generator)) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return {"loss": loss}

    fitted = loop.fit(
        folder, {}, {"net": network}, {"net": optimiser}, "net", step, plan, 0, progress=False, budget=budget
    )
    return fitted, rates


def test_a_budget_of_seconds_ends_training_and_lowers_the_rate_by_its_share(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    fitted, rates = train_for(tmp_path, clock, budget=12.0)
    assert fitted.steps == 12 and fitted.seconds == 12 and len(losses(tmp_path)) == 12
    plan = PLAN.model_copy(update={"steps": 1000})
    assert rates == [loop.learning_rate(plan, PLAN.learning_rate, index, index / 12) for index in range(12)]
    assert rates[6] > rates[-1] > PLAN.learning_rate * PLAN.final_learning_rate_fraction


def test_steps_cap_a_budget(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    assert train_for(tmp_path, clock, budget=1000.0, steps=7)[0].steps == 7


def test_seconds_before_a_kill_count_and_a_spent_budget_buys_nothing(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    whole, _ = train_for(tmp_path / "whole", clock, budget=12.0)
    with pytest.raises(KeyboardInterrupt):
        train_for(tmp_path / "parts", clock, budget=12.0, interrupt_at=8)
    clock.now += 1e6  # a week away costs nothing
    resumed, rates = train_for(tmp_path / "parts", clock, budget=12.0)
    assert resumed.earlier_seconds == 8 and len(rates) == 4
    assert all(torch.equal(value, resumed.weights[name]) for name, value in whole.weights.items())
    again, rates = train_for(tmp_path / "parts", clock, budget=12.0)  # killed before its record was written
    assert rates == [] and again.steps == 12
    assert all(torch.equal(value, again.weights[name]) for name, value in whole.weights.items())
