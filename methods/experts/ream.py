"""Merge the experts of a mixture that add least into those that they are most like, channel by channel: REAM.

Jha, Hashemzadeh, Pasand, Parviz, Lee, Knyazev 2026, "REAM: Merging Improves Pruning of Experts in LLMs", arXiv
2604.04356. Code: SamsungSAILMontreal/ream.

As many experts stay as with `reap`, those of the highest saliency S_j, which are the centres of groups. With p_j(x) the
softmax of the router's logits over all J experts, two experts are as far apart as

    dist_ij = 1 - (s_ij + r_ij) / 2
    s_ij = (cos(a_i, a_j) + 1) / 2
    r_ij = 1 - ||u_i - u_j|| / max ||u_k - u_l||

a_j is the mean of p_j(x) f_j(x) over all calibration tokens x. u_j has the router's logits of expert j for all x,
scaled to length 1. Each centre, the most salient first, takes the nearest experts that have no group, until there are
C in its group (`group_size`) or none is missing. So groups are few and large, and most experts stay as they are. In a
group with the centre c the channels of an expert b are put into the order P_b that costs least,

    cost_uv = ||A_cu - A_bv|| + ||V_cu - V_bv||

and gate, up and down are averaged:

    merged = sum_b w_b P_b(b),    w_b = S_b / sum_b S_b

A_bv is what channel v of b gives for the tokens x, scaled to length 1. V_bv stands for its weights. A channel's rows of
gate and up and its column of down, scaled to length 1 in one, have 64 principal components over all experts. Each is
multiplied by its singular value, and the 64 are scaled to length 1 again. The router's rows of centres stay, and all
others go. Layers are taken in order, each fed by those that are merged already. Where a router takes groups of experts,
as many stay of each, and what is merged is of the same one.

`mc-smoe` and `hc-smoe` are older ways to merge, as settings of this one. In `mc-smoe` the experts that most tokens are
routed to are centres, and w_b is how many these are. Every other expert goes to the centre with the nearest u, and V
aligns its channels. It is of Li, Zhang, Yadav, Sung, Cheng, Bansal, Chen 2024, "Merge, Then Compress: Demystify
Efficient SMoE with Hints from Its Routing Policy", ICLR, arXiv 2310.01334, without the low ranks that follow there.
Code: UNITES-Lab/MC-SMoE. In `hc-smoe` the means of f_j are clustered by average linkage. The expert that is nearest to
a cluster's mean is its centre, and no channel is aligned. It is of Chen, Liu, Sun, Chao, Hsu, Lee 2025,
"Retraining-Free Merging of Sparse MoE via Hierarchical Clustering", ICML, arXiv 2410.08589. Code: wazenmai/HC-SMoE.

Departures from the authors' code. S is the saliency of `reap`; the code's has p_j^2 in place of g_j, and is the mean
over batches of eight sequences of their means (`saliency=released`). Activations of two experts are compared on the
same tokens; the code draws tokens anew for each expert, so that it does not align a copy with its original
(`sample=released`). The principal components begin with directions of a generator of their own. Biases are put in order
and averaged; the code refuses them. Padding is left out of the sums. An expert without a saliency counts with the least
of the others, as in the code, and is never a centre before one that has some. Too small a group size is refused before
any work. The codes of MC-SMoE and HC-SMoE keep all rows of the router, so that a token may take a merged expert twice;
here they go, as in REAM's. The code of MC-SMoE gives each layer a number of experts of its own, and aligns no channels
of a Mixtral; here all layers keep as many.

Cost. All J experts compute every token, of which a token takes k in a forward. Memory holds the inputs of one mixture
for all tokens. The order of an expert's I channels is an assignment, whose time grows with I^3 at most;
`merging=mean` and `merging=none` need none.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from methods.base import Count, Holds, Look, Whole, register
from methods.console import show_progress
from methods.errors import OutOfReach
from methods.experts import merging
from methods.experts.reap import LowestExperts, lowest_of_groups
from methods.model.activations import enter_all, move_beside, refuse_overflow, values_of_a_step
from methods.model.calibration import Calibration
from methods.model.decoder import Decoder
from methods.model.layer import Layer
from methods.model.parts import Experts
from methods.model.structures import count_experts, mixtures_of

BATCH = 8  # sequences of a mean, for the released saliency


@register("ream")
@dataclass(frozen=True)
class Ream(LowestExperts):
    """Merge the experts of least saliency into those that they are most like (Jha et al. 2026)."""

    saliency: Literal["reap", "frequency", "released"] = "reap"  # S of reap, tokens of an expert, or S of the code
    similarity: Literal["mean", "token", "output", "router"] = "mean"  # s of means or token by token, and r; s; or r
    gated: bool = True  # outputs are compared times p
    grouping: Literal["ream", "hcsmoe"] = "ream"  # around salient experts, or clusters of the means of outputs
    group_size: Whole = 16  # C, experts that become one at most; 0: each goes to the nearest centre
    merging: Literal["both", "activations", "weights", "mean"] | None = "both"  # by A and V, A, V, neither; None: drop
    sample: Literal["shared", "released"] = "shared"  # tokens of A: the same for all experts, or anew for each
    sampled: Count = 32_768  # of these, at most
    sequential: bool = True  # a layer is fed by those before it as they are merged; else as they were

    only_cuts = False
    cost = "1 forward in which every expert computes every token, and an assignment of channels for each that is merged"
    holds = Holds(states=3, layers=2, squares=2)
    paper_reads = "2,150 x 512 tokens of the-stack-smol; 921 x 512 in math"  # merge.py
    look = Look("solid", "D")

    def forwards(self, layers: int, removed: float, tokens: int) -> float:
        """Return eight forwards, as where all of 64 experts compute a token that takes eight of them."""
        return 8.0

    def plan(self, model: Decoder, ratio: float) -> dict[str, Any]:
        """Return the experts to remove from each layer. Raises OutOfReach where groups cannot hold all experts."""
        plan = super().plan(model, ratio)
        experts = next(iter(mixtures_of(model).values()))
        centres = experts.count - plan["removed_per_layer"]["experts"]
        if self.grouping == "ream" and self.group_size and centres * self.group_size < experts.count:
            raise OutOfReach(
                f"ratio {ratio:g} is out of reach: {centres} groups of group_size={self.group_size} experts do not "
                f"hold all {experts.count}; a group_size of {-(-experts.count // centres)} does, and 0 has no limit"
            )
        return plan

    @torch.no_grad()
    def prune(self, model: Decoder, calibration: Calibration, ratio: float) -> dict[str, Any]:
        """Merge experts of each layer, and return which became one."""
        plan = self.plan(model, ratio)
        n = plan["removed_per_layer"]["experts"]
        reports = self.sweep(model, calibration, n) if n else [{} for _ in model.layers]
        mixtures = mixtures_of(model)
        for experts in mixtures.values():
            count_experts(model, experts.row, experts.count)
        counts = [mixtures[number].count if number in mixtures else 0 for number in range(len(reports))]
        decided: dict[str, Any] = {"experts": counts}
        decided["removed_experts"] = [report.get("removed", []) for report in reports]
        for name in ("merged_experts", "weights", "distances", "scores") if n else ():
            decided[name] = [report[name] for report in reports if report]
        return plan | decided

    def sweep(self, model: Decoder, calibration: Calibration, n: int) -> list[dict[str, Any]]:
        """Take n experts out of each layer, one after the other; return a report of each, empty without experts."""
        entries, masks = enter_all(model, calibration, values_of_a_step(model))
        log = calibration.log([entry.x for entry in entries], "ream", self, n)
        kept, X, reports = log.kept(), log.take(), list[dict[str, Any]]()
        arguments = [entry.arguments for entry in entries]
        del entries  # with the first layer's input
        for number, layer in enumerate(show_progress(model.layers, "merging", "layer")):
            model.read_ahead(number + 1)
            with layer.visiting():
                if number < log.done:
                    encoded, *tensors = next(kept)
                    report = json.loads(bytes(encoded.tolist()))
                    put_merged(layer.experts, report, tensors)
                else:
                    given = [each[layer.kind] for each in arguments]
                    X = [x.to(layer.device) for x in X]
                    batches = list(zip(X, given, *move_beside(X, masks), strict=True))
                    X, report, tensors = self.merge_layer(layer, batches, calibration, n)
                    encoded = torch.frombuffer(bytearray(json.dumps(report).encode()), dtype=torch.uint8)
                    log.add([encoded, *tensors], X)
            layer.settle()
            reports.append(report)
        return reports

    def merge_layer(
        self, layer: Layer, batches: list[tuple[Tensor, Any, Tensor]], calibration: Calibration, n: int
    ) -> tuple[list[Tensor], dict[str, Any], list[Tensor]]:
        """Take n experts out of a layer; return its outputs, a report, and the tensors of merged experts.

        batches  (input, arguments, real tokens) of each micro-batch
        """
        experts = layer.experts
        if experts is None:
            return run_layer(layer, batches, calibration), {}, []
        entered, lengths = list[Tensor](), list[Tensor]()
        for x, arguments, mask in batches:
            entered.append(calibration.wait(enter_experts(layer, x, arguments)[mask]))
            lengths.append(mask.sum(1).cpu())
        outputs = [] if self.sequential else run_layer(layer, batches, calibration)
        sums = self.sum_outputs(experts, entered, torch.cat(lengths), calibration.memory)
        report = self.group(experts, sums, n)
        tensors = self.merge(experts, report, torch.cat([h.to(layer.device) for h in entered]), calibration.seed)
        put_merged(experts, report, tensors)
        return outputs or run_layer(layer, batches, calibration), report, tensors

    def sum_outputs(self, experts: Experts, entered: Sequence[Tensor], lengths: Tensor, memory: int) -> ExpertSums:
        """Return sums over all tokens that enter a mixture.

        entered  (M, D) for each micro-batch
        lengths  (sequences,) the tokens of each sequence, in the same order
        memory   bytes that the outputs of all experts may take
        """
        size = max(1, memory // (8 * experts.values * experts.count // experts.experts_per_token))
        batch_of_token = (torch.arange(len(lengths)) // BATCH).repeat_interleave(lengths)
        sums = ExpertSums.of(experts, -(-len(lengths) // BATCH))
        for states in entered:
            for h in torch.split(states.to(sums.N.device), size):
                batches = batch_of_token[sums.tokens : sums.tokens + len(h)].to(h.device)
                self.add_tokens(sums, experts, h, batches)
        refuse_overflow(sums.outputs.isfinite().all() & sums.weighed.isfinite().all())
        return sums

    def add_tokens(self, sums: ExpertSums, experts: Experts, h: Tensor, batches: Tensor) -> None:
        """Add tokens h (M, D), of these batches of sequences, (M,)."""
        every = torch.arange(experts.count, device=h.device).expand(len(h), -1)
        f, logits = experts.outputs(h, every).float(), experts.score(h).double()  # (M, J, D), (M, J)
        p = logits.softmax(dim=-1)
        factor = p if self.gated else torch.ones_like(p)
        g, chosen = experts.route(h)
        if self.saliency == "released":
            g, chosen = p.topk(experts.experts_per_token)
            g = g * factor.gather(1, chosen)
        norms = torch.linalg.vector_norm(f, dim=-1, dtype=torch.float64)
        weighed = g.double() * norms.gather(1, chosen)
        places = (batches[:, None] * experts.count + chosen).flatten()
        sums.tokens += len(h)
        sums.N.view(-1).index_add_(0, places, torch.ones_like(weighed).flatten())
        sums.weighed.view(-1).index_add_(0, places, weighed.flatten())
        sums.outputs += torch.einsum("mj,mjd->jd", factor.float(), f)
        sums.logits += logits.T @ logits
        if self.similarity == "token":
            units = torch.nn.functional.normalize(f, dim=-1).transpose(0, 1).flatten(1)  # (J, M D)
            sums.cosines += units @ units.T

    def group(self, experts: Experts, sums: ExpertSums, n: int) -> dict[str, Any]:
        """Return the report of a layer that loses n experts: who goes, who becomes one, and with which weights."""
        S, distances = self.saliency_of_experts(sums), self.distances_of_experts(sums)
        size = experts.count // experts.groups
        groups: merging.Groups = []
        for start in range(0, experts.count, size):  # a router's groups, each for itself
            block = slice(start, start + size)
            if self.grouping == "hcsmoe":
                joined = merging.group_by_clusters(sums.outputs[block] / sums.tokens, size - n // experts.groups)
            else:
                lowest = lowest_of_groups(S[block], n // experts.groups, 1)
                joined = merging.group_by_saliency(S[block], distances[block, block], lowest, self.group_size)
            for group in joined:
                groups.append([start + number for number in group])
        weight = merging.weights_of_experts(S)
        removed = sorted(number for group in groups for number in group[1:])
        merged = [] if self.merging is None else [group for group in groups if len(group) > 1]
        return {
            "removed": removed,
            "scores": S.tolist(),
            "merged_experts": merged,
            "weights": [(weight[group] / weight[group].sum()).tolist() for group in merged],
            "distances": [distances[group[0], group[1:]].tolist() for group in merged],
        }

    def saliency_of_experts(self, sums: ExpertSums) -> Tensor:
        """Return S, (J,)."""
        if self.saliency == "frequency":
            return sums.N.sum(0).cpu()
        if self.saliency == "released":
            return (sums.weighed / sums.N.clamp(min=1)).mean(0).cpu()
        return (sums.weighed.sum(0) / sums.N.sum(0).clamp(min=1)).cpu()

    def distances_of_experts(self, sums: ExpertSums) -> Tensor:
        """Return how far experts are apart: 1 - (s + r) / 2; of clusters the distance of means of outputs, (J, J)."""
        if self.grouping == "hcsmoe":
            return merging.distances_of_rows(*2 * [sums.outputs / sums.tokens]).cpu()
        routing = merging.similarity_of_routing(sums.logits)
        if self.similarity == "router":
            return (1 - routing).cpu()
        means = torch.nn.functional.normalize(sums.outputs, dim=1)
        cosines = sums.cosines / sums.tokens if self.similarity == "token" else means @ means.T
        alike = (cosines + 1) / 2
        return (1 - (alike if self.similarity == "output" else (alike + routing) / 2)).cpu()

    def merge(self, experts: Experts, report: dict[str, Any], h: Tensor, seed: int) -> list[Tensor]:
        """Return the tensors of each merged expert, one after the other, in the order of the bank.

        h  (T, D) all tokens that enter the mixture
        """
        if not report["merged_experts"]:
            return []
        samples = self.draw_tokens(len(h), experts.count, seed)
        V = merging.score_channels(experts) if self.merging in ("both", "weights") else None
        features = partial(self.features_of_channels, experts, h, samples, V)
        tensors = list[Tensor]()
        for group, weights in zip(report["merged_experts"], report["weights"], strict=True):
            orders = merging.pair_channels(map(features, group), experts.channels)
            tensors += merging.merge_experts(experts, group, weights, orders)
        return tensors

    def draw_tokens(self, tokens: int, count: int, seed: int) -> list[Tensor]:
        """Return the tokens on which the activations of each expert are compared, (sampled,) of `tokens` for each."""
        generator, size = torch.Generator().manual_seed(seed), min(self.sampled, tokens)
        draws = 1 if self.sample == "shared" else count
        samples = [torch.randperm(tokens, generator=generator)[:size] for _ in range(draws)]
        return samples * (count // draws)

    def features_of_channels(
        self, experts: Experts, h: Tensor, samples: Sequence[Tensor], V: Tensor | None, number: int
    ) -> list[Tensor]:
        """Return what the channels of an expert are compared by, activations and weights, (I, F) each."""
        features = []
        if self.merging in ("both", "activations"):
            sample = h[samples[number].to(h.device)]
            features.append(experts.activations(sample, number).float().T)
        if V is not None:
            features.append(V[number])
        return [torch.nn.functional.normalize(rows, dim=1) for rows in features]


@register("mc-smoe")
@dataclass(frozen=True)
class McSmoe(Ream):
    """Merge experts into those that most tokens are routed to, by the router's logits (Li et al. 2024)."""

    saliency: Literal["reap", "frequency", "released"] = "frequency"
    similarity: Literal["mean", "token", "output", "router"] = "router"
    group_size: Whole = 0
    merging: Literal["both", "activations", "weights", "mean"] | None = "weights"
    sequential: bool = False

    paper_reads = "256 examples of COPA"  # README.md
    look = Look("dashed", "X")


