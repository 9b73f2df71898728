"""Plain PyTorch references that every fast path must equal.

Legend: N rows, D width, K codes a level, L levels; B batch, H heads, Q queries, S keys, d head width; T rows, E groups,
F outer width; W beams, V kept beams.
"""

from collections.abc import Sequence

import torch

MAX_DISTANCES = 2**25  # distances held at once: 128 MiB of float32


def nearest_codes(rows_ND: torch.Tensor, codebook_KD: torch.Tensor) -> torch.Tensor:
    """Index of the nearest codebook row by squared Euclidean distance, int64 (N,).

    Computed in float32; of equal distances the lowest index wins. A row of NaN is the caller's defect.
    """
    rows_ND, codebook_KD = rows_ND.float(), codebook_KD.float()
    lengths_K = codebook_KD.square().sum(dim=1)
    chunk = max(1, MAX_DISTANCES // len(codebook_KD))
    nearest = [
        torch.addmm(lengths_K, part_nD, codebook_KD.T, alpha=-2.0).argmin(dim=1)  # |x|^2 is the same for every code
        for part_nD in rows_ND.split(chunk)
    ]
    return torch.cat(nearest) if nearest else torch.empty(0, dtype=torch.int64, device=rows_ND.device)


def assign_residual(rows_ND: torch.Tensor, codebooks: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of residual quantisation and what is left over: int64 (N, L) and float32 (N, D).

    Level by level: s_l = argmin_k |R_l - C_l[k]|, R_(l+1) = R_l - C_l[s_l] (OneRec technical report, arXiv 2506.13695,
    section on RQ-KMeans). `codebooks` holds one (K, D) tensor a level.
    """
    residual_ND = rows_ND.float()
    codes = []
    for codebook_KD in codebooks:
        codes_N = nearest_codes(residual_ND, codebook_KD)
        residual_ND = residual_ND - codebook_KD.float()[codes_N]
        codes.append(codes_N)
    empty_N0 = torch.empty((len(rows_ND), 0), dtype=torch.int64, device=rows_ND.device)
    return (torch.stack(codes, dim=1) if codes else empty_N0), residual_ND


def attention(
    queries_BHQd: torch.Tensor,
    keys_BHSd: torch.Tensor,
    values_BHSd: torch.Tensor,
    visible: torch.Tensor | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """Scaled dot-product attention (B, H, Q, d), softmax(q k / sqrt(d)) v; a query that sees no key gives NaN.

    Args:
        visible: bool, broadcast to (B, H, Q, S): the keys a query may see.
        causal: each query sees the keys up to its own place; Q equals S.
    """
    if causal:
        size = queries_BHQd.size(-2)
        visible = torch.ones(size, size, dtype=torch.bool, device=queries_BHQd.device).tril()
    scores_BHQS = (queries_BHQd * queries_BHQd.size(-1) ** -0.5) @ keys_BHSd.transpose(-1, -2)
    if visible is not None:
        scores_BHQS = scores_BHQS.masked_fill(~visible, float("-inf"))
    return scores_BHQS.softmax(dim=-1) @ values_BHSd


def attention_to_prefix(
    queries_BWI: torch.Tensor,
    first_BI: tuple[torch.Tensor, torch.Tensor],
    others_BWI: Sequence[tuple[torch.Tensor, torch.Tensor]],
    num_heads: int,
) -> torch.Tensor:
    """What `kernels.prefix_attention.attend_to_prefix` computes, by `attention` over each beam's own list of tokens."""
    keys, values = (
        torch.stack([first[:, None].expand_as(queries_BWI), *others], dim=2)
        .unflatten(-1, (num_heads, -1))
        .transpose(2, 3)
        for first, *others in zip(first_BI, *others_BWI, strict=True)
    )
    queries = queries_BWI.unflatten(-1, (num_heads, 1, -1))
    return attention(queries.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1)).view_as(queries_BWI)


def grouped_product(rows_TD: torch.Tensor, weights_EDF: torch.Tensor, counts_E: torch.Tensor) -> torch.Tensor:
    """What `kernels.grouped_products.grouped_product` computes, by a copy of its group's matrix for each row."""
    groups_T = torch.repeat_interleave(torch.arange(len(counts_E), device=counts_E.device), counts_E)
    return torch.einsum("td,tdf->tf", rows_TD, weights_EDF[groups_T])


def sampled_products(
    left_RD: torch.Tensor, right_nD: torch.Tensor, counts_R: torch.Tensor, columns_C: torch.Tensor
) -> torch.Tensor:
    """Products (C,) in float32 of each of R left rows with the `counts_R` right rows that `columns_C` names for it."""
    rows_C = torch.repeat_interleave(counts_R)
    return (left_RD.float()[rows_C] * right_nD.float()[columns_C]).sum(dim=-1)


def trie_top_k(
    logits_BWK: torch.Tensor,
    scores_BW: torch.Tensor,
    begins_BW: torch.Tensor,
    ends_BW: torch.Tensor,
    codes: torch.Tensor,
    dead: torch.Tensor | None,
    num_kept: int,
) -> list[list[tuple[float, int, int]]]:
    """The best continuations of each request as (score, node, beam), of equal scores the lowest node first.

    A beam's children are the nodes from its begin up to its end, `codes` their codes; a continuation's score is the
    beam's and the log-softmax of its code over all K. `dead` (B, nodes) marks nodes that may not be entered.
    """
    steps_BWK = logits_BWK.float().log_softmax(dim=-1)
    best = []
    for b, beams in enumerate(zip(begins_BW.tolist(), ends_BW.tolist(), strict=True)):
        found = []
        for beam, (begin, end) in enumerate(zip(*beams, strict=True)):
            for node in range(begin, end):
                if dead is None or not dead[b, node]:
                    score = scores_BW[b, beam] + steps_BWK[b, beam, codes[node].long()]
                    found.append((score.item(), node, beam))
        best.append(sorted(found, key=lambda one: (-one[0], one[1]))[:num_kept])
    return best


def quantised_product(x: torch.Tensor, codes_FD: torch.Tensor, scales_F1: torch.Tensor) -> torch.Tensor:
    """Rows (..., D) times the weights that numbers of eight bits and their scales stand for, in float32 (..., F)."""
    return x.float() @ (codes_FD.float() * scales_F1.float()).T


def jagged_attention(
    queries_THd: torch.Tensor,
    keys_THd: torch.Tensor,
    values_THd: torch.Tensor,
    offsets: torch.Tensor,
    form: str,
    bias_of_sequence: Sequence[torch.Tensor],
    scale: float,
) -> torch.Tensor:
    """What `kernels.jagged_attention.attend_jagged` computes, one query at a time, with a full table of biases."""
    rows = []
    for bias_SS, begin, end in zip(bias_of_sequence, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        for place in range(end - begin):
            seen = slice(begin, begin + place + 1)
            scores_HS = torch.einsum("hd,shd->hs", queries_THd[begin + place], keys_THd[seen]) * scale
            scores_HS = scores_HS + bias_SS[place, : place + 1]
            softmax = form == "softmax"
            weights_HS = scores_HS.softmax(dim=1) if softmax else scores_HS * scores_HS.sigmoid() / (place + 1)
            rows.append(torch.einsum("hs,shd->hd", weights_HS, values_THd[seen]))
    return torch.stack(rows)
