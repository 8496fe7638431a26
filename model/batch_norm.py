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
            variance, own[0] = torch.var_mean(x.to(own.dtype), dims, correction=0)
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
        to_weight, to_bias = torch.zeros_like(mean), torch.zeros_like(mean)
        if len(x):  # sums of (gradient times normalised x) and of the gradient, (C,) each
            constants = weight, mean, variance, None, None, False, ctx.eps
            _, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
                gradient, x, *constants, [False, True, True]
            )
        sums = torch.stack([to_weight, to_bias]).double()
        dist.all_reduce(sums)
        inverse = (variance.double() + ctx.eps).rsqrt()

        def channels(values):  # (C,) to the shape that x is multiplied with
            return values.to(mean.dtype).view(-1, *[1] * (x.ndim - 2))

        to_x = (gradient - channels(sums[1] / count)).addcmul_(
            x - channels(mean), channels(inverse * sums[0] / count), value=-1
        )
        return (to_x * channels(weight * inverse)).to(x.dtype), to_weight, to_bias, None


class CpuSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """nn.SyncBatchNorm on a CPU, for which PyTorch has none."""

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            constants = self.running_mean, self.running_var, self.weight, self.bias
            return F.batch_norm(x, *constants, eps=self.eps)
        y, mean, variance, count = _Normalize.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        return y


def synchronize_batch_norm(module: nn.Module, device: torch.device) -> None:
    """Lets every batch norm inside take the images of all processes; state-dict keys stay.

    Args:
        module: changed in place.
        device: on which it runs.
    """
    kind = CpuSyncBatchNorm if device.type == "cpu" else nn.SyncBatchNorm
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, _replaced(child, kind))
        else:
            synchronize_batch_norm(child, device)


def _replaced(norm, kind: type[nn.modules.batchnorm._BatchNorm]):
    """Of another kind, with the parameters and buffers of `norm`."""
    new = kind(norm.num_features, norm.eps, norm.momentum).to(norm.weight.device)
    new.weight, new.bias = norm.weight, norm.bias
    for name, value in norm.named_buffers(recurse=False):
        setattr(new, name, value)
    if after := list(norm.children()):  # timm's layers go on with drop-out and an activation
        new.after = nn.Sequential(*after)
        new.register_forward_hook(lambda module, _, y: module.after(y))
    return new.train(norm.training)
