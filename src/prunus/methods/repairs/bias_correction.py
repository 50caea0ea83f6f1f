"""What removed inputs gave on average, folded into the bias of the layer that read them."""

from __future__ import annotations

import torch

from prunus._common.activations import Place
from prunus.methods.repairs import RepairContext
from prunus.methods.repairs._affine import Moments, bias_of, kept_rows, kernel_rows, layer_by_layer
from prunus.methods.repairs.batch_norm import batch_norm

NEEDS_REFERENCE = True


def bias_correction(context: RepairContext) -> None:
    """b ← b + mean(y) − mean(W x + b) for each layer that has a bias, in the order of the pass.

    y is what the layer gave before the cut, x what it reads now. Layers without a bias stay; batch
    norms, which take a mean away themselves, are estimated anew behind it.

    Source: Nagel, van Baalen, Blankevoort, Welling 2019 (bias correction), arXiv:1906.04721.

    >>> from torch import nn
    >>> whole, masked = nn.Linear(2, 1), nn.Linear(2, 1)
    >>> for layer, row in ((whole, [1.0, 1.0]), (masked, [1.0, 0.0])):
    ...     _ = layer.weight.data.copy_(torch.tensor([row])), layer.bias.data.zero_()
    >>> x = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    >>> bias_correction(RepairContext(masked, whole, {}, lambda: [((x,), {})]))
    >>> masked.bias.data
    tensor([2.])
    """

    def fit(place: Place, moments: Moments) -> None:
        own = bias_of(place.module)
        assert own is not None
        sums, wanted = moments.xx[:, -1], moments.xy[:, -1]  # of columns and of answers
        rows = torch.cat([kernel_rows(place.module), own.detach()[:, None]], dim=1).double()
        given = (rows.unflatten(0, (len(sums), -1)) @ sums[:, :, None])[..., 0]
        shift = ((wanted - given) / moments.count).flatten()
        with torch.no_grad():
            own.add_((shift * kept_rows(context, place)[:, -1]).to(own.dtype))

    layer_by_layer(context, fit, lambda module: bias_of(module) is not None)
    batch_norm(context)
