"""Odd ones out, and classes: what the losses of single documents are good for.

A document is odd if a model of its kind hardly expects it: here, other words among names. And with a model for each
class, a document belongs to the class whose model gives it the lowest loss: here, words to their language.
"""

import random

import numpy as np

import microgpt

HELD_OUT = 200  # documents of each data set, which no model has seen
LANGUAGES = ("english", "french", "italian", "spanish")
draw = random.Random(1)


def trained_and_held_out(name: str) -> tuple[microgpt.GPT, list[str]]:
    """A model of a data set, and documents that it has not seen. Its tokens are bytes, so that it can read any text."""
    documents = list(microgpt.load_dataset(name))
    draw.shuffle(documents)
    recipe = {"steps": 1000, "n_embd": 32, "batch_size": 16, "learning_rate": 0.005, "dtype": "float32"}
    return microgpt.train(documents[HELD_OUT:], tokenizer="bytes", **recipe).model, documents[:HELD_OUT]


model, names = trained_and_held_out("names")
strangers = [draw.choice(microgpt.load_dataset(name)) for name in ("roman", "chemicals", "molecules", "colors", "sums")]
words = names + strangers
oddest = np.argsort(-model.document_losses(words).nats_per_token)
print(f"{len(strangers)} strangers among {len(names)} names: {', '.join(strangers)}")
print("the oddest:", ", ".join(f"{words[i]} *" if words[i] in strangers else words[i] for i in oddest[:10]))

models, tests = zip(*map(trained_and_held_out, LANGUAGES))
for together in (1, 2, 5):  # whose losses are added
    print(f"\n{f'{together} at a time, taken for':20}", *(f"{name:>8}" for name in LANGUAGES))
    right = 0
    for truth, test in enumerate(tests):
        losses = np.array([model.document_losses(test).nats for model in models])  # (languages, words)
        guesses = losses.reshape(len(models), -1, together).sum(axis=2).argmin(axis=0)
        shares = np.bincount(guesses, minlength=len(models)) / len(guesses)
        print(f"  {LANGUAGES[truth]:18}", *(f"{share:8.0%}" for share in shares))
        right += shares[truth] / len(models)
    print(f"  {right:.0%} are right")