@register("hc-smoe")
@dataclass(frozen=True)
class HcSmoe(Ream):
    """Merge clusters of experts whose outputs are alike on average (Chen et al. 2025)."""

    saliency: Literal["reap", "frequency", "released"] = "frequency"
    gated: bool = False
    grouping: Literal["ream", "hcsmoe"] = "hcsmoe"
    merging: Literal["both", "activations", "weights", "mean"] | None = "mean"
    sequential: bool = False

    holds = Holds(states=3, layers=0.8)
    paper_reads = "32 sequences of C4"  # scripts/mixtral/run.sh
    look = Look("dotted", "d")


@dataclass
class ExpertSums:
    """Holds sums over the tokens that enter a mixture, in float64.

    N        (batches, J) how many are routed to each expert, by batches of sequences
    weighed  (batches, J) the norms of its outputs for these, weighed
    outputs  (J, D) its outputs for all tokens, times p where they are gated
    cosines  (J, J) of two experts' outputs, token by token
    logits   (J, J) products of two experts' logits in the router
    tokens   how many there are
    """

    N: Tensor
    weighed: Tensor
    outputs: Tensor
    cosines: Tensor
    logits: Tensor
    tokens: int = 0

    @staticmethod
    def of(experts: Experts, batches: int) -> ExpertSums:
        """Return sums over no tokens."""
        J, D = experts.router.weight.shape
        zeros = partial(torch.zeros, dtype=torch.float64, device=experts.router.weight.device)
        return ExpertSums(zeros(batches, J), zeros(batches, J), zeros(J, D), zeros(J, J), zeros(J, J))


