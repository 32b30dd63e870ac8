"""Words near groups of words in a corpus: log odds with a Dirichlet prior; and hits of a lexicon.

    python -m benchmarks.associations shards/demo                               pronouns by occupation
    python -m benchmarks.associations shards/demo --groups G.json --attributes A.txt [--lexicon L.txt]

G.json has two groups, {"name": ["word", ...], ...}; A.txt and L.txt have a word a line. For each attribute that occurs
in at least 50 windows of ten words on each side of a word of a group, the table has the log odds of its share in the
windows of the first group against that in those of the second, with a prior of the shares in the whole corpus (Monroe
et al. 2008), and the 95 % interval. Hits are documents with a word of the lexicon, with Wilson's interval: they are
counts of words, not of toxicity. The default lists are English; none with slurs is shipped.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jaxlm.corpora.audit import MIN_COUNT, NORMAL_95, wilson_interval
from jaxlm.corpora.document import Document
from jaxlm.data.files import read_lines
from jaxlm.data.sources.text import Shards
from jaxlm.json_files import read_json

WINDOW, PRIOR = 10, 1000.0
PRONOUNS = {"she": ["she", "her", "hers", "herself"], "he": ["he", "him", "his", "himself"]}
OCCUPATIONS = (
    "accountant actor artist author baker builder carpenter chef chemist clerk coach cook dentist designer director "
    "doctor driver editor engineer farmer guard guide judge lawyer leader librarian manager mechanic musician nurse "
    "officer painter physician pilot plumber poet professor programmer secretary singer soldier student teacher writer"
).split()


def count_near(documents: Iterable[list[str]], groups: Mapping[str, Sequence[str]]) -> dict[str, Counter]:
    """Of each group, and of "all" words: how often each word is within the window of a word of the group."""
    name_of = {word: name for name, words in groups.items() for word in words}
    counts: dict[str, Counter] = {name: Counter() for name in (*groups, "all")}
    for words in documents:
        counts["all"].update(words)
        for place, word in enumerate(words):
            if name := name_of.get(word):
                counts[name].update(words[max(place - WINDOW, 0) : place] + words[place + 1 : place + 1 + WINDOW])
    return counts


def log_odds(word: str, first: Counter, second: Counter, everywhere: Counter) -> tuple[float, float]:
    """The log odds ratio of a word between two counters and its standard deviation (Monroe et al. 2008, 16 and 20)."""
    prior = PRIOR * everywhere[word] / everywhere.total()
    odds = [(c[word] + prior) / (c.total() + PRIOR - c[word] - prior) for c in (first, second)]
    deviation = math.sqrt(1 / (first[word] + prior) + 1 / (second[word] + prior))
    return math.log(odds[0] / odds[1]), deviation


def main() -> None:
    """Print a table, and the hits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--groups", type=Path)
    parser.add_argument("--attributes", type=Path)
    parser.add_argument("--lexicon", type=Path)
    options = parser.parse_args()
    groups = read_json(options.groups, dict[str, list[str]]) if options.groups else PRONOUNS
    attributes = list(read_lines(options.attributes)) if options.attributes else OCCUPATIONS
    first, second = groups
    documents = [Document("", text).tokens for text in Shards(str(options.folder))]
    counts = count_near(documents, groups)
    print(f"| word | near {first} | near {second} | log odds | 95 % |\n|---|---|---|---|---|")
    shown = 0
    for word in attributes:
        near = counts[first][word], counts[second][word]
        if sum(near) >= MIN_COUNT:
            ratio, deviation = log_odds(word, counts[first], counts[second], counts["all"])
            low, high = ratio - NORMAL_95 * deviation, ratio + NORMAL_95 * deviation
            print(f"| {word} | {near[0]:,} | {near[1]:,} | {ratio:.2f} | {low:.2f} to {high:.2f} |")
            shown += 1
    print(f"\n{len(attributes) - shown} of {len(attributes)} words are in fewer than {MIN_COUNT} windows")
    if options.lexicon:
        lexicon = set(read_lines(options.lexicon))
        hits = sum(not lexicon.isdisjoint(words) for words in documents)
        print(json.dumps({"hits": hits, "of": len(documents), "interval": wilson_interval(hits, len(documents))}))


if __name__ == "__main__":
    main()
