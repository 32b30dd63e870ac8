"""The rules of the built-in corpus, in the notation of `jaxlm.data.minilang.grammar`.

    symbol                 features                                     example
    Clause.T.W             tense, width                                 the green witch arrived ~ llegó la bruja verde
    Subject.S.A.W          sort, agreement, width                       I ~ (dropped); she ~ ella; the king ~ el rey
    Object.S.W             sort, width                                  the king ~ al rey; the book ~ el libro
    NP.G.N.S.W             gender, number, sort, width                  the green witch ~ la bruja verde
    Group.K.S.T.A.B.C      verb's kind, sort, tense, English agreement, did not like ~ no me gustaron
                           Spanish agreement, clitic
    Rel.G.N.S              features of the noun before it               that I liked ~ que me gustó

Width: "short" is a name or a determiner and a noun, "plain" adds adjectives and "of", "rel" is a noun phrase with one
relative clause. No sentence has two relative clauses, and phrases in one are short, so that sentences stay short.

Sentiment is the speaker's: "I liked the film" and "the film was not bad" are positive, "Mary saw the bad film" is
negative, "Mary liked the film" is neutral. Negation reverses only the sentiment of its own verb or adjective.
"""

import itertools
from functools import cache
from string import Template

from jaxlm.data.minilang import lexicon
from jaxlm.data.minilang.grammar import SynchronousGrammar

PERSONS = ("first", "sg", "pl")

FEATURE_VALUES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys("GH", ("m", "f")),  # gender, and that of a second noun
    **dict.fromkeys("NM", ("sg", "pl")),  # number, and that of a second noun
    **dict.fromkeys("AB", PERSONS),  # agreement of the English verb, and of the Spanish one
    "C": ("none", *PERSONS),  # clitic
    **dict.fromkeys("SR", lexicon.NOUN_SORTS),  # sort, and that of a second noun
    "O": lexicon.INANIMATE_SORTS,
    **dict.fromkeys("TU", ("past", "present")),  # tense, and that of a second clause
    "K": ("arrival", "activity", "transitive", "dative", "psych", "gustar"),
    "Q": ("outer", "inner"),
    "W": ("short", "plain", "rel"),  # width
    "V": ("short", "plain"),  # width without a relative clause
}

# The universal part of speech of each label: those that both languages share, and those of one language.
SHARED_UPOS = {"N": "NOUN", "NAME": "PROPN", "ADJ": "ADJ", "ADV": "ADV", "V": "VERB", "AUX": "AUX", "D": "DET"}
SHARED_UPOS |= {"NUM": "NUM", "P": "ADP", "PRON": "PRON", "CL": "PRON", "WH": "PRON", "CONJ": "CCONJ"}
UPOS_ENGLISH = SHARED_UPOS | {"NEG": "PART", "POSS": "PRON"}
UPOS_SPANISH = SHARED_UPOS | {"NEG": "ADV", "POSS": "DET"}

# The width of a clause with two noun phrases, and of each of the two.
CLAUSE_WIDTHS = ("short short short", "plain plain plain", "rel short rel", "rel rel short")

# "I hated the book" is the speaker's sentiment; "Mary hated the book" ~ "María odió el libro" is not.
# "Mary liked the books" ~ "a María le gustaron los libros": the subject in Spanish is the object in English.
CLAUSES_WITH_AN_OBJECT = """
4  Clause.T.$clause      (S {Subject.person.A.$first} (VP {Group.transitive.S.T.A.A.none} {Object.S.$second}))
1  Clause.T.$clause      (S {Subject.person.N.$first} (VP {!Group.psych.S.T.N.N.none} {Object.S.$second}))
1  Clause.T.$clause      (S {Experiencer.N.$first} (VP {!Group.gustar.S.T.N.M.N} {NP.G.M.S.$second}))
                      ~ (S {Experiencer} (VP {Group}) {NP})
2  Clause.T.$clause      (S {Subject.person.first.$first} (VP {Group.psych.S.T.first.first.none} {Object.S.$second}))
2  Clause.T.$clause      (S {Experiencer.first.$first} (VP {Group.gustar.S.T.first.M.first} {NP.G.M.S.$second}))
                      ~ (S {Experiencer} (VP {Group}) {NP})
"""

