import torch

from raysim.functional.state_layout import StateLayout


def test_state_layout_packs_and_unpacks():
    state = {"personal": torch.arange(3.0), "control": torch.tensor([7.0])}
    layout = StateLayout.of(state)
    assert layout.size == 4
    packed = layout.pack(state)
    assert packed.tolist() == [0, 1, 2, 7]
    unpacked = layout.unpack(torch.stack([packed, packed + 1]))
    assert unpacked["control"].tolist() == [[7], [8]]