def enter_experts(layer: Layer, x: Tensor, arguments: dict[str, Any]) -> Tensor:
    """Return what enters the mixture of a layer, (B, T, D) -> (B, T, D)."""
    h: Tensor = layer.mlp_norm(x if layer.parallel else x + layer.attend(x, arguments))
    return h


def run_layer(layer: Layer, batches: list[tuple[Tensor, Any, Tensor]], calibration: Calibration) -> list[Tensor]:
    """Return the outputs of a layer, (B, T, D) for each micro-batch. Raises Unsupported where they overflow."""
    outputs = list[Tensor]()
    for x, arguments, _ in batches:
        y = layer(x, arguments)
        refuse_overflow(y.isfinite().all())
        outputs.append(calibration.wait(y))
    return outputs


def put_merged(experts: Experts | None, report: dict[str, Any], tensors: Sequence[Tensor]) -> None:
    """Remove experts as a report says, and put the merged ones in their places. Does nothing without experts."""
    if experts is None:
        return
    kept = sorted(set(range(experts.count)) - set(report["removed"]))
    experts.keep(kept)
    names = [name for name, _ in experts.bank.named_parameters()]
    for place, group in enumerate(report["merged_experts"]):
        of_group = tensors[place * len(names) : (place + 1) * len(names)]
        experts.put(kept.index(group[0]), dict(zip(names, of_group, strict=True)))
