"""An encoder that counts the bytes of its activations that are alive, and one that is late."""

from __future__ import annotations

import time
import weakref
from typing import Any
from unittest.mock import patch

from torch import Tensor, nn

from hetsched.batch import Batch
from hetsched.models.multimodal import builders
from hetsched.plan import Plan
from hetsched.runtime.engine import Engine
from hetsched.schedule.encoder.credits import Signals
from hetsched.sim.encoder import encoder_in_flight
from tests.dist.ragged import RaggedSource


class Metered(nn.Module):
    """A stage that knows the bytes that its layers made and that something still keeps, now and at most."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage
        self.held = self.peak = self.num_calls = 0
        for layer in stage.modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_hook(self._made)

    def forward(self, rows: Tensor | None, meta: Any) -> Any:
        self.num_calls += 1
        return self.stage(rows, meta)

    def _made(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        self._count(output.nbytes)
        weakref.finalize(output, self._count, -output.nbytes)

    def _count(self, num_bytes: int) -> None:
        self.held += num_bytes
        self.peak = max(self.peak, self.held)


def encoder_use(plan: Plan) -> tuple[int, int]:
    """In a step of equal microbatches of two samples the most bytes that this rank's encoder held, and its calls."""
    meters: list[Metered] = []

    def metered(stage: int, mesh: Any) -> nn.Module:
        meters.append(Metered(builders(plan)["vision"](stage, mesh)))
        return meters[-1]

    engine = Engine(plan, {**builders(plan), "vision": metered}, timeout_s=30.0)
    source = RaggedSource(plan.seed, items="equal")
    engine.step(Batch.of(source, range(2 * plan.microbatches)))
    assert not any(meter.held for meter in meters), "state is held after the step"
    assert not engine._executor._live, "stages keep something of microbatches that are done"
    return sum(meter.peak for meter in meters), sum(meter.num_calls for meter in meters)


def most_in_flight(plan: Plan, late_rank: int, with_signals: bool) -> int:
    """The most microbatches of encoder state that the measured steps show, where one rank's backwards are late."""

    def late(stage: int, mesh: Any) -> nn.Module:
        module = builders(plan)["vision"](stage, mesh)
        if mesh.device_mesh.get_rank() == late_rank:
            module.register_full_backward_hook(lambda *_: time.sleep(0.05))
        return module

    found = []
    signals = patch("hetsched.stepplan.signals_of", lambda *_: Signals())
    if not with_signals:
        signals.start()
    try:
        engine = Engine(plan, {**builders(plan), "vision": late}, timeout_s=30.0)
        source = RaggedSource(plan.seed, items="many")
        for step in range(2):
            engine.step(Batch.of(source, range(40 * step, 40 * step + 40)))
            found.append(encoder_in_flight(engine.timeline(), "vision"))
    finally:
        if not with_signals:
            signals.stop()
    return max(found)
