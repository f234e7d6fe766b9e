"""BitFit: of the pre-trained encoder, only the biases train.

Ben Zaken et al., ACL 2022, arXiv 2106.10199, section 3: every bias term b of the encoder, W x + b of linear layers and
g * x + b of normalisations, and nothing else. No parameter is added.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.method import Adapted, Method, Task
from harness.models.encoder import Encoder


class BitFit(Method):
    """All biases of the encoder: tokenizer, positions, blocks and final norm; class token and position train too.

    A bias right before a batch norm that takes its statistics from the batch cancels out: in training its gradient is
    rounding noise (docs/methods.md). The paper's count holds those biases, so they are declared like the others.
    """

    def adapt(self, encoder: Encoder, task: Task) -> Adapted:
        """Unfreeze every bias."""
        biases = [
            module.bias
            for module in encoder.modules()
            if isinstance(module, nn.Linear | nn.LayerNorm | _BatchNorm) and module.bias is not None
        ]
        return Adapted(encoder, unfrozen=[*encoder.class_parameters, *biases])
