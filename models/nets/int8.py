"""Linear layers in products of 8-bit integers, for scoring on processors that multiply them fast.

A row (a token) and a column of the weights have a scale of their own, and sums are integers, so
that what comes of a row does not hang on the rows beside it, to the bit. Source: Dettmers et al.
2022, "LLM.int8(): 8-bit matrix multiplication for transformers at scale", its vector-wise part.

Shapes: N rows, I inputs, O outputs.
"""

from typing import cast

import torch
from torch import Tensor, nn

from models.data.schema import UserError

LARGEST = 127.0
SMALLEST = 1e-30  # of a scale: rows and columns of zeros


class Int8Linear(nn.Linear):
    """A linear layer's own weights, and the integers that it multiplies with in their place.

    The weights stay what is saved. It does not learn: integers have no gradient.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.scale_O: Tensor
        self.integers_IO: Tensor
        integers_OI, scale_O1 = integers(linear.weight.detach())
        self.register_buffer("scale_O", scale_O1.squeeze(1), persistent=False)
        self.register_buffer("integers_IO", in_rows(integers_OI.t()), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """[…, I] → […, O] float32."""
        integers_NI, scale_N1 = integers(input.reshape(-1, self.in_features))
        sums_NO = torch._int_mm(integers_NI, self.integers_IO)
        scaled_NO = sums_NO.float().mul_(self.scale_O)
        bias_O = cast("Tensor | None", self.bias)
        if bias_O is None:
            output_NO = scaled_NO.mul_(scale_N1)
        else:
            output_NO = torch.addcmul(bias_O, scaled_NO, scale_N1)
        return output_NO.view(*input.shape[:-1], self.out_features)


def integers(values_NI: Tensor) -> tuple[Tensor, Tensor]:
    """Int8 of float32 rows, and what each row is to be multiplied with: [N, I] and [N, 1]."""
    most_N1 = torch.maximum(values_NI.amax(1, keepdim=True), -values_NI.amin(1, keepdim=True))
    scale_N1 = most_N1.div_(LARGEST).clamp_(min=SMALLEST)
    return (values_NI / scale_N1).round_().to(torch.int8), scale_N1


def in_rows(matrix: Tensor) -> Tensor:
    """A copy whose strides say so: by those of a transposed matrix of one column (1, 1), PyTorch
    2.13 multiplies wrongly."""
    return matrix.clone(memory_format=torch.contiguous_format)


def to_int8(encoder: nn.Module) -> None:
    """Let an encoder's linear layers multiply integers, in place.

    Raises UserError where it has none, and as `check`.
    """
    check()
    for parent in list(encoder.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child))
    if not any(isinstance(module, Int8Linear) for module in encoder.modules()):
        raise UserError(
            f"scoring_precision: int8: the encoder ({type(encoder).__name__}) has no linear layers"
            "; expected one of the BERT family, or fp32"
        )


def exact() -> bool:
    """Whether this processor multiplies 8-bit integers exactly: some add pairs of products in 16
    bits, which the largest do not fit."""
    largest = torch.full((64, 256), 127, dtype=torch.int8)
    return bool((torch._int_mm(largest, largest.t()) == 127 * 127 * 256).all())


def check() -> None:
    """Raise UserError where integers are not multiplied exactly."""
    if not exact():
        raise UserError(
            "scoring_precision: int8: this processor does not multiply 8-bit integers exactly; "
            "expected one with AVX-512 VNNI, AVX-VNNI or AMX, or fp32"
        )
