"""microgpt: the 200-line GPT as a package, with the same bits at ten thousand times the speed.

Public names are imported on first use (PEP 562), so that nobody waits for what they do not use. Also, `python -m
microgpt` imports this file before it can turn an error into one line, or end quietly on Ctrl-C.
"""

__version__ = "0.1.0"

_MODULES = {  # where the public names are defined
    "Adam": "optimizer",
    "BackendInfo": "engine.backend",
    "ByteTokenizer": "data.tokenizer",
    "CharTokenizer": "data.tokenizer",
    "Dataset": "data.datasets",
    "DocumentLosses": "evaluation",
    "Evaluation": "evaluation",
    "GPT": "model",
    "GPTConfig": "config",
    "Graph": "display.graph",
    "HuggingFaceTokenizer": "data.huggingface",
    "Recipe": "training.recipe",
    "Run": "training.run",
    "Tokenizer": "data.tokenizer",
    "TrainingHistory": "history",
    "TrainingProgress": "history",
    "TrainingResult": "training.run",
    "Trial": "tuning.search",
    "TuneResult": "tuning.result",
    "TuningProgress": "tuning.search",
    "backend_info": "engine.backend",
    "dataset_names": "data.datasets",
    "graph": "display.graph",
    "load": "model",
    "load_dataset": "data.datasets",
    "prepare": "training.train",
    "read_documents": "data.documents",
    "read_text": "data.documents",
    "train": "training.train",
    "tune": "tuning.tune",
    "write_comparison": "report.comparison",
    "write_report": "report.page",
}
_OF_BACKENDS = ("Value", "compute_softmax", "linear", "rmsnorm", "softmax")  # each backend has these
__all__ = [*_MODULES, *_OF_BACKENDS]  # noqa: PLE0604 (they are strings)

TYPE_CHECKING = False  # `typing` would take longer to import than this whole file
if TYPE_CHECKING:
    from microgpt.config import GPTConfig as GPTConfig
    from microgpt.data.datasets import Dataset as Dataset
    from microgpt.data.datasets import dataset_names as dataset_names
    from microgpt.data.datasets import load_dataset as load_dataset
    from microgpt.data.documents import read_documents as read_documents
    from microgpt.data.documents import read_text as read_text
    from microgpt.data.huggingface import HuggingFaceTokenizer as HuggingFaceTokenizer
    from microgpt.data.tokenizer import ByteTokenizer as ByteTokenizer
    from microgpt.data.tokenizer import CharTokenizer as CharTokenizer
    from microgpt.data.tokenizer import Tokenizer as Tokenizer
    from microgpt.display.graph import Graph as Graph
    from microgpt.display.graph import graph as graph
    from microgpt.engine.backend import BackendInfo as BackendInfo
    from microgpt.engine.backend import backend_info as backend_info
    from microgpt.evaluation import DocumentLosses as DocumentLosses
    from microgpt.evaluation import Evaluation as Evaluation
    from microgpt.history import TrainingHistory as TrainingHistory
    from microgpt.history import TrainingProgress as TrainingProgress
    from microgpt.model import GPT as GPT
    from microgpt.model import load as load
    from microgpt.optimizer import Adam as Adam
    from microgpt.reference import Value as Value
    from microgpt.reference import compute_softmax as compute_softmax
    from microgpt.reference import linear as linear
    from microgpt.reference import rmsnorm as rmsnorm
    from microgpt.reference import softmax as softmax
    from microgpt.report.comparison import write_comparison as write_comparison
    from microgpt.report.page import write_report as write_report
    from microgpt.training.recipe import Recipe as Recipe
    from microgpt.training.run import Run as Run
    from microgpt.training.run import TrainingResult as TrainingResult
    from microgpt.training.train import prepare as prepare
    from microgpt.training.train import train as train
    from microgpt.tuning.result import TuneResult as TuneResult
    from microgpt.tuning.search import Trial as Trial
    from microgpt.tuning.search import TuningProgress as TuningProgress
    from microgpt.tuning.tune import tune as tune
else:

    def __getattr__(name):
        from importlib import import_module

        if name in _OF_BACKENDS:
            module = import_module("microgpt.engine.backend").value_module()
        elif name in _MODULES:
            module = import_module(f"microgpt.{_MODULES[name]}")
        else:
            raise AttributeError(f"module 'microgpt' has no attribute {name!r}")
        globals()[name] = getattr(module, name)
        return globals()[name]

    def __dir__():
        return sorted({*globals(), *__all__})
