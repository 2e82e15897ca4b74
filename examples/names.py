"""Names: train on a file of names, by default the one in the package, and print new ones: names.py [FILE]"""

import sys

import microgpt

documents = microgpt.read_documents(sys.argv[1] if len(sys.argv) > 1 else None)
known = set(documents)

result = microgpt.train(documents, steps=5000, val_fraction=0.1, n_embd=32, batch_size=8, learning_rate=0.005)
print(f"{len(documents):,} names, {result.model.num_params:,} parameters")
for step, loss in result.validation_losses[:: len(result.validation_losses) // 5]:
    print(f"step {step:5,}: validation loss {loss:.3f} nats")

names = result.model.generate(1000, temperature=0.8, seed=1)
new = [name for name in dict.fromkeys(names) if name not in known]
print(f"of {len(names)} names sampled, {sum(name in known for name in names)} are in the file")
print("new:", ", ".join(new[:12]))

print("\nlikeliest next letters:")
for prompt in ("", "mar", "marq"):
    likeliest = list(result.model.next_token_probabilities(prompt).items())[:4]
    shown = ", ".join(f"{token} {probability:.0%}" for token, probability in likeliest)
    print(f"  {prompt or '(beginning)':12} {shown}")

print("\nperplexity, forwards and backwards:")
for name in ("katherine", "william", "elizabeth"):
    forwards, backwards = result.model.perplexity([name]), result.model.perplexity([name[::-1]])
    print(f"  {name:12} {forwards:5.1f}   {name[::-1]:12} {backwards:5.1f}")
