"""Layers on the vertices of a mesh. All take and give (B, V, C)."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from util.vertex_kernels import GROUP, kernels_for


class GraphLinear(nn.Module):
    """The same linear map at each vertex; published parameter names W (out, in) and b (out,)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        bound = 1 / (inputs * outputs)
        self.W = nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))

    def forward(self, x):
        return F.linear(x, self.W, self.b)


class GraphConvolution(nn.Module):
    """A (x W) + b; `neighbours` applies the row-normalised A (Kipf and Welling, ICLR 2017)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        bound = 6 / math.sqrt(inputs + outputs)
        self.weight = nn.Parameter(torch.empty(inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))

    def forward(self, x, neighbours):
        y = neighbours(x @ self.weight)
        return y + self.bias.to(y.dtype)  # in bfloat16 where y is


class VertexGroupNorm(nn.GroupNorm):
    """Group norm over (vertices x channels of a group), GROUP channels a group."""

    def __init__(self, channels: int):
        super().__init__(channels // GROUP, channels)

    def relu(self, x):
        """The norm and ReLU."""
        if kernels := kernels_for(x):
            return kernels.norm_relu(x, self.weight, self.bias, self.eps)
        return F.relu(self(x))

    def forward(self, x):
        # (B, V, C) seen as a channels-last image (B, C, V, 1): no copy on a CPU.
        return super().forward(x.unsqueeze(2).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).squeeze(2)


class GraphResBlock(nn.Module):
    """Residual block: norm, ReLU and linear, graph convolution, linear; plus the input."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        half = outputs // 2
        self.lin1 = GraphLinear(inputs, half)
        self.conv = GraphConvolution(half, half)
        self.lin2 = GraphLinear(half, outputs)
        self.skip_conv = GraphLinear(
            inputs, outputs
        )  # unused where inputs = outputs, but present in the published files
        self.pre_norm = VertexGroupNorm(inputs)
        self.norm1 = VertexGroupNorm(half)
        self.norm2 = VertexGroupNorm(half)
        self.same = inputs == outputs

    def forward(self, x, neighbours):
        y = self.lin1(self.pre_norm.relu(x))
        y = self.conv(self.norm1.relu(y), neighbours)
        y = self.lin2(self.norm2.relu(y))
        return (x if self.same else self.skip_conv(x)) + y
