"""The trials of a search, drawn from its seed, with as many steps as the compute of each allows."""

from __future__ import annotations

from typing import Any

from microgpt.training.recipe import Recipe
from microgpt.tuning.compute import StepCounter
from microgpt.tuning.search import Trial
from microgpt.tuning.space import Share, Space, draws

ENOUGH_STEPS = 1000  # a trial with fewer steps is drawn again, ...
ATTEMPTS = 100  # ... so many times
MOST_ATTEMPTS = 1000  # at a trial that is not too large


class Drawing:
    """Draws the trials of a search.

    Args:
        given: the options that stay as they are.
        space: the values of those that are searched.
        vocab_size: number of tokens.
        counter: counts the multiply-adds of steps.
        max_params: the largest number of parameters.
    """

    def __init__(
        self, given: dict[str, Any], space: Space, vocab_size: int, counter: StepCounter, max_params: float
    ) -> None:
        self.given = {name: value for name, value in given.items() if name not in ("steps", "epochs")}
        self.space, self.vocab_size, self.counter, self.max_params = space, vocab_size, counter, max_params

    def trials(self, count: int, flops: int) -> list[Trial]:
        """The first trials of the search; each takes as many steps as `flops` multiply-adds allow, rounded down."""
        return [self._trial(0, {}, flops), *(self._draw(number, flops) for number in range(1, count))]

    def _draw(self, number: int, flops: int) -> Trial:
        """Trial `number`: the first draw with enough steps, else that with the most, else the first of all."""
        best = None
        for attempt, drawn in enumerate(draws(self.space, self._seed(), number, MOST_ATTEMPTS)):
            trial = self._trial(number, drawn, flops)
            fits = trial.state == "waiting"
            if fits and trial.steps >= ENOUGH_STEPS:
                return trial
            if best is None or (fits and (best.state != "waiting" or trial.steps > best.steps)):
                best = trial
            if attempt >= ATTEMPTS and best.state == "waiting":
                break
        assert best is not None
        return best

    def _seed(self) -> Any:
        return Recipe(**self.given).seed

    def _trial(self, number: int, drawn: dict[str, Any], flops: int) -> Trial:
        options = self.given | drawn
        warmup = options.pop("warmup_steps", 0)
        try:
            recipe = Recipe(**options)
            config = recipe.config(self.vocab_size)
        except (ValueError, TypeError) as error:
            return Trial(number, options | {"steps": 0}, 0, 0, "failed", str(error))
        per_step = self.counter.multiply_adds(config, recipe.batch_size)
        options["steps"] = steps = flops // per_step
        if "warmup_steps" in self.given or "warmup_steps" in drawn:
            options["warmup_steps"] = warmup.of(steps) if isinstance(warmup, Share) else warmup
        trial = Trial(number, options, config.num_params, per_step)
        if config.num_params > self.max_params:
            trial.state, trial.error = "too large", f"{config.num_params:,} parameters, and at most {self.max_params:,}"
        elif not steps:
            trial.state, trial.error = "too large", f"one step takes {per_step:.3g} multiply-adds of {flops:.3g}"
        return trial
