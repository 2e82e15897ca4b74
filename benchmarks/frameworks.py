"""microgpt against PyTorch, JAX and NumPy: the same model, the same batches, steps of Adam included.

    python benchmarks/frameworks.py                 # two threads; PyTorch and JAX if they are installed
    python benchmarks/frameworks.py --threads 1 --cases small

Each framework trains in processes of its own, which are interleaved; times are medians over the processes, memory is
the peak of a process. PyTorch runs eagerly and compiled, with fused Adam and its own attention; JAX compiles the whole
loop over the steps; NumPy runs a hand-written forward and backward pass. The first losses are printed for comparison:
all start from the same parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np

import microgpt
from microgpt.engine.packing import PackedSequences

VOCAB_SIZE = 65
LEARNING_RATE = 1e-3
CASES = {  # sizes, batch size, steps of a measurement
    "small": ({"n_layer": 1, "n_embd": 64, "n_head": 4, "block_size": 16}, 16, 50),
    "shakespeare": ({"n_layer": 4, "n_embd": 128, "n_head": 4, "block_size": 64}, 12, 10),
    "large": ({"n_layer": 6, "n_embd": 384, "n_head": 6, "block_size": 256}, 8, 1),
}
Steps = Callable[[int], float]  # runs this many steps and returns the last loss


def tokens_of(case: str) -> np.ndarray:
    """The batch that every step trains on: (batch_size, block_size + 1) random tokens."""
    sizes, batch_size, _ = CASES[case]
    return np.random.default_rng(0).integers(0, VOCAB_SIZE, (batch_size, sizes["block_size"] + 1)).astype(np.int32)


def new_model(case: str, threads: int = 1) -> microgpt.GPT:
    """The initial model of all frameworks, with parameters small enough for every depth."""
    model = microgpt.GPT(
        microgpt.GPTConfig(vocab_size=VOCAB_SIZE, **CASES[case][0]), seed=1, dtype="float32", threads=threads
    )
    for parameters in model.state_dict().values():
        parameters *= 0.25
    return model


def microgpt_steps(case: str, threads: int) -> Steps:
    model, tokens = new_model(case, threads), tokens_of(case)
    optimizer = microgpt.Adam(model, LEARNING_RATE)
    batch_size, length = tokens.shape
    starts = np.arange(batch_size, dtype=np.int64) * length

    def steps(n: int) -> float:
        packed = PackedSequences(tokens.ravel(), np.tile(starts, n), np.full(n * batch_size, length, np.int64))
        losses = np.zeros(n)
        model.engine.train(packed, batch_size, np.full(n, LEARNING_RATE), optimizer, losses, None)
        return float(losses[-1])

    return steps


def torch_steps(case: str, threads: int, compiled: bool = False) -> Steps:
    import torch
    from torch.nn import functional

    torch.set_num_threads(threads)
    n_head = CASES[case][0]["n_head"]
    parameters = {
        name: torch.nn.Parameter(torch.from_numpy(array.copy())) for name, array in new_model(case).state_dict().items()
    }
    tokens = torch.from_numpy(tokens_of(case).astype(np.int64))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def rmsnorm(x: Any) -> Any:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5)

    def loss() -> Any:
        batch_size, length = inputs.shape
        x = rmsnorm(parameters["wte"][inputs] + parameters["wpe"][:length])
        for i in range(CASES[case][0]["n_layer"]):
            weights = {name: parameters[f"layer{i}.{name}"] for name in ("attn_wq", "attn_wk", "attn_wv", "attn_wo")}
            normed = rmsnorm(x)
            q, k, v = (
                functional.linear(normed, weights[f"attn_w{part}"]).view(batch_size, length, n_head, -1).transpose(1, 2)
                for part in "qkv"
            )
            attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + functional.linear(attended.transpose(1, 2).flatten(2), weights["attn_wo"])
            hidden = functional.relu(functional.linear(rmsnorm(x), parameters[f"layer{i}.mlp_fc1"]))
            x = x + functional.linear(hidden, parameters[f"layer{i}.mlp_fc2"])
        logits = functional.linear(x, parameters["lm_head"])
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    optimizer = torch.optim.Adam(parameters.values(), lr=LEARNING_RATE, betas=(0.85, 0.99), fused=True)
    forward = torch.compile(loss) if compiled else loss

    def step() -> float:
        optimizer.zero_grad()
        value = forward()
        value.backward()
        optimizer.step()
        return value.item()

    return repeated(step)


def jax_steps(case: str, threads: int) -> Steps:
    """All steps in one compiled program, whose memory for parameters and moments is used again."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])  # JAX has no other limit of its threads
    import jax
    from jax import numpy as jnp

    sizes = CASES[case][0]
    n_layer, n_head = sizes["n_layer"], sizes["n_head"]
    parameters = {name: jnp.asarray(array) for name, array in new_model(case).state_dict().items()}
    tokens = jnp.asarray(tokens_of(case))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    batch_size, length = inputs.shape
    is_later = jnp.triu(jnp.ones((length, length), bool), 1)

    def rmsnorm(x: Any) -> Any:
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)

    def loss_of(p: dict[str, Any]) -> Any:
        x = rmsnorm(p["wte"][inputs] + p["wpe"])
        for i in range(n_layer):
            normed = rmsnorm(x)
            q, k, v = (
                (normed @ p[f"layer{i}.attn_w{part}"].T).reshape(batch_size, length, n_head, -1) for part in "qkv"
            )
            logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
            weights = jax.nn.softmax(jnp.where(is_later, -jnp.inf, logits))
            attended = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch_size, length, -1)
            x = x + attended @ p[f"layer{i}.attn_wo"].T
            hidden = jax.nn.relu(rmsnorm(x) @ p[f"layer{i}.mlp_fc1"].T)
            x = x + hidden @ p[f"layer{i}.mlp_fc2"].T
        log_probabilities = jax.nn.log_softmax(x @ p["lm_head"].T)
        return -jnp.take_along_axis(log_probabilities, targets[..., None], -1).mean()

    def step(state: Any, _: Any) -> Any:
        p, m, v, count = state
        loss, gradients = jax.value_and_grad(loss_of)(p)
        count += 1
        m = jax.tree.map(lambda m, g: 0.85 * m + 0.15 * g, m, gradients)
        v = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g * g, v, gradients)
        rate, bias = LEARNING_RATE / (1 - 0.85**count), 1 - 0.99**count
        p = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v / bias) + 1e-8), p, m, v)
        return (p, m, v, count), loss

    train = jax.jit(lambda state, n: jax.lax.scan(step, state, None, n), static_argnums=1, donate_argnums=0)
    zeros = [jax.tree.map(jnp.zeros_like, parameters) for _ in range(2)]
    state = (parameters, *zeros, jnp.float32(0))

    def steps(n: int) -> float:
        nonlocal state
        state, losses = train(state, n)
        return float(losses[-1])

    return steps


