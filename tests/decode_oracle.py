"""Beam search over Python lists, from the definition and from nothing else."""

import numpy as np

F = np.float32


def S(beam, s, length):
    base = {"none": 1.0, "power": float(length), "gnmt": (5 + length) / 6}[beam.penalty]
    return F(s / F(base**beam.alpha) + F(beam.reward) * F(length))


def step_scores(beam, logprob, tokens, limit, stop, forced):
    """`logprob(tokens)` with -inf on what may not be said next."""
    row, t, n = logprob(tokens).copy(), len(tokens) + 1, beam.no_repeat_ngram
    ending = beam.limit == "force_eos" and t == limit
    for v in range(len(row)):
        gram, said = [*tokens, v][-n:], [tokens[i : i + n] for i in range(len(tokens) - n + 1)]
        repeats = n > 0 and len(gram) == n and gram in said
        early = v in stop and t < beam.min_length and not ending
        strays = t <= len(forced) and v != forced[t - 1]
        if v in beam.banned or repeats or early or strays or (ending and v not in stop):
            row[v] = -np.inf
    return row


def beam_oracle(beam, logprob, limit, stop, forced=()):
    """[(tokens, s, S, reason)], best first; `logprob(tokens)` gives float32 log-probabilities of the next token."""
    k, live, finished = beam.size, [([], F(0))], []
    for t in range(1, limit + 1):
        ranked = []
        for slot, (tokens, s) in enumerate(live):
            row = step_scores(beam, logprob, tokens, limit, stop, forced)
            ranked += [(-F(s + row[v]), slot, v) for v in range(len(row)) if row[v] > -np.inf]
        ranked = [([*live[slot][0], v], -minus) for minus, slot, v in sorted(ranked)]
        reach = {"top_k": k, "top_2k": k * (1 + len(stop)), "all": len(ranked)}[beam.finish]
        ended = [h for h in ranked[:reach] if h[0][-1] in stop]
        live = [h for h in ranked if h[0][-1] not in stop][:k]
        kept = live if t == limit and beam.limit == "keep" else []
        arrived = [h for h in ranked if h in ended or h in kept]
        finished += [(*h, S(beam, h[1], t), "stop" if h[0][-1] in stop else "length") for h in arrived]
        finished = sorted(finished, key=lambda h: -h[2])[:k]
        if not live or stops(beam, finished, live[0][1], t, limit, ranked[0] in ended):
            break
    return finished[: beam.returns]


def stops(beam, finished, s, t, limit, first):
    full = len(finished) == beam.size
    if beam.size == 1 or beam.stop == "full":
        return full
    if beam.stop == "heuristic":
        return full and finished[-1][2] >= S(beam, s, t)
    if beam.stop == "exact" and beam.reward <= 0 and len(finished) >= beam.returns:
        return finished[beam.returns - 1][2] >= max((S(beam, s, n) for n in range(t + 1, limit + 1)), default=-np.inf)
    return beam.stop == "first" and first
