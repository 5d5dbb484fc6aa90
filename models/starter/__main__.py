"""python -m models.starter [STEP] [--work FOLDER]: all but the audit, or one step. See README.md."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch

from models.starter import audit, corpus, export
from models.starter.batches import Material
from models.starter.questions import load_prose
from models.starter.recipe import RECIPE
from models.starter.tokenizer import Encoder, train_tokenizer
from models.starter.train import Trainer
from models.starter.wordnet import WordNet


def fetch(work: Path, device: str) -> None:
    corpus.fetch(work / "packages")


def build_corpus(work: Path, device: str) -> None:
    for package, sentences in corpus.build(work / "packages", work / "prose.jsonl").items():
        print(f"{package}: {sentences} sentences")


def train(work: Path, device: str) -> None:
    wordnet = WordNet(work / "packages/wordnet-base/usr/share/wordnet")
    prose, instances = load_prose(work / "prose.jsonl", wordnet.stand_ins()), wordnet.instances()
    if not (work / "tokenizer.json").exists():
        train_tokenizer(prose, instances, work / "tokenizer.json")
    material = Material(prose, instances, Encoder(work / "tokenizer.json"))
    Trainer(RECIPE, material, work / "checkpoint.pt", device).run()


def write_gguf(work: Path, device: str) -> None:
    print(export.export(work / "checkpoint.pt", work / "tokenizer.json", Path(__file__).with_name("starter.gguf")))


def check_sources(work: Path, device: str) -> None:
    xquad = Path(os.environ.get("APPLIANCE_DATA", "../shared/data")) / "xquad" / "xquad.en.json"
    audit.report(work / "packages", work / "prose.jsonl", xquad)


STEPS: dict[str, Callable[[Path, str], None]] = {
    "fetch": fetch,
    "corpus": build_corpus,
    "train": train,
    "export": write_gguf,
    "audit": check_sources,
}


def run_all(work: Path, device: str) -> None:
    for step in (fetch, build_corpus, train, write_gguf):
        step(work, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=[*STEPS, "all"], nargs="?", default="all")
    parser.add_argument("--work", type=Path, default=Path("build/starter"), help="for packages, text and checkpoints")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    step = STEPS.get(arguments.step, run_all)
    step(arguments.work, arguments.device)


if __name__ == "__main__":
    main()
