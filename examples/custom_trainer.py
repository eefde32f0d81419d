"""A model and a loop of one's own, under two placements that give the same losses.

A sample is a question and four clips of any length: which has the highest tone, or the lowest? An encoder turns each
clip into a row; a judge, a pipeline of two stages, puts these rows into its sequence and answers.

Run: python examples/custom_trainer.py, or torchrun --nproc-per-node 4 examples/custom_trainer.py
"""

import torch
import torch.distributed as dist
from torch import nn

from hetsched import Batch, Engine, Item, Placeholder, Sample, launch, parse_plan

BANDS, CLIPS, HIDDEN = 16, 4, 32
PLAN = """
name = "tones"
world_size = 4
microbatches = 4
boundaries = [{ producer = "audio", consumer = "judge" }]
"""
PLACEMENTS = {
    # The encoder is data-parallel over all ranks; its work goes into the bubbles of two replicas of the judge.
    "colocated": """
modules.audio = { hidden = 32, first_rank = 0, layout = { dp = 4 } }
modules.judge = { hidden = 32, first_rank = 0, layout = { dp = 2, pp = 2 } }
schedule.encoder = "fill"
""",
    # Each module has ranks of its own.
    "non-colocated": """
modules.audio = { hidden = 32, ranks = [0, 1], layout = { dp = 2 } }
modules.judge = { hidden = 32, ranks = [2, 3], layout = { pp = 2 } }
""",
}


class Tones:
    """Sample i is a question, its token 0, and CLIPS clips, one token each."""

    def describe(self, index):  # by every rank, so without loading anything
        keys = range(CLIPS * index, CLIPS * (index + 1))
        clips = [Item("audio", key, num_inputs=3 + key % 5, num_rows=1) for key in keys]
        placeholders = tuple(Placeholder(clip, start) for start, clip in enumerate(clips, 1))
        return Sample(index, num_tokens=1 + CLIPS, weight=1, placeholders=placeholders)

    def load_sample(self, index):  # only by ranks that work on it; each tensor has num_tokens rows
        tones = torch.stack([self.tone(CLIPS * index + i) for i in range(CLIPS)])
        is_answer = tones == (tones.min() if index % 2 else tones.max())
        token, answer = torch.tensor([index % 2] + CLIPS * [2]), nn.functional.pad(is_answer.float(), (1, 0))
        return {"token": token, "answer": answer}

    def load_item(self, module, key):  # num_inputs rows
        return {"spectrum": torch.exp(-((torch.arange(BANDS) - self.tone(key)) ** 2)).repeat(3 + key % 5, 1)}

    def tone(self, key):
        return torch.rand((), generator=torch.Generator().manual_seed(key)) * (BANDS - 1)


class Audio(nn.Module):
    """One row per clip: the mean over its frames. Clips lie one after the other, cu_seqlens says where each starts."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(BANDS, 64), nn.GELU(), nn.Linear(64, HIDDEN))

    def forward(self, rows, meta):
        clips = self.net(meta.inputs["spectrum"]).split(meta.cu_seqlens.diff().tolist())
        return torch.stack([frames.mean(0) for frames in clips])


class Read(nn.Module):
    """The judge's first stage: embeds tokens and puts the encoder's rows where their placeholders are."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(3, HIDDEN)
        self.net = nn.Sequential(nn.Linear(HIDDEN, 64), nn.GELU(), nn.Linear(64, HIDDEN))

    def forward(self, rows, meta):  # rows is None here: nothing comes before
        audio = meta.boundary["audio"]
        rows = self.embedding(meta.inputs["token"]).index_copy(0, audio.index, audio.rows)
        return rows + self.net(rows)


class Answer(nn.Module):
    """The judge's last stage: a score per clip, and the sum of cross-entropies with the number of samples."""

    def __init__(self):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(HIDDEN, 64), nn.GELU(), nn.Linear(64, 1))

    def forward(self, rows, meta):
        question, clips = rows.view(-1, 1 + CLIPS, HIDDEN).split([1, CLIPS], dim=1)
        truth = meta.inputs["answer"].view(-1, 1 + CLIPS)[:, 1:]
        loss = nn.functional.cross_entropy(self.score(question + clips).squeeze(-1), truth, reduction="sum")
        return loss, len(truth)


def builder(*stages):
    def build(stage, mesh):
        torch.manual_seed(stage)  # replicas, and both placements, start from the same weights
        return stages[stage]()

    return build


def train(placement, steps):
    builders = {"audio": builder(Audio), "judge": builder(Read, Answer)}
    engine = Engine(parse_plan(PLAN + PLACEMENTS[placement]), builders)
    optimizer = torch.optim.SGD(engine.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(steps):
        losses.append(engine.step(Batch.of(Tones(), range(32 * step, 32 * step + 32))).loss)
        optimizer.step()
    return losses


def main(steps=30):
    losses = {placement: train(placement, steps) for placement in PLACEMENTS}
    if dist.get_rank() == 0:
        for placement, of in losses.items():
            print(f"{placement}: loss {of[0]:.3f} -> {of[-1]:.3f}")
        print(f"largest difference: {max(abs(a - b) for a, b in zip(*losses.values(), strict=True)):.1e}")
    return losses


if __name__ == "__main__":
    launch(main, num_ranks=4)  # starts the ranks, unless torchrun has
