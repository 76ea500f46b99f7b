"""How often which fault happened in which phase, and how often nothing was lost."""

from collections import Counter
from dataclasses import dataclass, field

__all__ = ["Tally"]


@dataclass
class Tally:
    """The counts of a soak.

    Attributes:
        rounds: Finished rounds.
        equal_rounds: Those that ended with what the uninterrupted run gave.
        repeated: Iterations that were done again.
    """

    rounds: int = 0
    equal_rounds: int = 0
    repeated: int = 0
    _times: Counter = field(default_factory=Counter)
    _survived: Counter = field(default_factory=Counter)

    def add(self, faults: list[tuple[int, str, str]], lost: bool, repeated: int) -> None:
        """Takes in a round.

        Args:
            faults: Each as number of processes, phase, name of the fault.
            lost: Whether the round lost anything, which counts against all of its faults.
            repeated: Iterations that were done again.
        """
        self.rounds += 1
        self.equal_rounds += not lost
        self.repeated += repeated
        self._times.update(faults)
        self._survived.update([] if lost else faults)

    @property
    def num_faults(self) -> int:
        """Faults of all finished rounds."""
        return self._times.total()

    @property
    def num_survived(self) -> int:
        """Those of rounds that lost nothing."""
        return self._survived.total()

    def phases(self) -> set[str]:
        """Phases in which anything happened."""
        return {phase for _, phase, _ in self._times}

    def markdown(self, order: list[str]) -> str:
        """A table of phases and faults, and one of the totals.

        Args:
            order: The phases, as they follow each other.
        """
        lines = [
            "| processes | phase | fault | times | survived |",
            "| --- | --- | --- | --- | --- |",
        ]
        for key in sorted(self._times, key=lambda key: (key[0], order.index(key[1]), key[2])):
            times, survived = self._times[key], self._survived[key]
            lines.append(f"| {key[0]} | {key[1]} | {key[2]} | {times} | {survived} |")
        lines += [
            f"| | | **all** | **{self.num_faults}** | **{self.num_survived}** |",
            "",
            f"{self.rounds} rounds with {self.num_faults} faults: {self.equal_rounds} ended with "
            "the weights, losses and results of the uninterrupted run, to the bit; "
            f"{self.repeated} iterations were done again.",
        ]
        return "\n".join(lines) + "\n"
