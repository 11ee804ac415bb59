"""Encoders of a sequence: order counts, padding and other rows do not, whatever is missing."""

import pytest
import torch
from torch import Tensor, nn

from models.nets.encoders import ConvolutionEncoder
from models.nets.sequence import BehaviourConfig, encoder_of

WIDTH = 8
LENGTHS = (0, 1, 2, 5, 9)
KINDS = ("transformer", "cnn", "gru", "lstm")


@pytest.fixture(params=KINDS)
def encoder(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(5)
    config = BehaviourConfig(encoder=request.param, heads=2)
    return encoder_of(config, WIDTH, 0.0).eval()


def steps(rows: int = len(LENGTHS), most: int = max(LENGTHS)) -> Tensor:
    return torch.randn(rows, most, WIDTH, generator=torch.Generator().manual_seed(1))


def known(lengths: tuple[int, ...] = LENGTHS, most: int = max(LENGTHS)) -> Tensor:
    return torch.arange(most) < torch.tensor(lengths).reshape(-1, 1)


def run(encoder: nn.Module, steps_BSD: Tensor, known_BS: Tensor) -> Tensor:
    with torch.no_grad():
        encoded_BSD: Tensor = encoder(steps_BSD, known_BS)
    return encoded_BSD * known_BS.unsqueeze(-1)


def test_every_step_is_encoded_and_finite(encoder: nn.Module) -> None:
    with torch.no_grad():
        encoded_BSD = encoder(steps(), known())
    assert encoded_BSD.shape == (len(LENGTHS), max(LENGTHS), WIDTH)
    assert torch.isfinite(encoded_BSD).all()
    assert (encoded_BSD - steps()).abs().amax(-1)[known()].min() > 1e-3


def test_what_stands_in_the_padding_moves_no_step(encoder: nn.Module) -> None:
    noisy_BSD = torch.where(known().unsqueeze(-1), steps(), 9.0)
    assert torch.equal(run(encoder, steps(), known()), run(encoder, noisy_BSD, known()))


def test_a_row_is_encoded_the_same_alone_and_in_wider_padding(encoder: nn.Module) -> None:
    together = run(encoder, steps(), known())
    for row, length in enumerate(LENGTHS):
        most = max(1, length)
        alone = run(encoder, steps()[row : row + 1, :most], known((length,), most))
        assert torch.allclose(together[row, :most], alone[0], atol=1e-6), length
    wide_BSD = nn.functional.pad(steps(), (0, 0, 0, 7), value=3.0)
    wider = run(encoder, wide_BSD, known(most=max(LENGTHS) + 7))
    assert torch.allclose(together, wider[:, : max(LENGTHS)], atol=1e-6)


def test_a_step_hears_of_its_neighbours_on_both_sides(encoder: nn.Module) -> None:
    plain = run(encoder, steps(), known())
    changed = steps()
    changed[-1, 4] = torch.arange(WIDTH) / WIDTH
    moved_S = (plain - run(encoder, changed, known()))[-1].abs().amax(-1)
    assert (moved_S[[3, 4, 5]] > 1e-5).all()


def test_order_is_told_apart_without_places(encoder: nn.Module) -> None:
    """The places are in the events' embedding; recurrence and convolution see order without."""
    turned_BSD = run(encoder, steps().flip(1)[-1:], known()[-1:]).flip(1)
    same = torch.allclose(run(encoder, steps()[-1:], known()[-1:]), turned_BSD, atol=1e-5)
    assert same == (type(encoder).__name__ == "TransformerEncoder")


@pytest.mark.parametrize("lengths", [LENGTHS, (0, 0), (1,)])
def test_every_parameter_has_a_gradient(encoder: nn.Module, lengths: tuple[int, ...]) -> None:
    """A distributed run waits for one, also where no row of a rank has an event."""
    known_BS = known(lengths)
    encoded_BSD = encoder.train()(steps(len(lengths)), known_BS)
    (encoded_BSD * known_BS.unsqueeze(-1)).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    if lengths == LENGTHS:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_an_empty_batch(encoder: nn.Module) -> None:
    assert run(encoder, steps(0), known(())).shape == (0, max(LENGTHS), WIDTH)


def test_half_precision(encoder: nn.Module) -> None:
    full = run(encoder, steps(), known())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = run(encoder, steps(), known())
    assert torch.allclose(full, half.float(), atol=0.1)


def test_the_field_of_the_convolutions_doubles_with_every_layer() -> None:
    encoder = ConvolutionEncoder(WIDTH, 0.0, layers=3).eval()
    all_known = torch.ones(1, 31, dtype=torch.bool)
    plain = run(encoder, steps(1, 31), all_known)
    changed = steps(1, 31)
    changed[0, 15] = torch.arange(WIDTH) / WIDTH
    moved_S = (plain - run(encoder, changed, all_known))[0].abs().amax(-1)
    assert (moved_S > 0).nonzero().flatten().tolist() == list(range(15 - 7, 15 + 8))


def test_a_single_recurrent_layer_takes_no_dropout_between_layers() -> None:
    for kind in ("gru", "lstm"):
        encoder_of(BehaviourConfig.model_validate({"encoder": kind, "layers": 1}), WIDTH, 0.5)


@pytest.mark.parametrize(
    ("config", "width", "said"),
    [
        ({"encoder": "transformer", "heads": 3}, 8, "width 8 is no multiple of 3 heads"),
        ({"encoder": "gru"}, 9, "width 9 is odd"),
        ({"encoder": "lstm"}, 9, "width 9 is odd"),
        ({"encoder": "cnn", "heads": 3}, 9, None),
        ({"encoder": "gru", "heads": 3}, 8, None),
    ],
)
def test_only_the_configured_encoder_restricts_the_width(
    config: dict[str, object], width: int, said: str | None
) -> None:
    made = BehaviourConfig.model_validate(config)
    if said is None:
        made.check(width)
    else:
        with pytest.raises(ValueError, match=said):
            made.check(width)
