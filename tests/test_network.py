"""The network: its fused operations are the calls of the reference's `gpt`, in order."""

from __future__ import annotations

from dataclasses import replace
from itertools import repeat
from typing import Any

import pytest

from microgpt import GPTConfig, reference
from microgpt.config import ACTIVATIONS
from microgpt.engine.network import Network, network

config = GPTConfig(vocab_size=27, n_layer=2, n_embd=16, block_size=8, n_head=4)

TABLE = """\
embedding      16          wte wpe
rmsnorm        16 -> 16
rmsnorm        16 -> 16
linear         16 -> 48    layer0.attn_wq layer0.attn_wk layer0.attn_wv
attention      48 -> 16
linear         16 -> 16    layer0.attn_wo + residual
rmsnorm        16 -> 16
linear         16 -> 64    layer0.mlp_fc1, relu
linear         64 -> 16    layer0.mlp_fc2 + residual
rmsnorm        16 -> 16
linear         16 -> 48    layer1.attn_wq layer1.attn_wk layer1.attn_wv
attention      48 -> 16
linear         16 -> 16    layer1.attn_wo + residual
rmsnorm        16 -> 16
linear         16 -> 64    layer1.mlp_fc1, relu
linear         64 -> 16    layer1.mlp_fc2 + residual
unembedding    16 -> 27    lm_head
cross_entropy  27"""


def test_the_network_of_two_layers() -> None:
    assert str(network(config, line=8)) == TABLE


def test_dropout_adds_operations_and_nothing_else() -> None:
    dropped = network(replace(config, dropout=0.1), line=8)
    operations = [operation for operation in dropped.operations if operation.kernel == "dropout"]
    assert [str(operation) for operation in operations] == ["dropout        16 -> 16"] + [
        "dropout        16 -> 16     + residual"
    ] * 4
    assert [operation.first_draw for operation in operations] == [0, 16, 32, 48, 64]
    assert dropped.draws == 80
    rest = "\n".join(line for line in str(dropped).splitlines() if not line.startswith("dropout"))
    assert rest == TABLE.replace(" + residual", "")


def calls_of_the_reference(config: GPTConfig, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions that `document_loss` calls for one position, with the names of their parameters."""
    state_dict = {
        name: [[reference.Value(0.1)] * columns for _ in range(rows)]
        for name, (rows, columns) in config.parameter_shapes().items()
    }
    names = {id(matrix): name for name, matrix in state_dict.items()}
    calls = []

    def traced(name: str) -> Any:
        function = getattr(reference, name)

        def call(*arguments: Any) -> Any:
            calls.append(" ".join([name, *(names[id(each)] for each in arguments if id(each) in names)]))
            return function(*arguments)

        return call

    assert tuple(reference.ACTIVATIONS) == ACTIVATIONS
    for name in ("linear", "softmax", "rmsnorm", *["dropout"][: config.dropout > 0]):
        monkeypatch.setattr(reference, name, traced(name))
    for name, function in reference.ACTIVATIONS.items():
        activation = lambda x, name=name, function=function: (calls.append(name), function(x))[1]  # noqa: E731
        monkeypatch.setitem(reference.ACTIVATIONS, name, activation)
    reference.document_loss([1, 2], state_dict, config, repeat(0.5))
    return [call for before, call in zip([None, *calls], calls) if call not in ACTIVATIONS or call != before]


@pytest.mark.parametrize("options", [*({"activation": name} for name in ACTIVATIONS), {"dropout": 0.1}], ids=str)
def test_the_network_is_what_the_reference_calls_in_its_order(options: dict[str, Any], monkeypatch) -> None:
    config, calls = GPTConfig(vocab_size=27, n_layer=2, **options), []
    for operation in network(config, line=8).operations:
        if operation.kernel in ("linear", "unembedding"):
            calls += [f"linear {name}" for name in operation.parameters]
        if operation.epilogue == "relu":
            calls.append("relu")
        if operation.kernel in ("rmsnorm", "dropout", *ACTIVATIONS):
            calls.append(operation.kernel)
        if operation.kernel in ("attention", "cross_entropy"):
            calls += ["softmax"] * (config.n_head if operation.kernel == "attention" else 1)
    assert calls == calls_of_the_reference(config, monkeypatch)


def test_gradients_share_few_arrays_however_many_layers_there_are() -> None:
    def gradients(n_layer: int) -> set[Any]:
        deep = GPTConfig(vocab_size=27, n_layer=n_layer)
        return {operation.input.gradient.array for operation in network(deep, line=8).operations if operation.input}

    assert sorted(array.width for array in gradients(1)) == [16, 16, 27, 48, 64]
    assert len(gradients(5)) == len(gradients(1))


def test_a_gradient_that_backward_would_replace_is_an_error() -> None:
    net = Network(config, line=8)
    x = net.embedding()
    net.cross_entropy(net.unembedding(net.add(net.linear(x, "layer0.attn_wo"), x), "lm_head"))
    with pytest.raises(ValueError, match=r"the input of linear .* has a gradient already"):
        net.place_gradients()
