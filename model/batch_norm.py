"""Batch norm with the statistics of all processes' images, on GPUs and on CPUs."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F


class _Normalize(torch.autograd.Function):
    """Batch norm of x (B, C, ...) with the mean and variance over all processes, B = 0 included.

    Returns the result, the mean, the biased variance (C,) each, and the number of values a channel.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        dims, values = [0, *range(2, x.ndim)], x.numel() // x.shape[1]
        own = weight.new_zeros(3, x.shape[1])  # mean, sum of squared deviations, count
        if values:
            variance, own[0] = torch.var_mean(x.float(), dims, correction=0)
            own[1], own[2] = variance * values, values
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        means, squares, counts = torch.stack(parts, 1)  # (processes, C) each
        count = counts.sum(0)  # (C,), the same number
        mean = (means * counts).sum(0) / count
        variance = (squares + counts * (means - mean).square()).sum(0) / count
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance, count

    @staticmethod
    def backward(ctx, gradient, *_):
        x, weight, mean, variance, count = ctx.saved_tensors
        if len(x):  # as if mean and variance were constants
            to_x, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
                gradient, x, weight, mean, variance, None, None, False, ctx.eps, [True] * 3
            )
        else:
            to_x, to_weight, to_bias = gradient, torch.zeros_like(mean), torch.zeros_like(mean)
        sums = torch.stack([to_weight, to_bias])  # (2, C), of gradient times result, of gradient
        dist.all_reduce(sums)
        if len(x):  # what reaches x through mean and variance
            shape = (-1, *[1] * (x.ndim - 2))
            inverse = (variance + ctx.eps).rsqrt()
            slope = weight * inverse.square() * sums[0] / count
            level = weight * inverse * sums[1] / count - slope * mean
            to_x = to_x - (slope.view(shape) * x + level.view(shape)).to(to_x.dtype)
        return to_x, to_weight, to_bias, None


class SyncedBatchNorm(nn.SyncBatchNorm):
    """PyTorch's SyncBatchNorm, which runs on GPUs alone, and the same on a CPU.

    Args:
        norm: the batch norm that it replaces: it takes its parameters, buffers and names, and what
            timm's layers do after it.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm):
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine)
        self.weight, self.bias = norm.weight, norm.bias
        for name, value in norm.named_buffers(recurse=False):
            self.register_buffer(name, value)
        self.after = nn.Sequential(*norm.children())  # timm: drop and activation
        self.train(norm.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu" or not self.training:
            return self.after(super().forward(x))
        y, mean, variance, count = _Normalize.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            unbiased = variance * count / (count - 1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
            self.num_batches_tracked.add_(1)
        return self.after(y)


def synchronize_batch_norm(module: nn.Module) -> None:
    """Replaces every batch norm inside by a SyncedBatchNorm; keys of the state dict stay."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, SyncedBatchNorm(child))
        else:
            synchronize_batch_norm(child)
