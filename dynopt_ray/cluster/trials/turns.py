"""Whose turn it is in a search that decides in the order in which trials were drawn."""

from collections.abc import Iterable


class TrialTurns:
    """The rounds of a search.

    At the beginning of a round, trials are started until as many run as may. Then each of them has
    its turn, in the order of drawing: it makes a measurement, ends or fails, and a decision
    follows. A trial whose process is lost keeps its turn. So what is drawn and decided depends
    neither on how fast trials run, nor on which processes die, nor on when the driver does.

    Attributes:
        due: trials that have not had their turn in this round.
        may_start: whether trials may still be started in this round.
    """

    def __init__(self) -> None:
        self.due: set[int] = set()
        self.may_start = True

    def started(self, number: int) -> None:
        """Let a trial take part in this round."""
        self.due.add(number)

    def taken(self, number: int) -> None:
        """Note that a trial has had its turn."""
        self.due.discard(number)
        self.may_start = False

    def advance(self, running: Iterable[int]) -> None:
        """Drop the turns of trials that run no more; if none is left, begin the next round."""
        alive = set(running)
        self.due &= alive
        if not self.due and not self.may_start:
            self.due = alive
            self.may_start = True
