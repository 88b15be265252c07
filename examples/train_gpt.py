#!/usr/bin/env python3
"""Trains a byte-level GPT on real text with its optimizer state in host memory.

With a GPU the state stays on the host while gradients come down and weights go back up; without
one a small model is trained by the same SIMD update in place. The parts are in the folder gpt/;
this file only puts them together.
"""

from __future__ import annotations

import argparse
import gc
import sys

import torch
from gpt import report
from gpt.data import Corpus, load_corpus
from gpt.model import GPT, SIZES, sample
from gpt.optimizers import OutboardUpdater, Recipe, TorchUpdater, Updater, make_recipe
from gpt.options import DTYPES, parse
from gpt.report import Footprint
from gpt.training import History, Trainer
from rich.console import Console
from torch import Tensor

VOCABULARY = 256
PROMPT = b"def "


def main() -> int:
    options = parse()
    console = Console()
    try:
        corpus = load_corpus(options.data, options.seq)
        shape = SIZES[options.size]
        recipe = make_recipe(options.optimizer, options.lr, options.clip, shape.width)
        options.peak_lr = recipe.keywords["lr"]
        options.out.mkdir(parents=True, exist_ok=True)
        console.print(
            f"{corpus.name}: {corpus.files:,} files, {len(corpus.train):,} bytes to train on, "
            f"{len(corpus.held_out):,} held out"
        )
        train(options, corpus, recipe, console)
    except (ValueError, TypeError) as error:
        print(f"{error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"{error}; install what examples/README.md lists", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nStopped. {options.checkpoint} continues with --resume.", file=sys.stderr)
        return 130
    return 0


def train(options: argparse.Namespace, corpus: Corpus, recipe: Recipe, console: Console) -> None:
    """The run, its comparison if one was asked for, and everything that is printed and written."""
    trainer = make_trainer(options, corpus, recipe, use_outboard=options.offload)
    if options.resume:
        trainer.load()
        console.print(f"resumed at step {trainer.step} from {options.checkpoint}")
    name = "outboard" if options.offload else "torch"
    trainer.run(name, may_save=True)
    footprint = finish(trainer)
    if options.stop_at and trainer.step < options.steps:
        console.print(f"stopped at step {trainer.step}; continue with --resume")
        return
    if trainer.recorder is not None:
        console.print(f"{options.trace}: where the time of the traced steps went")
        for step in trainer.recorder.steps:
            console.print(str(step), markup=False, highlight=False)
    text = sample_text(trainer, console)
    runs = {name: trainer.history}
    plain, plain_history = report.plain_adamw(footprint, trainer.model), None
    if options.compare:
        weights = [p.detach().to("cpu", copy=True) for p in trainer.model.parameters()]
        del trainer
        plain, plain_history = compare(options, corpus, recipe, weights, runs[name], console)
        runs["torch"] = plain_history
    report.plot_losses(options.out / "loss.png", runs)
    report.print_table(footprint, runs[name], plain, plain_history, console)
    (options.out / "sample.txt").write_text(text)
    console.print(
        f"held-out loss {runs[name].held_out_loss:.4f} nats per byte; {options.out}/loss.png, "
        f"{options.out}/sample.txt and {options.checkpoint} are written"
    )


def make_trainer(
    options: argparse.Namespace, corpus: Corpus, recipe: Recipe, *, use_outboard: bool
) -> Trainer:
    """A fresh model from the seed, and its optimizer."""
    torch.manual_seed(options.seed)
    shape = SIZES[options.size]
    # Drawn in fp32 and rounded once.
    with options.device:
        model = GPT(shape, VOCABULARY, context=options.seq, recompute=shape.width >= 2048)
    model = model.to(DTYPES[options.dtype])
    if options.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    updater: Updater
    if use_outboard:
        updater = OutboardUpdater(
            model,
            recipe,
            offload_gradients=options.offload_gradients,
            state_format=options.state_format,
            master=options.master,
            placement=options.placement,
            schedule=options.schedule,
            seed=options.seed,
        )
    else:
        updater = TorchUpdater(model, recipe)
    return Trainer(options, corpus, model, updater)


def finish(trainer: Trainer) -> Footprint:
    """Waits for the last step, evaluates, and measures."""
    if trainer.recorder is not None:
        trainer.recorder.stop()
    stats = trainer.updater.finish()
    footprint = report.measure(
        trainer.model,
        trainer.options.device,
        stats,
        keeps_gradients=not trainer.options.offload_gradients or not stats.get("host_weights"),
    )
    trainer.evaluate()
    return footprint


def sample_text(trainer: Trainer, console: Console) -> str:
    """Prints and returns text that the model continues."""
    options = trainer.options
    length = 400 if options.device.type == "cuda" else 240
    data = sample(trainer.model, PROMPT, length=length, context=options.seq, seed=options.seed)
    text = data.decode("utf-8", errors="replace")
    console.rule("sampled text")
    console.print(text, markup=False, highlight=False)
    console.rule()
    return text


def compare(
    options: argparse.Namespace,
    corpus: Corpus,
    recipe: Recipe,
    weights: list[Tensor],
    history: History,
    console: Console,
) -> tuple[Footprint, History]:
    """Repeats the run from the same seed with torch's own optimizer."""
    gc.collect()  # the first run's optimizer refers to its parameters and they to its hooks
    trainer = make_trainer(options, corpus, recipe, use_outboard=False)
    trainer.run("torch", may_save=False)
    footprint = finish(trainer)
    pairs = zip(weights, trainer.model.parameters(), strict=True)
    apart = max(float((a.float() - b.detach().cpu().float()).abs().max()) for a, b in pairs)
    report.print_comparison(history, trainer.history, apart, console)
    return footprint, trainer.history


if __name__ == "__main__":
    sys.exit(main())
