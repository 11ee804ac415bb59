"""Encoders of a sequence, each behind `forward(steps_BSD, known_BS) → steps_BSD`.

What stands where nothing is known moves no step that is known. Shapes: B rows, S steps, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class TransformerEncoder(nn.Module):
    """Pre-norm self-attention over all steps. Source: Xiong et al. 2020, "On layer normalization
    in the Transformer architecture".

    Dropout acts on what attention gives, not on its weights: drawing S² of them a head costs a CPU
    as much as all the rest of a layer, and keeps PyTorch from its fused attention.
    """

    def __init__(self, width: int, dropout: float, layers: int, heads: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        layer.self_attn.dropout = 0.0
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, steps_BSD: Tensor, known_BS: Tensor) -> Tensor:
        # a row of nothing attends to its padding: with every step masked it would be NaN
        visible_BS = known_BS | ~known_BS.any(1, keepdim=True)
        mask_BS = torch.zeros_like(visible_BS, dtype=steps_BSD.dtype)
        mask_BS = mask_BS.masked_fill(~visible_BS, -1e9)
        encoded_BSD: Tensor = self.layers(steps_BSD, src_key_padding_mask=mask_BS)
        return encoded_BSD


class ConvolutionEncoder(nn.Module):
    """Residual convolutions of width 3 over steps 1, 2, 4, … apart, so that `layers` of them see
    2^(layers + 1) − 1 steps. Source: Bai, Kolter and Koltun 2018, "An empirical evaluation of
    generic convolutional and recurrent networks"; here not causal: all steps lie before as-of.
    """

    def __init__(self, width: int, dropout: float, layers: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, width, kernel_size=3, dilation=2**k, padding=2**k)
            for k in range(layers)
        )
        self.mixers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.drop = nn.Dropout(dropout)

    def forward(self, steps_BSD: Tensor, known_BS: Tensor) -> Tensor:
        known_BS1 = known_BS.unsqueeze(-1)
        for norm, convolve, mix in zip(self.norms, self.convolutions, self.mixers, strict=True):
            own_BSD = norm(steps_BSD) * known_BS1
            local_BSD = convolve(own_BSD.transpose(1, 2)).transpose(1, 2)
            steps_BSD = steps_BSD + self.drop(mix(nn.functional.gelu(local_BSD)))
        return steps_BSD


class RecurrentEncoder(nn.Module):
    """A bidirectional GRU or LSTM beside the steps themselves; padding is packed away.

    Sources: Cho et al. 2014, "Learning phrase representations using RNN encoder-decoder";
    Hochreiter and Schmidhuber 1997, "Long short-term memory".
    """

    def __init__(
        self, cell: type[nn.GRU] | type[nn.LSTM], width: int, dropout: float, layers: int
    ) -> None:
        super().__init__()
        self.layers = cell(
            width,
            width // 2,
            layers,
            batch_first=True,
            bidirectional=True,
            dropout=dropout if layers > 1 else 0.0,  # acts between layers
        )

    def forward(self, steps_BSD: Tensor, known_BS: Tensor) -> Tensor:
        if not len(steps_BSD):
            return steps_BSD  # PyTorch packs no empty batch
        length_B = known_BS.sum(1).clamp(min=1).cpu()  # nor an empty sequence
        packed = pack_padded_sequence(steps_BSD, length_B, batch_first=True, enforce_sorted=False)
        both_BSD, _ = pad_packed_sequence(
            self.layers(packed)[0], batch_first=True, total_length=steps_BSD.shape[1]
        )
        return steps_BSD + both_BSD
