"""The public names, from the modules that define them."""

from typing import TYPE_CHECKING

from microgpt.checkpoint import load
from microgpt.config import GPTConfig
from microgpt.data.documents import read_documents, read_text
from microgpt.data.huggingface import HuggingFaceTokenizer
from microgpt.data.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer
from microgpt.engine.backend import BackendInfo, backend_info, choose
from microgpt.evaluation import Evaluation
from microgpt.history import TrainingHistory, TrainingProgress
from microgpt.model import GPT
from microgpt.optimizer import Adam
from microgpt.training.recipe import Recipe
from microgpt.training.run import TrainingResult, train

if TYPE_CHECKING or choose() == "reference":
    from microgpt.reference import Value, compute_softmax, linear, rmsnorm, softmax
else:
    from microgpt._value import Value, compute_softmax, linear, rmsnorm, softmax

__all__ = [
    "GPT",
    "Adam",
    "BackendInfo",
    "ByteTokenizer",
    "CharTokenizer",
    "Evaluation",
    "GPTConfig",
    "HuggingFaceTokenizer",
    "Recipe",
    "Tokenizer",
    "TrainingHistory",
    "TrainingProgress",
    "TrainingResult",
    "Value",
    "backend_info",
    "compute_softmax",
    "linear",
    "load",
    "read_documents",
    "read_text",
    "rmsnorm",
    "softmax",
    "train",
]
