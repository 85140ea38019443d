"""Which strength of the penalty: a head is solved for one after the other, strongest first, and val chooses.

C is scikit-learn's: the larger, the weaker the penalty. Rules, in order: the highest score on val, where what lies
within one standard error of it counts as equal; the lowest cross entropy on val; the stronger penalty. Fifty val images
cannot tell scores apart that their cross entropy can: on training images that no head had seen, 26 draws of MNIST and
digits, this rule gave 78.07 %, score before cross entropy 77.88 %, C = 1 77.85 %.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from transfergrid.networks.solved_head import GRADIENT_NORM, Check, LogisticRegression, SoftmaxProblem, minimise

PATH_GRADIENT_NORM = 1e-4  # of the heads that val chooses among; the chosen one is solved to GRADIENT_NORM
PATH_ITERATIONS = 200
EXTENSIONS = 4  # at most so many steps beyond either end, of half a decade each
LEFT_BEHIND = 3  # strengths in a row that val has nothing for end the path

Score = Callable[[LogisticRegression], "OnVal"]


@dataclass(frozen=True, slots=True)
class OnVal:
    """score: what is chosen by. shares_V: what each val image adds to a mean of right ones, which may weigh classes
    alike; it tells how sure a difference is. Everything is 0 where nothing is held out."""

    score: float
    loss: float
    accuracy: float
    shares_V: Tensor


NOTHING_HELD_OUT = OnVal(0.0, 0.0, 0.0, torch.zeros(0))


@dataclass(frozen=True, slots=True)
class Trial:
    """One strength."""

    c: float
    on_val: OnVal
    train_loss: float
    iterations: int
    gradient_norm: float


@dataclass(slots=True)
class HeadPath:
    """How far a path is. solutions: the parameters (float32) that each strength ended at."""

    cs: tuple[float, ...]
    trials: list[Trial] = field(default_factory=list)
    solutions: dict[float, Tensor] = field(default_factory=dict)

    def freeze(self, elapsed_s: float) -> bytes:
        content = io.BytesIO()
        trials = [asdict(t) for t in self.trials]
        torch.save({"tried": trials, "solutions": self.solutions, "elapsed_s": elapsed_s}, content)
        return content.getvalue()

    def thaw(self, content: bytes, device: torch.device) -> float:
        """Stand where `freeze` was called; returns the seconds until then."""
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        # Val's shares stay on the CPU, whatever computes the path.
        self.trials = [Trial(**t | {"on_val": OnVal(**t["on_val"])}) for t in state["tried"]]
        self.solutions = {c: parameters.to(device) for c, parameters in state["solutions"].items()}
        return float(state["elapsed_s"])

    def advance(self, problem: SoftmaxProblem, score: Score, *, check: Check) -> Trial | None:
        """Solve for the next strength; None where the path has ended."""
        c = next_strength(self.trials, self.cs)
        if c is None:
            return None
        start, norm = self._start(problem, c), PATH_GRADIENT_NORM
        optimum = minimise(problem, c, start, gradient_norm=norm, max_iterations=PATH_ITERATIONS, check=check)
        on_val = score(problem.head(optimum))
        trial = Trial(c, on_val, optimum.loss, optimum.iterations, optimum.gradient_norm)
        self.trials.append(trial)
        self.solutions[c] = optimum.parameters.float()
        return trial

    def finish(self, problem: SoftmaxProblem, *, check: Check) -> LogisticRegression:
        """The chosen head, to its optimum."""
        best = best_of(self.trials)
        optimum = minimise(problem, best.c, self.solutions[best.c].double(), check=check)
        optimum.iterations += best.iterations
        return problem.head(optimum)

    def search(self, chosen: LogisticRegression) -> dict[str, Any]:
        """What `details.search` says of it."""
        best, values = best_of(self.trials), sorted(t.c for t in self.trials)
        unsolved = {t.c for t in self.trials if t.gradient_norm >= PATH_GRADIENT_NORM}
        unsolved = (unsolved - {best.c}) | ({best.c} if chosen.gradient_norm >= GRADIENT_NORM else set())
        search = search_of("C", values, best.c, lowest="strongest", highest="weakest")
        return search | {"extended": len(set(values) - set(self.cs)), "not_converged": sorted(unsolved)}

    def _start(self, problem: SoftmaxProblem, c: float) -> Tensor:
        stronger = [known for known in self.solutions if known < c]
        nearest = max(stronger) if stronger else min(self.solutions, default=None)
        return problem.start() if nearest is None else self.solutions[nearest].double()


def best_of(trials: Sequence[Trial]) -> Trial:
    """By the rules above. Scores are compared on the same val images, so the error is that of a paired mean."""
    top = min(trials, key=lambda t: (-t.on_val.score, t.on_val.loss, t.c)).on_val
    equal = [t for t in trials if top.score - t.on_val.score <= float((top.shares_V - t.on_val.shares_V).norm()) + 1e-9]
    return min(equal, key=lambda t: (t.on_val.loss, t.c))


def next_strength(trials: Sequence[Trial], cs: Sequence[float]) -> float | None:
    """The strongest of `cs` first, then on to the weakest unless val has left the path behind; then, while the best
    lies at an end, half a decade further out, EXTENSIONS times at most."""
    if not trials:
        return min(cs)
    weakest, strongest, best = max(trials, key=lambda t: t.c).c, min(trials, key=lambda t: t.c).c, best_of(trials).c
    over = best != strongest and _left_behind(trials)  # at its beginning a path has not yet been anywhere
    if not over and (waiting := [c for c in cs if c > weakest]):
        return min(waiting)
    if len(cs) > 1 and best == weakest and not over:
        return next((c for c in _beyond(max(cs), 1) if c > weakest), None)
    if len(cs) > 1 and best == strongest:
        return next((c for c in _beyond(min(cs), -1) if c < strongest), None)
    return None


def _beyond(end: float, sign: int) -> list[float]:
    """Half decades on from one end, as round numbers: 30, 100, 300, 1000 after 10."""
    return [float(f"{end * 10 ** (sign * step / 2):.1g}") for step in range(1, EXTENSIONS + 1)]


def _left_behind(trials: Sequence[Trial]) -> bool:
    """Whether the weakest strengths, LEFT_BEHIND in a row, have no higher score and a higher loss than the best."""
    best = best_of(trials)
    weakest = sorted(trials, key=lambda t: t.c)[-LEFT_BEHIND:]
    worse = [t.on_val.score <= best.on_val.score and t.on_val.loss > best.on_val.loss for t in weakest]
    return len(worse) == LEFT_BEHIND and all(worse)


def search_of(
    name: str, values: Sequence[float], chosen: float, *, lowest: str = "lowest", highest: str = "highest"
) -> dict[str, Any]:
    """One searched dimension. A value at an end of the search may not be the best there is; 0 is a natural end."""
    ends = {} if len(values) < 2 else {min(values): lowest, max(values): highest}
    edge = None if chosen == 0 else ends.get(chosen)
    facts: Mapping[str, Any] = {"name": name, "values": list(values), "chosen": chosen}
    return {**facts, "at_edge": edge is not None, "edge": edge, "extended": 0, "not_converged": []}
