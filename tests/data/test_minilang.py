"""The built-in corpus: agreement, famous sentences, exact counts, splits, trees, tags, opinions."""

import hashlib
import itertools
import re
from collections import Counter, defaultdict
from functools import cache

import pytest

from jaxlm.data.minilang import lexicon
from jaxlm.data.minilang.corpus import EXAMPLE_SENTENCES, MiniLang, analyze, assign_split, minimal_pairs, split_size
from jaxlm.data.minilang.grammar import ENGLISH, SPANISH, Rule
from jaxlm.data.minilang.rules import FEATURE_VALUES, minilang_grammar
from jaxlm.errors import UserError

UNIVERSAL = {"ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "NOUN", "NUM", "PART", "PRON", "PROPN", "VERB"}


@pytest.fixture(scope="module")
def train():
    return list(MiniLang(count=50_000))


@pytest.fixture(scope="module")
def sentences():
    return list(MiniLang(count=3_000).sentences())


def reachable() -> list[Rule]:
    """Every rule that a derivation can use."""
    symbols, seen = [minilang_grammar().start], {minilang_grammar().start}
    for symbol in symbols:  # grows as it is read
        new = {child for rule in minilang_grammar().rules(symbol) for child in rule.children} - seen
        symbols += new
        seen |= new
    return [rule for symbol in symbols for rule in minilang_grammar().rules(symbol)]


def distinct_strings(side: int) -> int:
    """The number of different sentences on one side of the grammar, independent of their derivations.

    A state is the set of all possible continuations of a prefix; reading a word leads to another state, as in the
    subset construction, so that two derivations of one string are one path.
    """
    grammar = minilang_grammar()

    @cache
    def starts(symbol):  # {first word: what may follow it}; the word is None where the symbol can be empty
        continuations = defaultdict(set)
        for rule in grammar.rules(symbol):
            for word, rests in first(
                tuple(i if isinstance(i, str) else (rule.children[i],) for i in rule.tokens[side])
            ):
                continuations[word] |= rests
        return [(word, frozenset(rests)) for word, rests in continuations.items()]

    @cache
    def first(row):  # the same for a row of words and (symbol,)s
        if not row or isinstance(row[0], str):
            return [(row[0] if row else None, frozenset([row[1:]]))]
        words = [(word, frozenset(rest + row[1:] for rest in rests)) for word, rests in starts(*row[0]) if word]
        return words + (first(row[1:]) if len(words) < len(starts(*row[0])) else [])

    @cache
    def count(state):
        after = defaultdict(set)
        for row in state:
            for word, rests in first(row):
                after[word] |= rests
        ends = after.pop(None, ())
        states = Counter(frozenset(rests) for rests in after.values())
        return bool(ends) + sum(times * count(rest) for rest, times in states.items())

    return count(frozenset([((grammar.start,),)]))


def test_every_sentence_has_one_derivation_so_translation_is_a_function_both_ways():
    derivations = minilang_grammar().count_derivations()
    assert derivations > 1_000_000
    assert distinct_strings(ENGLISH) == distinct_strings(SPANISH) == derivations


def test_contraction_can_be_undone():
    # ... so that what holds before it holds after it: no word of the lexicon is itself a contraction.
    words = {word for rule in reachable() for word in rule.words[SPANISH].split()}
    assert not words & {"al", "del"}


def test_pairs_are_distinct_and_a_function_both_ways(train):
    assert len(set(train)) == len(dict(train)) == len({spanish for _, spanish in train}) == len(train) == 50_000


def test_a_slot_missing_on_one_side_has_one_expansion():
    grammar = minilang_grammar()
    for rule, side in itertools.product(reachable(), (ENGLISH, SPANISH)):
        missing = set(range(len(rule.children))) - set(rule.tokens[side])
        assert all(grammar.count_derivations(rule.children[number]) == 1 for number in missing)


def test_every_noun_phrase_of_two_or_three_words_agrees():
    grammar = minilang_grammar()
    nouns = {form: (n.kind, number) for n in lexicon.NOUNS for number, form in enumerate(n.spanish)}
    forms = defaultdict(set)  # an adjective or determiner -> the (gender, number) it can have
    for row in [a.spanish for a in lexicon.ADJECTIVES] + [tuple(r[4:]) for r in lexicon.DETERMINERS]:
        for (number, gender), form in zip(itertools.product((0, 1), "mf"), row, strict=True):
            forms[form].add((gender, number))
    numerals, *names = ({r.words[SPANISH] for r in grammar.rules(name)} for name in ("Numeral", "Name.m", "Name.f"))
    forms |= {numeral: {("m", 1), ("f", 1)} for numeral in numerals}
    checked = 0
    for gender, number, sort in itertools.product(FEATURE_VALUES["G"], FEATURE_VALUES["N"], lexicon.NOUN_SORTS):
        for name in ("Nbar", "NP"):
            symbol = f"{name}.{gender}.{number}.{sort}" + (".short" if name == "NP" else "")
            for derivation in grammar.enumerate_derivations(symbol)[0]:
                words = derivation.words[SPANISH].split()
                heads = [nouns[word] for word in words if word in nouns]
                assert len(heads) == 1 or words[0] in set.union(*names)
                assert all(heads[0] in forms[word] for word in words if word not in nouns and heads)
                checked += 1
    assert checked > 3000


SUBJECTS = (("I", "", "me"), ("she", "ella", "a ella le"), ("they", "", "les"))  # English, subject, experiencer


@pytest.mark.parametrize("verb", lexicon.VERB_LEXICON, ids=lambda verb: f"{verb.spanish[1]}")
def test_every_form_of_every_verb(verb):
    base, third, past = verb.english
    objects = [next(n for n in lexicon.NOUNS if n.sorts == (sort,)) for sort in verb.sorts]
    for (person, (english, spanish, experiencer)), (offset, noun) in itertools.product(
        enumerate(SUBJECTS), itertools.product((0, 3), objects)
    ):
        form = verb.spanish[offset + person]
        thing = ("la " if noun.kind == "f" else "el ") + noun.spanish[0]
        thing = f"a {thing}".replace("a el ", "al ") if noun.sorts[0] == "person" else thing
        shown = (past if offset else third if person == 1 else base) + f" the {noun.english[0]}"
        if verb.kind in ("arrival", "activity"):
            shown = shown.split()[0]
            expected = f"{form} {spanish}" if verb.kind == "arrival" else f"{spanish} {form}"
        elif verb.kind == "gustar":
            expected = f"{experiencer} {verb.spanish[offset + 1]} {thing.replace('al ', 'el ').removeprefix('a ')}"
        elif verb.kind == "dative":
            shown, expected = f"{shown} to the queens", f"{spanish} les {form} {thing} a las reinas"
        else:
            expected = f"{spanish} {form} {thing}"
        assert analyze(f"{english} {shown}").spanish == expected.strip()


def test_gustar_agrees_with_what_is_liked():
    assert analyze("she did not like these maps").spanish == "a ella no le gustaron estos mapas"
    assert analyze("they like the maps that Mary loves").spanish == "les gustan los mapas que a María le encantan"


# Sentences.


@pytest.mark.parametrize(
    ("english", "spanish", "opinion"),
    [
        ("the green witch arrived", "llegó la bruja verde", "NEU"),
        ("John did not see the film that I liked", "Juan no vio la película que me gustó", "P"),
        ("John saw the film that I did not like", "Juan vio la película que no me gustó", "N"),
        ("the witches saw the king", "las brujas vieron al rey", "NEU"),
        ("I see the old book of the captain", "veo el libro viejo del capitán", "NEU"),
        ("the king arrived from the garden last night", "anoche llegó el rey del jardín", "NEU"),
        ("Mary liked the songs", "a María le gustaron las canciones", "NEU"),
        ("the kings did not like the film", "a los reyes no les gustó la película", "NEU"),
        ("I love the maps and I love Mary", "me encantan los mapas y amo a María", "P"),
        ("they gave an old red hat to the poet", "le dieron un sombrero rojo viejo al poeta", "NEU"),
        ("Anne helped the king that sang", "Ana ayudó al rey que cantó", "NEU"),
        ("Peter does not buy the bad books", "Pedro no compra los libros malos", "N"),
        ("the letter was not bad", "la carta no era mala", "P"),
        ("I hate the wonderful city", "odio la ciudad maravillosa", "NEU"),
        ("my French doctors sleep near the castle", "mis médicos franceses duermen cerca del castillo", "NEU"),
    ],
)
def test_translation_and_opinion(english, spanish, opinion):
    sentence = analyze(english)
    assert (sentence.english, sentence.spanish, sentence.sentiment) == (english, spanish, opinion)


def test_trees_and_tags_of_a_famous_sentence():
    sentence = analyze("the green witch arrived")
    assert sentence.tree_english == "(S (NP (D the) (ADJ green) (N witch)) (VP (V arrived)))"
    assert sentence.tree_spanish == "(S (VP (V llegó)) (NP (D la) (N bruja) (ADJ verde)))"
    assert sentence.tags_english == ("DET", "ADJ", "NOUN", "VERB")
    assert sentence.tags_spanish == ("VERB", "DET", "NOUN", "ADJ")
    contracted = analyze("Anne helped the king that sang").tree_spanish
    assert "(PP (P al) (NP (NP (N rey)) (SBAR (WH que) (S (VP (V cantó))))))" in contracted


@pytest.mark.parametrize("english", ["the witch read", "", "a old book fell", "arrived the witch", "the the witch"])
def test_what_is_not_in_the_language_is_refused(english):
    with pytest.raises(UserError, match="not a sentence of minilang"):
        analyze(english)


def test_sentences_are_the_pairs_and_analyse_finds_them_again(train, sentences):
    assert [(s.english, s.spanish) for s in sentences] == train[: len(sentences)]
    assert all(analyze(s.english) == s for s in sentences[:200])


def test_trees_are_balanced_and_their_leaves_are_the_words(sentences):
    for s in sentences:
        for text, tree, tags in (
            (s.english, s.tree_english, s.tags_english),
            (s.spanish, s.tree_spanish, s.tags_spanish),
        ):
            assert re.findall(r" ([^() ]+)\)", tree) == text.split()
            assert len(tags) == len(text.split()) and set(tags) <= UNIVERSAL
            rest = tree
            while (shorter := re.sub(r"\([A-Z]+( [^() ]+)+\)", "x", rest)) != rest:
                rest = shorter
            assert rest == "x" and tree.startswith("(S ")


def test_no_loose_spaces_and_no_missing_contraction(train):
    assert not any(re.search(r"^ |  | $|\b(a|de) el\b", spanish) for _, spanish in train)
    assert not any(re.search(r"^ |  | $|\ba [aeiou]", english) for english, _ in train)


def test_lengths_and_vocabulary_are_small(train):
    for side in (0, 1):
        lengths = [len(pair[side].split()) for pair in train]
        assert max(lengths) <= 18 and 7 < sum(lengths) / len(lengths) < 10
        words = Counter(word for pair in train for word in pair[side].split())
        assert 120 < len(words) < 220 and min(words.values()) > 20  # no word is too rare to learn


@pytest.mark.parametrize(("language", "count"), [("es", 150), ("en", 30), ("both", 30)])
def test_minimal_pairs_have_the_same_words_and_opposite_opinions(language, count):
    pairs = list(minimal_pairs("test", count, language=language))
    assert len(pairs) == count and len({s.english for pair in pairs for s in pair}) == 2 * count
    for praise, blame in pairs:
        assert (praise.sentiment, blame.sentiment) == ("P", "N")
        assert assign_split(praise.english) == assign_split(blame.english) == "test"
        assert praise == analyze(praise.english) and blame == analyze(blame.english)
        if language != "en":
            assert Counter(praise.spanish.split()) == Counter(blame.spanish.split())
        if language != "es":
            assert Counter(praise.english.split()) == Counter(blame.english.split())


def test_all_three_opinions_are_common(sentences):
    counts = Counter(s.sentiment for s in sentences)
    assert set(counts) == {"P", "N", "NEU"} and min(counts.values()) > 0.2 * len(sentences)


# Splits, counts, determinism.


def test_splits_are_disjoint_and_hash_the_sentence(train):
    valid, test = list(MiniLang("valid", 1000)), list(MiniLang("test", 1000))
    for split, pairs in (("train", train), ("valid", valid), ("test", test)):
        assert all(assign_split(english) == split for english, _ in pairs)
    assert not {e for e, _ in train} & {e for e, _ in valid + test}
    assert not {s for _, s in train} & {s for _, s in valid + test}
    assert [english for english, _ in test[:3]] == list(EXAMPLE_SENTENCES)


def test_moving_the_negation_does_not_change_the_split(sentences):
    grammar = minilang_grammar()
    for sentence in sentences[:300]:
        words = ["a" if word == "an" else word for word in sentence.english.split()]
        (derivation,) = grammar.parse(words)
        for other in grammar.move_negation(derivation):
            moved = " ".join(other.words[ENGLISH].split())
            assert assign_split(moved.replace("a old", "an old")) == assign_split(sentence.english)


def test_same_seed_same_pairs_and_a_shorter_corpus_is_the_beginning_of_a_longer(train):
    assert list(MiniLang(count=2000)) == train[:2000]
    corpus = MiniLang(count=500, seed=1)
    assert list(corpus) == list(corpus) != train[:500]
    assert list(MiniLang(count=0)) == [] and len(corpus) == 500


def test_the_corpus_is_a_promise():
    text = "\n".join("\t".join(pair) for pair in MiniLang(count=1000))
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "5dcf5305c4110cbfbade8c3a16ea53a40830fc91cf8bf025cfb0b9ba1a27ab43"


def test_impossible_requests_are_refused_with_both_numbers():
    with pytest.raises(UserError, match=f"count={10**15}.*holds {split_size('test')} pairs"):
        MiniLang("test", count=10**15)
    with pytest.raises(UserError, match="count=-1"):
        MiniLang(count=-1)
    with pytest.raises(UserError, match="no split 'dev', choose one of train, valid, test"):
        MiniLang("dev")
    with pytest.raises(UserError, match="source='de'"):
        MiniLang(source="de")
    with pytest.raises(UserError, match="choose one of en, es, both"):
        next(minimal_pairs(language="de"))


def test_source_decides_the_direction_and_its_description():
    assert [pair[::-1] for pair in MiniLang("test", 50, source="es")] == list(MiniLang("test", 50))
    count = minilang_grammar().count_derivations()
    assert f"20,000 of {count:,} sentences, Spanish to English" in MiniLang(source="es").describe()
