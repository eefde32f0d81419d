"""The truth: the same model in one process, plain autograd, no engine, no packing into microbatches."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from hetsched.batch import DataSource, Item, Sample
from hetsched.models.multimodal import builders
from hetsched.parallel.meter import UNMEASURED
from hetsched.plan import Plan
from hetsched.runtime.stage import BoundaryRows, StageMeta


@dataclass
class Trained:
    """Steps of the reference: per step the loss and the gradients by name, at the end the weights by name."""

    losses: list[float]
    gradients: list[dict[str, Tensor]]
    weights: dict[str, Tensor]


def train_alone(plan: Plan, source: DataSource, batches: list[list[int]], *, learning_rate: float) -> Trained:
    """Plain SGD on the batches, in one process."""
    whole = SimpleNamespace(num_stages=1, device=torch.device("cpu"), context_group=None, meter=UNMEASURED)
    modules = {name: build(0, whole) for name, build in builders(plan).items()}
    for name, module in modules.items():
        module.requires_grad_(not plan.modules[name].frozen)
    named = {f"{m}.{name}": p for m, module in modules.items() for name, p in module.named_parameters()}
    losses, gradients = [], []
    for batch in batches:
        samples = [source.describe(index) for index in batch]
        loss = batch_loss(modules, source, samples)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append({n: p.grad.clone() for n, p in named.items() if p.grad is not None})
        with torch.no_grad():
            for p in named.values():
                if p.grad is not None:
                    p -= learning_rate * p.grad
                    p.grad = None
    return Trained(losses, gradients, {n: p.detach().clone() for n, p in named.items()})


def batch_loss(modules: dict[str, nn.Module], source: DataSource, samples: list[Sample]) -> Tensor:
    """Sum of all losses over the sum of all weights; each sample runs on its own."""
    encoded: dict[tuple[str, int], Tensor] = {}
    total, weight = torch.zeros((), dtype=torch.float64), 0
    for sample in samples:
        entering: dict[str, list[tuple[int, Tensor]]] = {}
        for placeholder in sample.placeholders:
            item = placeholder.item
            if (item.module, item.key) not in encoded:
                encoded[item.module, item.key] = encode(modules[item.module], source, item)
            entering.setdefault(item.module, []).append((placeholder.start, encoded[item.module, item.key]))
        boundary = {
            name: BoundaryRows(
                torch.cat([rows for _, rows in parts]),
                torch.cat([torch.arange(start, start + len(rows)) for start, rows in parts]),
            )
            for name, parts in entering.items()
        }
        inputs = dict(source.load_sample(sample.index))
        loss_sum, count = modules["llm"](None, meta_of([sample.num_tokens], inputs, boundary))
        total = total + loss_sum
        weight += int(count)
    return total / weight


def encode(encoder: nn.Module, source: DataSource, item: Item) -> Tensor:
    """The rows of one item, alone."""
    inputs = {k: t.double() if t.is_floating_point() else t for k, t in source.load_item(item.module, item.key).items()}
    rows: Tensor = encoder(None, meta_of([item.num_inputs], inputs, {}))
    return rows


def meta_of(lengths: list[int], inputs: dict[str, Tensor], boundary: dict[str, BoundaryRows]) -> StageMeta:
    """A meta made by hand."""
    cu_seqlens = list(accumulate(lengths, initial=0))
    positions = torch.cat([torch.arange(end - start) for start, end in pairwise(cu_seqlens)])
    return StageMeta(0, torch.tensor(cu_seqlens, dtype=torch.int32), max(lengths), positions, inputs, boundary)