# big green house ~ casa verde grande: the inner adjective is nearer to the noun in both languages.
RULES = """
5  Sentence             {Clause.T.plain}
8  Sentence             {Clause.T.rel}
1  Sentence             (S {Clause.T.plain} {When.T}) ~ (S {When} {Clause})
1  Sentence             (S {Clause.T.short} (CONJ and|y) {Clause.U.short})
1  Sentence             (S {Clause.T.short} (CONJ but|pero) {Clause.U.short})
1  When.past            (ADVP (ADV yesterday|ayer))
1  When.past            (ADVP (ADJ last) (N night)) ~ (ADVP (ADV anoche))
1  When.present         (ADVP (ADV now|ahora))
1  When.T               (ADVP (ADV today|hoy))

2  Clause.T.W           (S {Subject.S.A.W} (VP {Group.arrival.S.T.A.A.none})) ~ (S (VP {Group}) {Subject})
1  Clause.T.W           (S {Subject.person.A.W} (VP {Group.activity.person.T.A.A.none}))
4  Clause.T.W           (S {NP.G.N.S.W} {Predicate.G.N.S.T})
2  Clause.T.plain       (S {Subject.S.A.plain} (VP {Group.arrival.S.T.A.A.none} {Place.arrival}))
                      ~ (S (VP {Group}) {Subject} {Place})
1  Clause.T.plain       (S {Subject.person.A.plain} (VP {Group.activity.person.T.A.A.none} {Place.activity}))
1  Place.K              (PP (P in|en) {NP.G.N.place.short})
1  Place.K              (PP (P near) {NP.G.N.place.short}) ~ (PP (ADV cerca) (PP (P de) {NP}))
1  Place.K              (PP (P with|con) {NP.G.N.person.short})
1  Place.arrival        (PP (P from|de) {NP.G.N.place.short})
CLAUSES
4  Clause.T.plain       (S {Subject.person.A.short} (VP {Group.dative.O.T.A.A.M} {Object.O.plain}
                        (PP (P to|a) {NP.H.M.person.short})))

2  Rel.G.N.S            (SBAR (WH that|que) (S (VP {Group.arrival.S.T.N.N.none})))
1  Rel.G.N.person       (SBAR (WH that|que) (S (VP {Group.activity.person.T.N.N.none})))
3  Rel.G.N.person       (SBAR (WH that|que) (S (VP {Group.transitive.R.T.N.N.none} {Object.R.short})))
4  Rel.G.N.S            (SBAR (WH that|que) (S {Predicate.G.N.S.T}))
4  Rel.G.N.S            (SBAR (WH that|que) (S {Subject.person.A.short} (VP {Group.transitive.S.T.A.A.none})))
5  Rel.G.N.S            (SBAR (WH that|que) (S {Subject.person.first.short} (VP {Group.psych.S.T.first.first.none})))
2  Rel.G.N.S            (SBAR (WH that|que) (S {Subject.person.M.short} (VP {!Group.psych.S.T.M.M.none})))
6  Rel.G.N.S            (SBAR (WH that|que) (S {Experiencer.first.short} (VP {Group.gustar.S.T.first.N.first})))
2  Rel.G.N.S            (SBAR (WH that|que) (S {Experiencer.M.short} (VP {!Group.gustar.S.T.M.N.M})))

3+ Group.K.S.T.A.B.C    {Verb.K.S.T.A.B.finite} ~ {Clitic.C} {Verb}
2- Group.K.S.T.A.B.C    {Do.T.A} (NEG not) {Verb.K.S.T.A.B.base} ~ (NEG no) {Clitic.C} {Verb}
1  Clitic.none          ~
1  Clitic.first         ~ (CL me)
1  Clitic.sg            ~ (CL le)
1  Clitic.pl            ~ (CL les)
1  Do.present.first     (AUX do) ~
1  Do.present.sg        (AUX does) ~
1  Do.present.pl        (AUX do) ~
1  Do.past.A            (AUX did) ~
3+ Predicate.G.N.S.T    (VP {Be.T.N} (ADJP {Adjective.Q.G.N.S}))
2- Predicate.G.N.S.T    (VP {Be.T.N} (NEG not) (ADJP {Adjective.Q.G.N.S})) ~ (VP (NEG no) {Be} (ADJP {Adjective}))
1  Be.present.sg        (AUX is|es)
1  Be.present.pl        (AUX are|son)
1  Be.past.sg           (AUX was|era)
1  Be.past.pl           (AUX were|eran)

4  Subject.S.N.V        {NP.G.N.S.V}
1  Subject.S.N.rel      {NP.G.N.S.rel}
1  Subject.person.sg.V  (NP (PRON he|él))
1  Subject.person.sg.V  (NP (PRON she|ella))
1  Subject.person.first.V  (NP (PRON I)) ~
1  Subject.person.pl.V  (NP (PRON they)) ~
4  Experiencer.N.V      {NP.G.N.person.V} ~ (PP (P a) {NP})
1  Experiencer.N.rel    {NP.G.N.person.rel} ~ (PP (P a) {NP})
1  Experiencer.sg.V     (NP (PRON he)) ~ (PP (P a) (NP (PRON él)))
1  Experiencer.sg.V     (NP (PRON she)) ~ (PP (P a) (NP (PRON ella)))
1  Experiencer.first.V  (NP (PRON I)) ~
1  Experiencer.pl.V     (NP (PRON they)) ~
1  Object.person.W      {NP.G.N.person.W} ~ (PP (P a) {NP})
1  Object.O.W           {NP.G.N.O.W}

3  NP.G.N.S.short       (NP {Det.G.N} {Noun.G.N.S})
5  NP.G.N.S.plain       (NP {Det.G.N} {Nbar.G.N.S})
1  NP.G.N.S.rel         (NP (NP {Det.G.N} {Nbar.G.N.S}) {Rel.G.N.S})
1  NP.G.N.O.plain       (NP (NP {Det.G.N} {Nbar.G.N.O}) (PP (P of|de) {NP.H.M.person.short}))
2  NP.G.sg.person.V     (NP {Name.G})
4  Nbar.G.N.S           {Noun.G.N.S}
4  Nbar.G.N.S           [Noun.G.N.S] {Adjective.Q.G.N.S} {Noun} ~ {Noun} {Adjective}
1  Nbar.G.N.S           [Noun.G.N.S] {Adjective.outer.G.N.S} {Adjective.inner.G.N.S} {Noun}
                      ~ {Noun} {Adjective.inner} {Adjective.outer}
1  Name.m               (NAME John|Juan)
1  Name.f               (NAME Mary|María)
1  Name.m               (NAME Peter|Pedro)
1  Name.f               (NAME Anne|Ana)
1  Det.G.pl             {Numeral}
1  Det.m.pl             (D the|los) {Numeral}
1  Det.f.pl             (D the|las) {Numeral}
1  Numeral              (NUM two|dos)
1  Numeral              (NUM three|tres)
1  Numeral              (NUM four|cuatro)
"""


