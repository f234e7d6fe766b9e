"""SSF: a learned scale and shift after every operation of the frozen encoder.

Lian et al., NeurIPS 2022, arXiv 2210.08823, equation 2: y = gamma * x + beta, channel by channel; official
`models/vision_transformer.py`, tuning mode `ssf`. (They cannot be merged into this encoder, as the paper does into
its own: the joint projection to queries, keys and values has no bias that could take a shift.)
"""

from __future__ import annotations

from harness.method import Adapted, Method, Task
from harness.models.encoder import Encoder
from harness.models.scale_shift import ScaleShift, ShiftedGELU, shifted


class SSF(Method):
    """Scale and shift after both norms and all four linear layers of every block, after tokenizers and final norm.

    Class token and position train too.
    """

    def adapt(self, encoder: Encoder, task: Task) -> Adapted:
        """Put a scale and shift behind every operation."""
        for block in encoder.plain_blocks:
            block.norm1 = shifted(block.norm1, block.dim)
            block.attn.qkv = shifted(block.attn.qkv, 3 * block.dim)
            block.attn.proj = shifted(block.attn.proj, block.dim)
            block.norm2 = shifted(block.norm2, block.dim)
            block.mlp.activation = ShiftedGELU(block.mlp.width)  # behind fc1
            block.mlp.fc2 = shifted(block.mlp.fc2, block.dim)
        adapted = encoder.with_parts(
            tokenizers=[shifted(part, width) for part, width in zip(encoder.tokenizers, encoder.widths, strict=True)],
            norm=shifted(encoder.norm, encoder.dim),
        )
        added = [part for part in adapted.modules() if isinstance(part, ScaleShift)]
        return Adapted(adapted, added=added, unfrozen=encoder.class_parameters)
