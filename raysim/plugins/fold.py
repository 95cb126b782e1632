"""A trained plugin outside raysim: folded into timm's own parameters where it is linear, else as a few lines of code."""

from __future__ import annotations

from torch import Tensor, nn

from raysim.plugins.adapter import Adapter
from raysim.plugins.lora import LoRA
from raysim.plugins.prefix import PlainPrefix, Prefix


def fold(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Fold plugins that are linear into the parameters beside them, in place, in a ``state_dict`` of the model.

    W + scale up down for LoRA, and for a plain prefix the rows of keys and values, (W + scale W', b + scale b'). A plain
    prefix beside a projection without a bias stays as it is.
    """
    for name, module in model.named_modules():
        of = name.rpartition(".")[0]
        if isinstance(module, LoRA):
            up, down = tensors.pop(f"{name}.up.weight"), tensors.pop(f"{name}.down.weight")
            tensors[f"{of}.weight"] += module.scale * (up.double() @ down.double()).float()
        elif isinstance(module, PlainPrefix) and _folds(model, name, module):
            for kind in ("weight", "bias"):
                extra = tensors.pop(f"{name}.kv.{kind}")
                tensors[f"{of}.{kind}"][-len(extra) :] += module.scale * extra


def _folds(model: nn.Module, name: str, plugin: nn.Module) -> bool:
    """Whether ``fold`` folds the plugin of that name: the projection beside it must have a place for its bias."""
    return isinstance(plugin, PlainPrefix) and model.get_submodule(name.rpartition(".")[0]).bias is not None


def rebuild(model: nn.Module) -> list[str]:
    """Lines of code that give timm's ``model`` the plugins that can't be folded; none if there are none."""
    lines: list[str] = []
    to_the_tail = "torch.nn.functional.pad({scale} * extra, (output.shape[-1] - extra.shape[-1], 0))"
    for kind, extra, term in (
        (Prefix, "module.adapter.up(torch.tanh(module.adapter.down(inputs[0])))", to_the_tail),
        (PlainPrefix, "module.adapter.kv(inputs[0])", to_the_tail),
        (Adapter, "module.adapter.up(torch.relu(module.adapter.down(inputs[0])))", "{scale} * extra"),
    ):
        found = {n: m for n, m in model.named_modules() if isinstance(m, kind) and not _folds(model, n, m)}
        if not found:
            continue
        first = next(iter(found.values()))
        parts = [f"{n!r}: torch.nn.Linear({p.in_features}, {p.out_features})" for n, p in first.named_children()]
        lines += [
            "def plugin(module, inputs, output):",
            f"    extra = {extra}",
            f"    return output + {term.format(scale=first.scale)}",
            f"for name in {[name.rpartition('.')[0] for name in found]}:",
            "    module = model.get_submodule(name)",
            f"    module.adapter = torch.nn.ModuleDict({{{', '.join(parts)}}})",
            "    module.register_forward_hook(plugin)",
        ]
    prompts = {n.rpartition(".")[0]: p for n, p in model.named_parameters() if n.rpartition(".")[2] == "prompt"}
    if prompts:
        shape = tuple(next(iter(prompts.values())).shape)
        lines += [
            f"for name in {list(prompts)}:",
            "    block = model.get_submodule(name)",
            f"    block.prompt = torch.nn.Parameter(torch.zeros{shape})",
            "    join = lambda b, x: (torch.cat([x[0], b.prompt.expand(len(x[0]), -1, -1)], 1), *x[1:])",
            "    block.register_forward_pre_hook(join)",
            f"    block.register_forward_hook(lambda b, x, y: y[:, : y.shape[1] - {shape[0]}])",
        ]
    return lines
