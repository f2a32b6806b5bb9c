"""How many leases at once a model gets: learned from what Ollama really serves side by side, plus one.

Owns the number and the evidence for it. Must not grant (`granting`) or hold leases (`leases`).

Ollama serves OLLAMA_NUM_PARALLEL requests of a model at once (default 1, envconfig/config.go:275; forced to 1 for some
families, server/sched.go:497) and tells nobody. Further requests wait, first come first served, on a semaphore of the
runner (llm/llama_server.go:1536), and look like a long prompt evaluation: no byte comes before the first token.
So the evidence is what runs *beside* what. Each stream is a sample, looked at in its middle, where a byte read a little
early or late does not matter: which of the leases held at that moment are surely served, and which may be waiting?
Served are those past their first byte, and silent ones that a later lease overtook: they evaluate their prompts.

- More slots: all leases are served at once. Twice as many are tried, or one more after a first verdict.
- Fewer slots: never more than so many are served at once, though by the share of its time that a lease streams, more
  should be. How unlikely that is adds up over the samples; where prompts take longer than answers it takes many.

No evidence of waiting is the silence of an answer that is not streamed. Streams that come in one burst at the end (tool
calls) lower that share, and so weigh little. A model loaded anew keeps its number and the evidence: Ollama decides at
each load, but nearly always as before; where it does not, the same evidence corrects it within some twenty streams.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from math import comb, inf, log

FIRST_MOST = 4
"""What a model begins with."""

LIMIT = 32
"""Never more leases than this are learned; a setting may exceed it."""

ENOUGH_DOUBT = 5.0
"""Verdict when what was seen has a likelihood of e^-5 if nothing made these leases wait. Neighbouring samples are taken
for independent, which they are not: from 4 down, prompts that take half as long as answers pass for a lack of slots."""

DOUBT_PER_SAMPLE = 1.0
"""No sample counts for more, so that a verdict takes at least five."""

FULL_ENOUGH = 1.5
"""Two samples close to each other must see all leases served before a number that was judged once grows."""

FADING = 0.9
"""Weight that what was seen keeps with each further stream."""

STEADY_AFTER = 64
"""After so many streams without a change only every `STEADY_STEP`-th is looked at: the others cost next to nothing."""

STEADY_STEP = 8

KEPT_PER_LEASE = 4
"""So many ended uses are kept, times the leases: a stream can be judged only when all beside it are known."""

MODELS_KEPT = 256
"""Beyond these, what was learned of the model known longest is forgotten, if no lease on it is out."""


@dataclass(slots=True)
class _Use:
    """One lease's use of its model. ``until`` is its last byte's time; what has not come yet is infinite."""

    granted_at: float
    first_byte_at: float = inf
    until: float = inf
    streams: bool = True


@dataclass(slots=True)
class _Model:
    """What is known of one model.

    ``ended`` are the uses that ended lately, ``unjudged`` the streams among them that are to be samples. ``doubts[n]``
    is the doubt that Ollama serves more than ``n`` side by side, ``full`` how often of late all leases were served.
    ``steady`` counts the streams since the number changed, ``streamed_s`` and ``held_s`` are sums over late streams.
    """

    most: int = FIRST_MOST
    judged: bool = False
    steady: int = 0
    running: dict[int, _Use] = field(default_factory=dict)
    ended: deque[_Use] = field(default_factory=deque)
    unjudged: deque[_Use] = field(default_factory=deque)
    held_s: float = 0.0
    streamed_s: float = 0.0
    full: float = 0.0
    doubts: list[float] = field(default_factory=lambda: [0.0] * LIMIT)

    def settle_on(self, most: int, *, judged: bool) -> None:
        """Take a new number, and gather evidence for the next one from here."""
        self.most = min(LIMIT, most)
        self.judged = judged
        self.steady = 0
        self.full = 0.0
        self.doubts = [0.0] * LIMIT


class Slots:
    """The number of leases for each key. ``fixed`` overrides: then nothing is learned.

    `most`, `began` and `streamed` are O(1); `ended` is O(leases of the key), and O(1) for one that ran alone and for
    most where the number is steady. Times are those of `handle`. A ticket is told of as `began`, then any number of
    times `streamed`, then `ended`.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._models: dict[str, _Model] = {}

    def most(self, key: str) -> int:
        """Return how many leases this model gets now: ``fixed``, or from 2 to `LIMIT`."""
        if self._fixed is not None:
            return self._fixed
        model = self._models.get(key)
        return FIRST_MOST if model is None else model.most

    def began(self, key: str, ticket_id: int, at: float) -> None:
        """Note a grant."""
        if self._fixed is not None:
            return
        model = self._models.get(key)
        if model is None:
            model = self._add(key)
        model.running[ticket_id] = _Use(at)

    def streamed(self, key: str, ticket_id: int, first_byte_at: float) -> None:
        """Note that the answer of a running lease has begun, and is streamed."""
        model = self._models.get(key)
        use = None if model is None else model.running.get(ticket_id)
        if use is not None:
            use.first_byte_at = first_byte_at

    def ended(self, key: str, ticket_id: int, at: float, stream: tuple[float, float] | None) -> None:
        """Note a release. ``stream`` is when the first and the last byte came, None if the answer was not streamed."""
        model = self._models.get(key)
        use = None if model is None else model.running.pop(ticket_id, None)
        if model is None or use is None or not (model.running or model.ended):
            return
        if stream is None and not model.held_s:
            return  # of a model that never streamed yet, nothing can be learned
        _close(model, use, at, stream)
        if model.unjudged:
            _judge(model)
        if model.running:
            _drop_oldest(model)
        else:
            model.ended.clear()
            model.unjudged.clear()

    def loaded(self, key: str) -> None:
        """Note that the model was loaded anew: every stream is looked at again, for Ollama may serve another number."""
        model = self._models.get(key)
        if model is not None:
            model.steady = 0

    def learned(self) -> dict[str, int]:
        """Return the number of leases of each model of which anything was learned."""
        return {key: model.most for key, model in self._models.items() if model.judged or model.most != FIRST_MOST}

    def recall(self, learned: Mapping[str, int]) -> None:
        """Begin with numbers that were `learned` before a restart; from there they change one by one, on evidence."""
        for key, most in learned.items():
            if key not in self._models:
                self._add(key).settle_on(max(2, most), judged=True)

    def _add(self, key: str) -> _Model:
        if len(self._models) >= MODELS_KEPT:
            idle = next((known for known, model in self._models.items() if not model.running), None)
            if idle is not None:
                del self._models[idle]
        model = self._models[key] = _Model()
        return model


