"""What towers compute in place of the modules they were built of: the same up to rounding, sooner.

R rows of T tokens, W width, M vectors of K numbers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CPU_INFO = Path("/proc/cpuinfo")
SHAPES_KEPT = "64"
FEW_NUMBERS = 20_480  # torch gives no smaller convolution to oneDNN


def mkl_is_slow() -> bool:
    """Whether torch has oneDNN, this processor has AVX-512, and it is known not to be Intel's: so
    that MKL, in which torch multiplies fp32 matrices, does without, and oneDNN does not."""
    info = CPU_INFO.read_text() if CPU_INFO.exists() else ""
    return (
        "AVX512" in torch.backends.cpu.get_cpu_capability()
        and "vendor_id" in info
        and "GenuineIntel" not in info
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


MKL_IS_SLOW = mkl_is_slow()
if MKL_IS_SLOW:
    # oneDNN keeps what it has made for each of the last 1,024 shapes. Batches have hundreds, and
    # the memory of large tensors that were freed between these cannot be taken again: gigabytes.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", SHAPES_KEPT)
    os.environ.setdefault("LRU_CACHE_CAPACITY", SHAPES_KEPT)


def takes_onednn(x: Tensor, weight: Tensor | None) -> bool:
    """Whether oneDNN computes a product; never in an exported graph, which other machines run."""
    return (
        MKL_IS_SLOW
        and x.is_cpu
        and weight is not None
        and x.dtype is weight.dtype is torch.float32
        and not torch.is_autocast_enabled("cpu")  # then torch has oneDNN multiply in bf16 anyway
        and not torch.compiler.is_compiling()
        and x.numel() > FEW_NUMBERS
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, but where MKL is slow as a convolution over single points, which oneDNN computes:
    twice as fast on an AMD EPYC of 2024, forward and backward."""
    if not takes_onednn(x, weight):
        return F.linear(x, weight, bias)
    points_1K1M = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # channels last: no copy
    # A single point has no neighbours to be dilated: that only has torch take oneDNN on one thread
    # too (`use_mkldnn` in its `Convolution.cpp`).
    out = F.conv2d(points_1K1M, weight[:, :, None, None], bias, dilation=2)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class InPlaceQuickGELU(nn.Module):
    """open_clip's QuickGELU, bit for bit, without one of its three new tensors, or without two
    where no gradients are wanted.

    They are the largest of a tower: on a CPU, taking the memory costs as much as the arithmetic
    (a tenth of all of ViT-B/32).
    """

    def forward(self, x: Tensor) -> Tensor:
        gate = (1.702 * x).sigmoid_()
        return x * gate if torch.is_grad_enabled() else gate.mul_(x)


class Attention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` by `linear`, where that is faster and rows attend to themselves."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        is_plain = self.batch_first and self.in_proj_bias is not None and not self.dropout
        is_plain = is_plain and query is key is value and key_padding_mask is None
        is_plain = is_plain and not need_weights and not is_causal
        # Masks with a row for each head, and boolean ones, mean something else to `attend`.
        is_plain = is_plain and (
            attn_mask is None or (attn_mask.dim() == 2 and attn_mask.is_floating_point())
        )
        if is_plain and takes_onednn(query, self.in_proj_weight):
            return attend(self, query, attn_mask), None
        return super().forward(
            *(query, key, value, key_padding_mask),
            need_weights=need_weights,
            attn_mask=attn_mask,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )


class SplitAttention(nn.Module):
    """`nn.MultiheadAttention` whose weights for query, key and value are one each, on the same
    memory: in a graph they stay constants, which can be quantised."""

    def __init__(self, whole: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.out_proj = whole.num_heads, whole.out_proj
        self.weights = nn.ParameterList(whole.in_proj_weight.detach().chunk(3))
        self.biases = nn.ParameterList(whole.in_proj_bias.detach().chunk(3))

    def forward(self, x_RTW: Tensor, *_: Tensor, **__: object) -> tuple[Tensor, None]:
        """As open_clip's vision transformer calls it: without a mask."""
        return attend(self, x_RTW, None), None


def attend(
    attention: nn.MultiheadAttention | SplitAttention, x_RTW: Tensor, may_look: Tensor | None
) -> Tensor:
    """A module's attention of rows to themselves.

    `may_look` is a mask that broadcasts to [R, heads, T, T], True or 0 where a token may look.

    In three products, not one that is taken apart: in torch it is as fast, in an exported graph a
    twentieth of the picture tower's time less.
    """
    rows, tokens, _ = x_RTW.shape
    if isinstance(attention, SplitAttention):
        thirds = list(zip(attention.weights, attention.biases, strict=True))
    else:
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        thirds = list(zip(weights, biases, strict=True))
    query, key, value = (
        linear(x_RTW, weight, bias).view(rows, tokens, attention.num_heads, -1).transpose(1, 2)
        for weight, bias in thirds
    )
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=may_look)
    projection = attention.out_proj
    return linear(out.transpose(1, 2).reshape(x_RTW.shape), projection.weight, projection.bias)


def block(given: Any, x_RTW: Tensor, may_look_R1TT: Tensor) -> Tensor:
    """One residual attention block of open_clip over packed rows."""
    x_RTW = x_RTW + given.ls_1(attend(given.attn, given.ln_1(x_RTW), may_look_R1TT))
    return x_RTW + given.ls_2(given.mlp(given.ln_2(x_RTW)))