@cache
def minilang_grammar() -> SynchronousGrammar:
    """The grammar, built once."""
    grammar = SynchronousGrammar("Sentence", FEATURE_VALUES)
    _add_lexicon(grammar)
    clauses = [
        Template(CLAUSES_WITH_AN_OBJECT).substitute(clause=clause, first=first, second=second)
        for clause, first, second in map(str.split, CLAUSE_WIDTHS)
    ]
    grammar.add_rules(RULES.replace("CLAUSES", "".join(clauses)))
    return grammar


def _add_lexicon(g: SynchronousGrammar) -> None:
    for noun in lexicon.NOUNS:
        for number, english, spanish in zip(("sg", "pl"), noun.english, noun.spanish, strict=True):
            g.add_rule(f"Noun.{noun.kind}.{number}.{noun.sorts[0]}", f"(N {english}|{spanish})")
    for adjective in lexicon.ADJECTIVES:
        forms = zip(lexicon.AGREEMENT, adjective.spanish, strict=True)
        for ((number, gender), form), sort in itertools.product(forms, adjective.sorts):
            lhs = f"Adjective.{adjective.kind}.{gender}.{number}.{sort}"
            g.add_rule(lhs, f"(ADJ {adjective.english[0]}|{form})", sentiment=adjective.sentiment)
    for weight, label, singular, plural, *words in lexicon.DETERMINERS:
        for (number, gender), form in zip(lexicon.AGREEMENT, words, strict=True):
            if form != "-":
                english = plural if number == "pl" else singular
                g.add_rule(f"Det.{gender}.{number}", f"({label} {english}|{form})", weight=int(weight))
    for verb in lexicon.VERB_LEXICON:
        base, third, past = verb.english
        places = zip(itertools.product(("present", "past"), PERSONS), verb.spanish, strict=True)
        for ((tense, other), form), person in itertools.product(places, PERSONS):
            if verb.kind != "gustar" and other != person:
                continue  # the two languages agree with the same noun phrase
            finite = past if tense == "past" else third if person == "sg" else base
            for sort, (name, english) in itertools.product(verb.sorts, (("finite", finite), ("base", base))):
                lhs = f"Verb.{verb.kind}.{sort}.{tense}.{person}.{other}.{name}"
                g.add_rule(lhs, f"(V {english}|{form})", sentiment=verb.sentiment)
