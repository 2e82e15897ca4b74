"""microgpt: the 200-line GPT as a package, with its bits and ten thousand times its speed."""

from microgpt.backend import BackendInfo, backend_info
from microgpt.config import GPTConfig
from microgpt.documents import read_documents
from microgpt.model import GPT
from microgpt.optimizer import Adam
from microgpt.tokenizer import CharTokenizer
from microgpt.training import TrainingResult, train

__all__ = [
    "GPT",
    "Adam",
    "BackendInfo",
    "CharTokenizer",
    "GPTConfig",
    "TrainingResult",
    "backend_info",
    "read_documents",
    "train",
]
