"""Trains a small mixture of experts on the package's text, so that methods that remove experts can be compared.

    python docs/studies/train_moe.py --seed 0 --out results/tiny-moe-0

A Mixtral of six layers with sixteen experts, of which a token takes two, and a byte-level BPE of 2,048 entries learn
the documents of `wiki` and `c4` that calibration is drawn from; perplexity is measured on the others. A term of the
loss balances the load of the experts of each layer. The folder is a model as `--model` takes it.

Letters: J = experts, M = tokens of a step.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from bench.data.texts import split_halves
from methods.console import show_progress

TEXTS = ("wiki", "c4")
VOCABULARY, WIDTH, LAYERS, EXPERTS, TAKEN = 2048, 192, 6, 16, 2
BATCH, LENGTH = 16, 256  # sequences of a step, and their tokens
RATE, WARM, DECAY = 2e-3, 50, 0.1  # learning rate, steps until it is reached, weight decay
BALANCE = 0.05  # weight of the loss that balances the load


def tokenizer_of(documents: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of the documents, whose entry 0 begins and ends a document."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        documents,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<end>", eos_token="<end>", pad_token="<end>")


def model_of(tokenizer: PreTrainedTokenizerFast) -> MixtralForCausalLM:
    """Return the mixture with random weights."""
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=6,
            num_key_value_heads=2,
            num_local_experts=EXPERTS,
            num_experts_per_tok=TAKEN,
            max_position_embeddings=2048,
            sliding_window=None,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def imbalance(logits: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the mean over layers of J sum_j f_j p_j, of routers' logits, (M, J) each.

    f_j is the share of choices that are expert j and p_j its mean weight: 1 where each is 1 / J (Fedus, Zoph, Shazeer
    2021, "Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient Sparsity", arXiv
    2101.03961). What transformers computes takes one share over all layers, under which one may starve its experts.
    """
    terms = []
    for each in logits:
        p = each.softmax(dim=-1)
        chosen = torch.nn.functional.one_hot(p.topk(TAKEN, dim=-1).indices, EXPERTS).sum(dim=1)
        terms.append(EXPERTS / TAKEN * (chosen.float().mean(dim=0) * p.mean(dim=0)).sum())
    return torch.stack(terms).mean()


def train(model: MixtralForCausalLM, tokens: torch.Tensor, steps: int, generator: torch.Generator) -> list[float]:
    """Train on sequences drawn from the tokens, (N,), in place; return the losses of the next token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=DECAY)
    losses = list[float]()
    for step in show_progress(range(steps), "training", "step"):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM) * 0.5 * (1 + math.cos(math.pi * step / steps))
        begins = torch.randint(len(tokens) - LENGTH, (BATCH,), generator=generator).tolist()
        ids = torch.stack([tokens[begin : begin + LENGTH] for begin in begins])
        out = model(ids, output_router_logits=True, use_cache=False)
        loss = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        (loss + BALANCE * imbalance(out.router_logits)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder of the model")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the sequences")
    parser.add_argument("--steps", type=int, default=400, help=f"of {BATCH} sequences of {LENGTH} tokens")
    given = parser.parse_args(arguments)
    documents = [document for text in TEXTS for document in split_halves(text)[0]]
    tokenizer = tokenizer_of(documents)
    tokens = torch.tensor([token for document in documents for token in (0, *tokenizer(document).input_ids)])
    torch.manual_seed(given.seed)
    model = model_of(tokenizer)
    losses = train(model, tokens, given.steps, torch.Generator().manual_seed(given.seed))
    model.save_pretrained(given.out)
    tokenizer.save_pretrained(given.out)
    last = losses[-50:]
    print(
        f"{sum(one.numel() for one in model.parameters()):,} parameters, {len(tokens):,} tokens of text, "
        f"{given.steps} steps, loss of the last {len(last)}: {sum(last) / len(last):.3f} nats per token"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
