"""Training: Muon-like steps on the matrices, Adam on the rest, phases with their own mixture, and checkpoints.

Every step draws its rows from its own seeded generator, so a resumed run sees what an unbroken one would have seen.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as fn
from torch import Tensor

from models.starter.batches import LABEL_IDS, Material, Mixture, Row, draw_row
from models.starter.circuit import initialise
from models.starter.model import MATRICES, Pointer, Shape


@dataclass(frozen=True)
class Phase:
    """Some steps with one mixture; the rate goes linearly from its first to its last share."""

    steps: int
    mixture: Mixture
    rate_from: float
    rate_to: float


@dataclass(frozen=True)
class Recipe:
    seed: int
    tokens_a_step: int
    matrix_rate: float  # Muon's, for spectrally normalised steps
    other_rate: float  # Adam's, for embeddings and norms
    phases: tuple[Phase, ...]
    checkpoint_every: int = 100


def phase_at(recipe: Recipe, step: int) -> tuple[Phase, float]:
    """The phase of a step and the share of the learning rate there; past the end, the last phase at its end."""
    for phase in recipe.phases:
        if step < phase.steps:
            return phase, phase.rate_from + (phase.rate_to - phase.rate_from) * step / phase.steps
        step -= phase.steps
    return phase, phase.rate_to


def whitened(gradient: Tensor) -> Tensor:
    """The gradient with all singular values near one, by five Newton-Schulz steps (Muon)."""
    x = gradient / (gradient.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if tall else x


class Trainer:
    """The model, its optimiser state and the number of the next step."""

    def __init__(self, recipe: Recipe, material: Material, checkpoint: Path, device: str) -> None:
        self.recipe, self.material, self.checkpoint, self.device = recipe, material, checkpoint, device
        self.model = Pointer(Shape())
        tokenizer = material.encoder.tokenizer
        tokens = [tokenizer.id_to_token(i) or "" for i in range(self.model.shape.vocabulary)]
        initialise(self.model, tokens, recipe.seed)
        self.model.to(device)
        self.matrices = [layer[name] for layer in self.model.layers for name in MATRICES]
        others = [p for p in self.model.parameters() if not any(p is m for m in self.matrices)]
        self.momentum = [torch.zeros_like(p) for p in self.matrices]
        self.adam = torch.optim.AdamW(others, recipe.other_rate, betas=(0.9, 0.98), weight_decay=0.0)
        self.step = 0
        if checkpoint.exists():
            self._resume()

    def run(self) -> None:
        """Train to the end of the last phase, printing a line every ten steps."""
        total, started = sum(phase.steps for phase in self.recipe.phases), time.monotonic()
        loss, right = 0.0, 0.0
        while self.step < total:
            step_loss, step_right = self._step()
            keep = 0.95 if loss else 0.0
            loss, right = keep * loss + (1 - keep) * step_loss, keep * right + (1 - keep) * step_right
            if self.step % 10 == 0:
                minutes = (time.monotonic() - started) / 60
                print(f"step {self.step}/{total} {minutes:.1f} min loss {loss:.3f} right {right:.3f}", flush=True)
            if self.step % self.recipe.checkpoint_every == 0 or self.step == total:
                self._save()

    def _step(self) -> tuple[float, float]:
        """One optimiser step; returns mean loss and share of right answers."""
        phase, rate = phase_at(self.recipe, self.step)
        rng = Random(f"{self.recipe.seed}/{self.step}")  # noqa: S311
        self.model.zero_grad(set_to_none=True)
        tokens = answers = 0
        loss = right = 0.0
        while tokens < self.recipe.tokens_a_step:
            row = draw_row(rng, self.material, phase.mixture)
            row_loss, row_right = self._backward(row)
            loss, right = loss + row_loss, right + row_right
            tokens, answers = tokens + len(row.tokens), answers + len(row.labels)
        self._descend(rate * min(1.0, (self.step + 1) / 20))
        self.step += 1
        return loss / answers, right / answers

    def _backward(self, row: Row) -> tuple[float, float]:
        with torch.autocast(self.device, torch.bfloat16):
            hidden = self.model(row.tokens.to(self.device), row.positions.to(self.device), row.mask.to(self.device))
        logits = hidden[row.places].float() @ self.model.embedding[LABEL_IDS].T
        labels = row.labels.to(self.device)
        loss = fn.cross_entropy(logits, labels, reduction="sum")
        (loss / 60).backward()
        return float(loss.detach()), float((logits.argmax(-1) == labels).sum())

    def _descend(self, rate: float) -> None:
        step = self.recipe.matrix_rate * rate
        with torch.no_grad():
            for matrix, momentum in zip(self.matrices, self.momentum, strict=True):
                momentum.mul_(0.95).add_(matrix.grad)
                update = whitened(matrix.grad.add(momentum, alpha=0.95))
                longer = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.mul_(1 - 0.01 * step).add_(update, alpha=-step * longer)
        for group in self.adam.param_groups:
            group["lr"] = self.recipe.other_rate * rate
        torch.nn.utils.clip_grad_norm_([p for g in self.adam.param_groups for p in g["params"]], 1.0)
        self.adam.step()

    def _save(self) -> None:
        state = {
            "step": self.step,
            "weights": self.model.state_dict(),
            "momentum": self.momentum,
            "adam": self.adam.state_dict(),
        }
        torch.save(state, f"{self.checkpoint}.part")
        os.replace(f"{self.checkpoint}.part", self.checkpoint)

    def _resume(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True, map_location=self.device)
        self.step = state["step"]
        self.model.load_state_dict(state["weights"])
        self.momentum = state["momentum"]
        self.adam.load_state_dict(state["adam"])
