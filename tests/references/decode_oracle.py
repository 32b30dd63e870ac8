"""Beam search over Python lists, from the definition and from nothing else."""

import numpy as np

F = np.float32


def S(beam, s, length, uncounted=0):
    counted = length - uncounted
    base = {"none": 1.0, "power": float(max(counted, 1)), "gnmt": (5 + counted) / 6}[beam.length_penalty_kind]
    return F(s / F(base**beam.length_penalty) + F(beam.length_reward) * F(length))


def step_scores(beam, logprob, tokens, limit, stop, forced):
    """`logprob(tokens)` with -inf on what may not be said next."""
    row, t, n = logprob(tokens).copy(), len(tokens) + 1, beam.no_repeat_ngram_size
    ending = beam.at_max_length == "force_eos" and t == limit
    for v in range(len(row)):
        gram, said = [*tokens, v][-n:], [tokens[i : i + n] for i in range(len(tokens) - n + 1)]
        repeats = n > 0 and len(gram) == n and gram in said
        early = v in stop and t < beam.min_length and not ending
        strays = t <= len(forced) and v != forced[t - 1]
        if v in beam.suppress_tokens or repeats or early or strays or (ending and v not in stop):
            row[v] = -np.inf
    if beam.renormalize_logits and (row > -np.inf).any():
        row -= np.logaddexp.reduce(row.astype(np.float64)).astype(F)
    return row


def beam_oracle(beam, logprob, limit, stop, forced=()):
    """[(tokens, s, S, reason)], best first; `logprob(tokens)` gives float32 log-probabilities of the next token."""
    k, live, finished, first = beam.num_beams, [([], F(0))], [], False
    for t in range(1, limit + 1):
        ranked = []
        for slot, (tokens, s) in enumerate(live):
            row = step_scores(beam, logprob, tokens, limit, stop, forced)
            ranked += [(-F(s + row[v]), slot, v) for v in range(len(row)) if row[v] > -np.inf]
        ranked = [([*live[slot][0], v], -minus) for minus, slot, v in sorted(ranked)]
        reach = {"top_k": k, "top_2k": k * (1 + len(stop)), "all": len(ranked)}[beam.finish_rule]
        ended = [h for h in ranked[:reach] if h[0][-1] in stop]
        live = [h for h in ranked if h[0][-1] not in stop][:k]
        kept = {"keep": live, "keep_top_k": [h for h in ranked[:k] if h in live]}.get(beam.at_max_length, [])
        kept = kept if t == limit else []
        arrived = [h for h in ranked if h in ended or h in kept]
        arrived = arrived[: k - len(finished)] if beam.keep_first_finished else arrived
        for tokens, s in arrived:
            stopped = tokens[-1] in stop
            score = S(beam, s, t, int(stopped and not beam.count_eos))
            finished.append((tokens, s, score, "stop" if stopped else "length"))
        finished = sorted(finished, key=lambda h: -h[2])[:k]
        first = first or (len(ranked) > 0 and ranked[0] in ended)
        if not live or stops(beam, finished, live[0][1], t, limit, first):
            break
    return finished[: beam.num_return_sequences]


def stops(beam, finished, s, t, limit, first):
    full = len(finished) == beam.num_beams
    if beam.num_beams == 1 or beam.stopping_rule == "full":
        return full
    if beam.stopping_rule == "heuristic":
        return full and finished[-1][2] >= S(beam, s, t)
    if beam.stopping_rule == "exact" and beam.length_reward <= 0 and len(finished) >= beam.num_return_sequences:
        lengths = [(n, not beam.count_eos) for n in range(t + 1, limit + 1)] + [(limit, 0)]
        return finished[beam.num_return_sequences - 1][2] >= max(S(beam, s, *length) for length in lengths)
    return beam.stopping_rule == "first" and first and len(finished) >= beam.num_return_sequences
