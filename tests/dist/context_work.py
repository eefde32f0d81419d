"""What the ranks of the context-parallel tests do, right or wrong on purpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hetsched.kernels.attention import attend
from hetsched.layout.pulls import heads_of_part
from hetsched.layout.spread import SeenKeys, Spread
from hetsched.layout.tokens import tokens_of
from hetsched.parallel import ring
from hetsched.parallel.context import ContextTask, context_attention
from hetsched.parallel.context_task import Whole
from tests.dist.context_cases import ContextCase, digest_of


@dataclass
class Part:
    """One rank's rows of output, lse, dq, dk and dv; whether a repeat gave the same bits; rows of keys sent away.

    ``digest`` is that of the inputs as this process made them.
    """

    tokens: Tensor
    results: tuple[Tensor, ...]
    is_repeatable: bool
    sent_rows: int
    digest: str


def attend_on_ranks(cases: Sequence[ContextCase], mutant: str | None = None) -> list[Part]:
    """Each case's part of this rank."""
    group = dist.group.WORLD
    assert group is not None
    with MUTANTS[mutant]() if mutant else nullcontext():
        return [_attend(case, group) for case in cases]


def attend_for_another_rank(case: ContextCase) -> None:
    """Calls with the task of the next rank, once all have met: a rank that fails leaves the group."""
    dist.barrier()
    task = task_of(case, (dist.get_rank() + 1) % case.cp)
    q, k, v, _ = case.inputs()
    context_attention(q, k, v, task, group=dist.group.WORLD)


def task_of(case: ContextCase, rank: int, *, device: str = "cpu") -> ContextTask:
    """The case's task of one rank."""
    options: dict[str, Any] = {"window": case.window, "forced": case.forced, "device": device}
    options |= {"num_heads": case.heads[0], "num_kv_heads": case.heads[1], "forced_back": case.forced_back}
    options["heads_of_part"] = heads_of_part(case.heads[1]) if case.forced == "pull" else 0
    return ContextTask(case.cu_seqlens, case.token_map, rank=rank, cp=case.cp, **options)


def _attend(case: ContextCase, group: dist.ProcessGroup) -> Part:
    task = task_of(case, dist.get_rank(group))
    tokens = torch.from_numpy(tokens_of(case.token_map, task.rank))
    q, k, v, dout = (x[tokens] for x in case.inputs())
    first, second = (results_of(q, k, v, dout, task=task, group=group) for _ in range(2))
    with mock.patch.object(dist, "batch_isend_irecv", wraps=dist.batch_isend_irecv) as batches:
        _, lse = ring.forward(q, k, v, task, group=group)
    operations = [operation for call in batches.call_args_list for operation in call.args[0]]
    sent_rows = sum(operation.tensor.shape[1] for operation in operations if operation.op is dist.isend)
    again = ring.forward(q, k, v, task, group=group)[1]
    pairs = zip((*first, lse), (*second, again), strict=True)
    is_repeatable = all(torch.equal(a, b) for a, b in pairs)
    return Part(tokens, (first[0], lse.T, *first[1:]), is_repeatable, sent_rows, digest_of(case))


def results_of(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, *, task: ContextTask, group: dist.ProcessGroup
) -> tuple[Tensor, ...]:
    """Output, dq, dk and dv of this rank's rows."""
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = context_attention(leaves[0], leaves[1], leaves[2], task, group=group)
    return out.detach(), *torch.autograd.grad(out, leaves, dout)


def _lost_block() -> Any:
    def lost(q: Tensor, k: Tensor, v: Tensor, task: Any, *, carry: Any, **options: Any) -> Any:
        is_remote = carry is not None and bool((carry[0] != 0).any())
        return carry if is_remote else attend.forward_step(q, k, v, task, carry=carry, **options)

    return mock.patch.object(ring, "forward_step", lost)


def _wrong_scale() -> Any:
    def scaled(q: Tensor, *args: Any, **options: Any) -> Any:
        return attend.forward_step(q, *args, **options | {"scale": 1.01 / q.shape[-1] ** 0.5})

    return mock.patch.object(ring, "forward_step", scaled)


def _lse_of_one_step() -> Any:
    original = ring.forward

    def reused(*args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []

        def keeping(*inputs: Any, **more: Any) -> Any:
            carry = attend.forward_step(*inputs, **more)
            kept.append(carry[1].clone())
            return carry

        with mock.patch.object(ring, "forward_step", keeping):
            out, _ = original(*args, **options)
        return out, kept[0]

    return mock.patch.object(ring, "forward", reused)


def _mask_off_by_one() -> Any:
    original = Spread.seen_keys

    def off(self: Spread, queries: Any, keys: Any) -> SeenKeys:
        seen = original(self, queries, keys)
        return seen if seen.is_causal else replace(seen, hi=np.maximum(seen.lo, seen.hi - 1).astype(np.int32))

    return mock.patch.object(Spread, "seen_keys", off)


def _gradients_that_do_not_come_back() -> Any:
    original = ring.Message.wait

    def forgetful(self: ring.Message) -> Tensor:
        received = original(self)
        # keys travel in 16 bits, their gradients in 32
        is_gradient = received.dtype == torch.float32 and received is not self.sent
        return received.zero_() if is_gradient else received

    return mock.patch.object(ring.Message, "wait", forgetful)


def _keys_in_the_wrong_order() -> Any:
    def flipped(q: Tensor, k: Tensor, *args: Any, **options: Any) -> Any:
        return attend.forward_step(q, k.flip(0), *args, **options)

    return mock.patch.object(ring, "forward_step", flipped)


def _rows_by_rank() -> Any:
    original = ContextTask.whole.func

    def unordered(self: ContextTask) -> Whole:
        whole = original(self)
        return replace(whole, place_of_token=whole.place_of_token.sort().values)

    return mock.patch.object(ContextTask, "whole", property(unordered))


MUTANTS: dict[str, Callable[[], Any]] = {
    "a lost block": _lost_block,
    "a wrong scale": _wrong_scale,
    "lse of one step reused": _lse_of_one_step,
    "a mask off by one": _mask_off_by_one,
    "gradients that do not come back": _gradients_that_do_not_come_back,
    "keys in the wrong order": _keys_in_the_wrong_order,
    "rows that stay by rank": _rows_by_rank,
}
