"""Moves: a model that learns the rules of tic-tac-toe from random games.

A game is the cells 1 to 9 in the order in which they are taken, such as "51932". It is legal where no cell is taken
twice, and where it ends as soon as there are three in a row or the board is full, and not before.
"""

import random

import microgpt

LINES = ("123", "456", "789", "147", "258", "369", "159", "357")


def is_over(game: str) -> bool:
    """Whether whoever moved last has three in a row, or the board is full."""
    own = game[-1::-2]
    return len(game) == 9 or any(all(cell in own for cell in line) for line in LINES)


def is_legal(game: str) -> bool:
    """Whether the game could have been played, to its end."""
    return len(set(game)) == len(game) and is_over(game) and not any(is_over(game[:n]) for n in range(1, len(game)))


def random_game(draw: random.Random) -> str:
    """A game of two players who know the rules and nothing else."""
    game = ""
    while not is_over(game):
        game += draw.choice([cell for cell in "123456789" if cell not in game])
    return game


def share_of_legal_games(model: microgpt.GPT) -> str:
    """Among many games that a model makes up."""
    games = model.generate(2000, seed=1)
    return f"{sum(map(is_legal, games)) / len(games):.1%}"


draw = random.Random(0)
games = [random_game(draw) for _ in range(10_000)]
assert all(map(is_legal, games))
tokenizer = microgpt.CharTokenizer.from_documents(games)
sizes = {"n_layer": 1, "n_embd": 48, "block_size": 10, "n_head": 4}

untrained = microgpt.GPT(microgpt.GPTConfig(vocab_size=tokenizer.vocab_size, **sizes), tokenizer=tokenizer)
print(f"legal games before training: {share_of_legal_games(untrained)}")
trained = microgpt.train(games, **sizes, steps=1500, batch_size=32, learning_rate=0.005, dtype="float32").model
print(f"legal games after training:  {share_of_legal_games(trained)}")

print("\na game that the model made up:", game := next(filter(is_legal, trained.generate(100, seed=2))))
board = {cell: "XO"[i % 2] for i, cell in enumerate(game)}
for row in ("123", "456", "789"):
    print("  ", *(board.get(cell, ".") for cell in row))
