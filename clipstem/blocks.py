"""What towers compute in place of the modules they were built of: the same up to rounding, sooner.

R rows of T tokens, W width, M vectors of K numbers.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CPU_INFO = Path("/proc/cpuinfo")
SHAPES_KEPT = "64"
QUICK = 1.702  # QuickGELU's factor
MANY_ROWS = 2_048  # of the products that a prepacked weight is laid out for
ATTENTION_BYTES = 2**24  # of pairs of tokens, whose logits are computed at a time
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
# oneDNN, which computes bf16 on Intel's processors, too, keeps what it has made for each of the
# last 1,024 shapes. Batches have hundreds, and the memory of large tensors that were freed between
# these cannot be taken again: gigabytes.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", SHAPES_KEPT)
os.environ.setdefault("LRU_CACHE_CAPACITY", SHAPES_KEPT)


@cache
def onednn_has_bf16() -> bool:
    """Whether this torch and this processor have oneDNN's products in bf16."""
    ops = torch.ops.mkldnn
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    return all(hasattr(ops, name) for name in names) and bool(ops._is_mkldnn_bf16_supported())


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
        gate = (QUICK * x).sigmoid_()
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
    """`nn.MultiheadAttention` with the same weights, and a layer each for query, key and value.

    In a graph their weights stay constants, which can be quantised, and each layer can be exchanged
    for a prepacked one.
    """

    def __init__(self, whole: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = whole.num_heads
        weights, biases = whole.in_proj_weight.chunk(3), whole.in_proj_bias.chunk(3)
        self.thirds = nn.ModuleList(map(_layer, weights, biases))
        self.out_proj = _layer(whole.out_proj.weight, whole.out_proj.bias)

    def forward(self, x_RTW: Tensor, *_: Tensor, **__: object) -> tuple[Tensor, None]:
        """As open_clip's vision transformer calls it: without a mask, for none is heeded."""
        return attend(self, x_RTW, None), None


def _layer(weight: Tensor, bias: Tensor) -> Linear:
    """A layer of these weights, which do not learn by it."""
    layer = Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


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
        thirds = [layer(x_RTW) for layer in attention.thirds]
    else:
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        thirds = [linear(x_RTW, *third) for third in zip(weights, biases, strict=True)]
    query, key, value = (
        third.view(rows, tokens, attention.num_heads, -1).transpose(1, 2) for third in thirds
    )
    in_bf16 = query.is_cpu and query.dtype is torch.bfloat16 and not torch.is_grad_enabled()
    if in_bf16 and may_look is None and onednn_has_bf16():
        out = attention_in_bf16(query, key, value)
    else:
        out = F.scaled_dot_product_attention(query, key, value, may_look)
    out = out.transpose(1, 2).reshape(x_RTW.shape)
    if isinstance(attention, SplitAttention):
        return attention.out_proj(out)
    return linear(out, attention.out_proj.weight, attention.out_proj.bias)


def attention_in_bf16(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What `F.scaled_dot_product_attention` gives for [R, heads, T, K] of one shape on a CPU in
    bf16, by three operations of which oneDNN has the two products: sooner, on two cores of an AMD
    EPYC with AVX512_BF16. Not for gradients.

    So many rows at a time, but one at least, that their pairs of tokens take little memory. What
    is between the operations is rounded to bf16, as in torch's fast path for
    `nn.MultiheadAttention`, but not in its kernel.
    """
    _, heads, tokens, width = query.shape
    together = max(1, ATTENTION_BYTES // (query.element_size() * heads * tokens**2))
    none, scale = query.new_zeros(1, 1, 1), width**-0.5
    out_RHTK = query.new_empty(query.shape)
    parts = [torch.split(it, together) for it in (query, key, value, out_RHTK)]
    for part in zip(*parts, strict=True):
        q_MTK, k_MTK, v_MTK, out_MTK = (it.flatten(0, 1) for it in part)
        logits_MTT = torch.baddbmm(none, q_MTK, k_MTK.transpose(1, 2), beta=0, alpha=scale)
        torch.bmm(logits_MTT.softmax(-1), v_MTK, out=out_MTK)
    return out_RHTK


class PrepackedLinear(Linear):
    """A linear layer without gradients whose product is computed in bf16; it gives numbers of the
    type it is given.

    oneDNN has laid out the weight once, as products read it; `F.linear` has that done each time.
    `activation` is one that oneDNN computes while a result is at hand; the factors are those that
    it wants weight and bias multiplied with. The layer's own, which it shares, are for modules that
    multiply with them themselves: in fp32.
    """

    def __init__(
        self,
        layer: nn.Linear,
        activation: str = "none",
        weight_factor: float = 1.0,
        bias_factor: float = 1.0,
    ) -> None:
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        rounded_MK = (layer.weight.detach() * weight_factor).bfloat16()
        laid_out = torch.ops.mkldnn._reorder_linear_weight(rounded_MK, MANY_ROWS)
        self.laid_out: Tensor = laid_out
        has_bias = layer.bias is not None
        self.rounded_bias = (layer.bias.detach() * bias_factor).bfloat16() if has_bias else None
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        no_numbers: list[float] = []
        given = (input.bfloat16(), self.laid_out, self.rounded_bias, self.activation, no_numbers)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(*given, "none")
        return product.to(input.dtype)


class PrepackedPatches(nn.Module):
    """A convolution over patches that do not overlap, as one product in bf16, which takes bytes:
    as they are, bf16 holds all 256, so pixels are normalised by the weights."""

    def __init__(self, convolution: nn.Conv2d, mean_C: Tensor, std_C: Tensor) -> None:
        super().__init__()
        self.sides = convolution.kernel_size
        weight_WCHW = convolution.weight.detach()
        bias_W = -(weight_WCHW.sum((2, 3)) @ (mean_C / std_C))
        if convolution.bias is not None:
            bias_W += convolution.bias.detach()
        by_byte_WCHW = weight_WCHW / (255 * std_C)[:, None, None]
        layer = _layer(by_byte_WCHW.permute(0, 2, 3, 1).flatten(1), bias_W)
        self.product = PrepackedLinear(layer)

    def forward(self, bytes_ICHW: Tensor) -> Tensor:
        """[I, W, patches down, patches across], fp32."""
        high, wide = self.sides
        pictures, channels, height, width = bytes_ICHW.shape
        down, across = height // high, width // wide
        whole_IHWC = bytes_ICHW[:, :, : down * high, : across * wide].permute(0, 2, 3, 1)
        cut = whole_IHWC.reshape(pictures, down, high, across, wide * channels).transpose(2, 3)
        patches = cut.reshape(pictures, down, across, high * wide * channels).bfloat16()
        product: Tensor = self.product(patches)
        return product.float().permute(0, 3, 1, 2)


class PrepackedBlock(nn.Module):
    """A residual attention block of open_clip whose products are computed in bf16; the sums and
    norms between them stay in fp32, which takes no longer."""

    def __init__(self, given: Any) -> None:
        super().__init__()
        self.ln_1, self.ls_1, self.ln_2, self.ls_2 = given.ln_1, given.ls_1, given.ln_2, given.ls_2
        self.attn = SplitAttention(given.attn)
        prepack(self.attn)
        mlp, known = given.mlp, _in_onednn(given.mlp.gelu)
        activation, factor = known or ("none", 1.0)
        self.c_fc = PrepackedLinear(mlp.c_fc, activation, factor, factor)
        self.gelu = nn.Identity() if known else mlp.gelu
        self.c_proj = PrepackedLinear(mlp.c_proj, weight_factor=1 / factor)

    def forward(
        self,
        x_RTW: Tensor,
        _k_x: None = None,
        _v_x: None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """As open_clip's transformers call their own, for rows that attend to themselves, with a
        mask as `attend` wants it."""
        x_RTW = x_RTW + self.ls_1(attend(self.attn, self.ln_1(x_RTW).bfloat16(), attn_mask))
        hidden = self.gelu(self.c_fc(self.ln_2(x_RTW).bfloat16()))
        return x_RTW.add_(self.ls_2(self.c_proj(hidden)))


def prepack(module: nn.Module) -> None:
    """Let each of our linear layers in it compute its product in bf16."""
    for parent in [*module.modules()]:
        for name, child in [*parent.named_children()]:
            if type(child) is Linear:
                setattr(parent, name, PrepackedLinear(child))


def _in_onednn(activation: nn.Module) -> tuple[str, float] | None:
    """Its name there, and what goes in is to be multiplied with, and what comes out divided by."""
    if isinstance(activation, InPlaceQuickGELU):
        return "swish", QUICK  # x · sigmoid(1.702 x) is swish(1.702 x) / 1.702
    if isinstance(activation, nn.GELU) and activation.approximate == "none":
        return "gelu", 1.0
    return None


def block(given: Any, x_RTW: Tensor, may_look_R1TT: Tensor) -> Tensor:
    """One residual attention block of open_clip over packed rows."""
    if isinstance(given, PrepackedBlock):
        packed: Tensor = given(x_RTW, attn_mask=may_look_R1TT)
        return packed
    x_RTW = x_RTW + given.ls_1(attend(given.attn, given.ln_1(x_RTW), may_look_R1TT))
    return x_RTW + given.ls_2(given.mlp(given.ln_2(x_RTW)))
