"""Lines that steps print: told as they come, thinned when there are too many, the last always told."""

from typing import Any

from banger.jobs.output import BURST, EACH_S, OutputGate


class Gate:
    def __init__(self) -> None:
        self.now = 0.0
        self.told: list[dict[str, Any]] = []
        self.gate = OutputGate(self.told.append, lambda: self.now)


def test_few_lines_are_told_one_by_one() -> None:
    gate = Gate()
    for text in ("a", "b"):
        gate.gate.line(text)
    gate.gate.flush()
    assert gate.told == [{"text": "a", "skipped": 0}, {"text": "b", "skipped": 0}]


def test_of_a_flood_the_beginning_and_the_end_are_told_and_how_much_is_not() -> None:
    gate = Gate()
    for number in range(BURST + 1000):
        gate.gate.line(str(number))
    gate.gate.flush()
    gate.gate.flush()
    assert len(gate.told) == BURST + 1
    assert gate.told[-1] == {"text": str(BURST + 999), "skipped": 999}


def test_an_endless_flood_is_told_at_its_pace() -> None:
    gate = Gate()
    for _ in range(10):
        gate.now += 1.0
        for number in range(1000):
            gate.gate.line(str(number))
    assert BURST + 9 * EACH_S <= len(gate.told) <= BURST + 10 * EACH_S
    assert sum(line["skipped"] + 1 for line in gate.told) <= 10_000
