"""Continuous text: train on a file, by default a sonnet and most of another, and generate more: shakespeare.py [FILE]

With all of Shakespeare in FILE, more steps and a larger model, this is nanoGPT's example for a laptop.
"""

import sys

import microgpt

SONNETS = """\
Shall I compare thee to a summer's day?
Thou art more lovely and more temperate:
Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date:
Sometime too hot the eye of heaven shines,
And often is his gold complexion dimmed,
And every fair from fair sometime declines,
By chance, or nature's changing course untrimmed:
But thy eternal summer shall not fade,
Nor lose possession of that fair thou ow'st,
Nor shall death brag thou wander'st in his shade,
When in eternal lines to time thou grow'st,
So long as men can breathe, or eyes can see,
So long lives this, and this gives life to thee.

My mistress' eyes are nothing like the sun;
Coral is far more red, than her lips red:
If snow be white, why then her breasts are dun;
If hairs be wires, black wires grow on her head.
I have seen roses damasked, red and white,
But no such roses see I in her cheeks;
And in some perfumes is there more delight
Than in the breath that from my mistress reeks.
"""

text = microgpt.read_text(sys.argv[1]) if len(sys.argv) > 1 else SONNETS
result = microgpt.train(
    [text], format="text", steps=1000, n_embd=64, block_size=64, batch_size=8, learning_rate=0.005, dtype="float32"
)
print(f"{len(text):,} characters, {result.model.num_params:,} parameters")
first, last = result.losses[:10].mean(), result.losses[-10:].mean()
print(f"loss of the first ten steps {first:.2f} nats, of the last ten {last:.2f}")

words, written = set(text.split()), ""
print("\nShall I ", end="")
for piece in result.model.stream("Shall I ", temperature=0.7, seed=1, max_tokens=400):
    print(piece, end="", flush=True)
    written += piece
known = [word in words for word in written.split()]
print(f"\n\n{sum(known) / len(known):.0%} of these words are in the text")
