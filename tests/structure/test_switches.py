"""Layers of torch that decide something by their sizes when they are made follow an edit."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dynopt_ray.structure import Grow, Shrink, load, save, trace

TOKENS = torch.tensor([[1, 2, 3, 4, 0, 0], [5, 6, 7, 8, 9, 3]])

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


class Padded(nn.Module):
    """A stock encoder of padded sequences, which torch packs in nested tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16, padding_idx=0)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.encoder, self.out = nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.encoder(self.embed(tokens), src_key_padding_mask=tokens == 0)
        out: Tensor = self.out(hidden[:, :4].mean(1))
        return out


def test_an_encoder_of_padded_inputs_may_have_an_odd_number_of_heads(tmp_path: Path) -> None:
    model = Padded().eval()
    graph = trace(model, TOKENS)
    receipt = graph.apply(Shrink("embed", remove=[0]))
    assert model.encoder.layers[0].self_attn.num_heads == 3
    with torch.no_grad():
        fast = model(TOKENS)
    torch.testing.assert_close(fast, model(TOKENS).detach())
    save(tmp_path / "model", model)
    again = Padded().eval()
    load(tmp_path / "model", again)
    with torch.no_grad():
        torch.testing.assert_close(again(TOKENS), fast)
    receipt.undo()
    assert model.encoder.use_nested_tensor
    with torch.no_grad():
        assert model(TOKENS).shape == (2, 3)


def test_growth_by_one_head_is_possible() -> None:
    model = Padded().eval()
    with torch.no_grad():
        trace(model, TOKENS).apply(Grow("embed", units=1, exact=False))
        assert model(TOKENS).shape == (2, 3)
