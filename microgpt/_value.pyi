# The compiled twin has the reference's types: one declaration for both.
from collections.abc import Callable

from microgpt.engine.interface import AdamState
from microgpt.reference import Value as Value
from microgpt.reference import compute_softmax as compute_softmax
from microgpt.reference import linear as linear
from microgpt.reference import rmsnorm as rmsnorm
from microgpt.reference import softmax as softmax

class Parameters:
    def __init__(self, values: list[Value], update_with_adam: Callable[..., None]) -> None: ...
    def adam_step(self, adam: AdamState, learning_rate: float) -> None: ...

def restored(data: float, grad: float, label: str) -> Value: ...
