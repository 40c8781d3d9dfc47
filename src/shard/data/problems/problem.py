"""The unit of the `generated` source: one worked problem, and how it is laid out as a document."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Layout = Literal["problem", "question", "solve", "prose"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem with its worked solution.

    `steps` are complete lines, in order; the last one reaches `answer`. `layout` is one of

        problem   "Problem: ... / Solution: ... / Answer: ...", the usual one
        question  "Question: ... Answer: 42", the answer at once and the reason after it
        solve     "Solve: 17 * 23 = ?", then the lines of the computation
        prose     "To compute 12 plus 7, we can ...", a paragraph
    """

    statement: str
    steps: tuple[str, ...]
    answer: str
    layout: Layout = "problem"

    def text(self) -> str:
        """The document: ASCII, no trailing newline."""
        if self.layout == "prose":
            return f"To compute {self.statement}, we can {' '.join(self.steps)}"
        steps = "\n".join(self.steps)
        if self.layout == "question":
            return f"Question: {self.statement} Answer: {self.answer}\n{steps}"
        if self.layout == "solve":
            return f"Solve: {self.statement}\n{steps}\nAnswer: {self.answer}"
        return f"Problem: {self.statement}\nSolution: {steps}\nAnswer: {self.answer}"


Family = Callable[[random.Random], Problem]