def _close(model: _Model, use: _Use, at: float, stream: tuple[float, float] | None) -> None:
    """Note how a use ended, and whether it is a sample."""
    model.ended.append(use)
    first_byte_at, last_byte_at = stream or (at, at)
    if not use.granted_at <= first_byte_at < last_byte_at:
        use.first_byte_at, use.until, use.streams = inf, at, False
        return
    use.first_byte_at, use.until = first_byte_at, last_byte_at
    model.streamed_s = FADING * model.streamed_s + last_byte_at - first_byte_at
    model.held_s = FADING * model.held_s + last_byte_at - use.granted_at
    model.steady += 1
    if model.steady <= STEADY_AFTER or not model.steady % STEADY_STEP:
        model.unjudged.append(use)


def _drop_oldest(model: _Model) -> None:
    while len(model.ended) > KEPT_PER_LEASE * model.most:
        oldest = model.ended.popleft()
        if model.unjudged and model.unjudged[0] is oldest:
            model.unjudged.popleft()


def _judge(model: _Model) -> None:
    """Take the samples that are due: a silent lease may turn out not to stream, so those beside it must wait."""
    silent_since = next((use.granted_at for use in model.running.values() if use.first_byte_at == inf), inf)
    while model.unjudged:
        middle = (model.unjudged[0].first_byte_at + model.unjudged[0].until) / 2
        if middle >= silent_since:
            return
        model.unjudged.popleft()
        _sample(model, middle)


def _sample(model: _Model, at: float) -> None:
    """Weigh what was beside a stream at this moment, itself included."""
    held = chain(model.ended, model.running.values())
    beside = [use for use in held if use.granted_at <= at <= use.until]
    newest_at = max(use.granted_at for use in beside if use.first_byte_at <= at)
    waiting = [use for use in beside if use.first_byte_at > at and use.granted_at >= newest_at]
    served = min(LIMIT, len(beside) - len(waiting))
    model.doubts[:served] = [0.0] * served
    model.full *= FADING
    if served >= model.most:
        model.full += 1
        if not model.judged:
            model.settle_on(2 * model.most, judged=False)
        elif model.full >= FULL_ENOUGH:
            model.settle_on(model.most + 1, judged=True)
    elif all(use.streams for use in waiting):
        _doubt(model, served, len(beside) - 1)


def _doubt(model: _Model, served: int, others: int) -> None:
    """Let the doubts grow that more than ``served`` are served at once: ``others`` were there beside the sample.

    Each of them streams at any moment with the probability ``share``, if nothing makes it wait.
    """
    share = min(1.0, model.streamed_s / model.held_s)
    chances = [comb(others, n) * share**n * (1 - share) ** (others - n) for n in range(others + 1)]
    for slots in range(served, model.most - 1):
        fewer = sum(chances[:slots])
        model.doubts[slots] += min(DOUBT_PER_SAMPLE, -log(fewer)) if fewer > 0 else DOUBT_PER_SAMPLE
        if model.doubts[slots] >= ENOUGH_DOUBT:
            model.settle_on(max(2, slots + 1), judged=True)
            return
