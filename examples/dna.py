"""DNA: a hidden motif in random sequences, and a model that finds it.

Sequences come from a small Markov chain in which each base prefers some followers; the motif TATAAT is inserted into
each at a random place. The model knows nothing about either.
"""

import random

import microgpt

MOTIF, LENGTH = "TATAAT", 32
FOLLOWERS = {"A": (1, 3, 3, 1), "C": (4, 1, 1, 2), "G": (2, 3, 1, 2), "T": (1, 2, 4, 1)}  # weights of A, C, G, T


def chain(draw: random.Random) -> str:
    """A sequence without the motif, unless by chance."""
    sequence = draw.choice("ACGT")
    while len(sequence) < LENGTH:
        sequence += draw.choices("ACGT", FOLLOWERS[sequence[-1]])[0]
    return sequence


def with_motif(draw: random.Random) -> str:
    """A sequence with the motif at a random place."""
    sequence, start = chain(draw), draw.randrange(LENGTH - len(MOTIF))
    return sequence[:start] + MOTIF + sequence[start + len(MOTIF) :]


def share(sequences: list[str]) -> str:
    """The fraction of sequences that contain the motif."""
    return f"{sum(MOTIF in sequence for sequence in sequences) / len(sequences):.0%}"


draw = random.Random(0)
background, sequences = [chain(draw) for _ in range(2000)], [with_motif(draw) for _ in range(2000)]
model = microgpt.train(
    sequences, steps=1500, batch_size=16, n_embd=32, block_size=LENGTH + 1, learning_rate=0.01, dtype="float32"
).model

print(f"the motif {MOTIF} is in {share(background)} of the sequences from the chain alone,")
print(f"in {share(sequences)} of the training sequences,")
print(f"and in {share(model.generate(2000, seed=1))} of the sequences from the model")
print("\nprobability of each base of the motif after CGC:")
for i, base in enumerate(MOTIF):
    probability = model.next_token_probabilities("CGC" + MOTIF[:i])[base]
    print(f"  CGC{MOTIF[:i]:6} {base} {probability:4.0%} {'#' * round(40 * probability)}")