def numpy_steps(case: str, threads: int) -> Steps:
    sizes = CASES[case][0]
    n_layer, n_embd, n_head, length = (sizes[name] for name in ("n_layer", "n_embd", "n_head", "block_size"))
    head_dim = n_embd // n_head
    parameters = {name: array.copy() for name, array in new_model(case).state_dict().items()}
    moments = {name: (np.zeros_like(array), np.zeros_like(array)) for name, array in parameters.items()}
    tokens = tokens_of(case)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    batch_size = len(tokens)
    hidden_keys = np.triu(np.full((length, length), -np.inf, np.float32), 1)
    steps = 0

    def rmsnorm(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scale = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-5))
        return x * scale, scale

    def rmsnorm_backward(dy: np.ndarray, y: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return scale * (dy - y * (dy * y).mean(-1, keepdims=True))

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(batch_size, length, n_head, head_dim).transpose(0, 2, 1, 3)

    def merged(x: np.ndarray) -> np.ndarray:
        return x.transpose(0, 2, 1, 3).reshape(batch_size * length, n_embd)

    def step() -> float:
        nonlocal steps
        gradients: dict[str, np.ndarray] = {}
        p = parameters
        x, embedding_scale = rmsnorm((p["wte"][inputs] + p["wpe"]).reshape(-1, n_embd))
        embedded, saved = x, []
        for i in range(n_layer):
            normed, scale = rmsnorm(x)
            q, k, v = (heads(normed @ p[f"layer{i}.attn_w{part}"].T) for part in "qkv")
            logits = q @ k.transpose(0, 1, 3, 2) / np.float32(head_dim**0.5) + hidden_keys
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            attended = merged(weights @ v)
            middle = x + attended @ p[f"layer{i}.attn_wo"].T
            normed_2, scale_2 = rmsnorm(middle)
            hidden = np.maximum(normed_2 @ p[f"layer{i}.mlp_fc1"].T, 0)
            saved.append((normed, scale, q, k, v, weights, attended, normed_2, scale_2, hidden))
            x = middle + hidden @ p[f"layer{i}.mlp_fc2"].T
        logits = x @ p["lm_head"].T
        logits -= logits.max(-1, keepdims=True)
        probabilities = np.exp(logits)
        probabilities /= probabilities.sum(-1, keepdims=True)
        rows = np.arange(batch_size * length)
        loss = -np.log(probabilities[rows, targets.ravel()]).mean()
        d_logits = probabilities
        d_logits[rows, targets.ravel()] -= 1
        d_logits /= np.float32(len(rows))
        gradients["lm_head"] = d_logits.T @ x
        dx = d_logits @ p["lm_head"]
        for i in reversed(range(n_layer)):
            normed, scale, q, k, v, weights, attended, normed_2, scale_2, hidden = saved[i]
            gradients[f"layer{i}.mlp_fc2"] = dx.T @ hidden
            d_hidden = (dx @ p[f"layer{i}.mlp_fc2"]) * (hidden > 0)
            gradients[f"layer{i}.mlp_fc1"] = d_hidden.T @ normed_2
            dx = dx + rmsnorm_backward(d_hidden @ p[f"layer{i}.mlp_fc1"], normed_2, scale_2)
            gradients[f"layer{i}.attn_wo"] = dx.T @ attended
            d_attended = heads(dx @ p[f"layer{i}.attn_wo"])
            d_weights = d_attended @ v.transpose(0, 1, 3, 2)
            d_scores = weights * (d_weights - (d_weights * weights).sum(-1, keepdims=True)) / np.float32(head_dim**0.5)
            d_normed = np.zeros_like(normed)
            for part, d_part in (
                ("q", d_scores @ k),
                ("k", d_scores.transpose(0, 1, 3, 2) @ q),
                ("v", weights.transpose(0, 1, 3, 2) @ d_attended),
            ):
                gradients[f"layer{i}.attn_w{part}"] = merged(d_part).T @ normed
                d_normed += merged(d_part) @ p[f"layer{i}.attn_w{part}"]
            dx = dx + rmsnorm_backward(d_normed, normed, scale)
        dx = rmsnorm_backward(dx, embedded, embedding_scale)
        gradients["wte"] = np.zeros_like(p["wte"])
        np.add.at(gradients["wte"], inputs.ravel(), dx)
        gradients["wpe"] = dx.reshape(batch_size, length, n_embd).sum(0)
        steps += 1
        for name, gradient in gradients.items():
            m, v = moments[name]
            m += np.float32(0.15) * (gradient - m)
            v += np.float32(0.01) * (gradient * gradient - v)
            root = np.sqrt(v / np.float32(1 - 0.99**steps)) + np.float32(1e-8)
            p[name] -= np.float32(LEARNING_RATE / (1 - 0.85**steps)) * m / root
        return float(loss)

    return repeated(step)


def repeated(step: Callable[[], float]) -> Steps:
    """Steps that call `step`."""
    return lambda n: [step() for _ in range(n)][-1]


FRAMEWORKS: dict[str, Callable[[str, int], Steps]] = {
    "microgpt": microgpt_steps,
    "PyTorch": torch_steps,
    "PyTorch, compiled": lambda case, threads: torch_steps(case, threads, compiled=True),
    "JAX": jax_steps,
    "NumPy": numpy_steps,
}


def measure(framework: str, case: str, threads: int, seconds: float = 3.0) -> dict[str, Any]:
    """Measure in this process: the first three losses, several timings in seconds per step, peak memory in MB."""
    import resource

    steps, count = FRAMEWORKS[framework](case, threads), CASES[case][2]
    losses = [steps(1) for _ in range(3)]
    times: list[float] = []
    while len(times) < 3 or sum(times) * count < seconds:
        begin = time.perf_counter()
        steps(count)
        times.append((time.perf_counter() - begin) / count)
    return {"losses": losses, "times": times, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measure_in_a_process(framework: str, case: str, threads: int) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", framework, "--cases", case, "--threads", str(threads)]
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(command, env=os.environ | limits, capture_output=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.decode())
    return json.loads(done.stdout.decode().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--threads", type=int, default=2, help="threads of each framework (default: 2)")
    parser.add_argument("--repeats", type=int, default=5, help="processes of each framework (default: 5)")
    parser.add_argument("--measure", choices=FRAMEWORKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.cases[0], options.threads)))
        return
    packages = {"PyTorch": "torch", "PyTorch, compiled": "torch", "JAX": "jax"}
    frameworks = [name for name in FRAMEWORKS if name not in packages or find_spec(packages[name])]
    print(f"threads {options.threads}, medians of {options.repeats} processes each, interleaved")
    print(f"{'case':12} {'framework':18} {'ms/step':>10} {'microgpt/it':>12} {'memory MB':>10}   first losses")
    for case in options.cases:
        turns = [
            {name: measure_in_a_process(name, case, options.threads) for name in frameworks}
            for _ in range(options.repeats)
        ]
        for name in frameworks:
            seconds = median(median(turn[name]["times"]) for turn in turns)
            ratio = median(median(turn["microgpt"]["times"]) / median(turn[name]["times"]) for turn in turns)
            memory = median(turn[name]["memory"] for turn in turns)
            losses = " ".join(f"{loss:.4f}" for loss in turns[0][name]["losses"])
            print(f"{case:12} {name:18} {1e3 * seconds:>10.2f} {ratio:>12.2f} {memory:>10.0f}   {losses}", flush=True)


if __name__ == "__main__":
    main()
