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

from functools import cache

from jaxlm.data.minilang import lexicon
from jaxlm.data.minilang.grammar import SynchronousGrammar

FEATURE_VALUES = {
    "G": ("m", "f"),  # gender, and that of a second noun
    "H": ("m", "f"),
    "N": ("sg", "pl"),  # number, and that of a second noun
    "M": ("sg", "pl"),
    "A": ("first", "sg", "pl"),  # agreement of the English verb, and of the Spanish one
    "B": ("first", "sg", "pl"),
    "C": ("none", "first", "sg", "pl"),  # clitic
    "S": lexicon.NOUN_SORTS,
    "R": lexicon.NOUN_SORTS,  # sort of a second noun
    "O": lexicon.INANIMATE_SORTS,
    "T": ("past", "present"),  # tense, and that of a second clause
    "U": ("past", "present"),
    "K": ("arrival", "activity", "transitive", "dative", "psych", "gustar"),
    "Q": ("outer", "inner"),
}

# The width of a clause with two noun phrases, and of each of the two.
CLAUSE_WIDTHS = (
    ("short", "short", "short"),
    ("plain", "plain", "plain"),
    ("rel", "short", "rel"),
    ("rel", "rel", "short"),
)

# The order of the four forms of an adjective or a determiner.
AGREEMENT_FORMS = (("m", "sg"), ("f", "sg"), ("m", "pl"), ("f", "pl"))

# The universal part of speech of each label: those that both languages share, and those of one language.
SHARED_UPOS = {"N": "NOUN", "NAME": "PROPN", "ADJ": "ADJ", "ADV": "ADV", "V": "VERB", "AUX": "AUX", "D": "DET"}
SHARED_UPOS |= {"NUM": "NUM", "P": "ADP", "PRON": "PRON", "CL": "PRON", "WH": "PRON", "CONJ": "CCONJ"}

UPOS_ENGLISH = SHARED_UPOS | {"NEG": "PART", "POSS": "PRON"}

UPOS_SPANISH = SHARED_UPOS | {"NEG": "ADV", "POSS": "DET"}


@cache
def minilang_grammar() -> SynchronousGrammar:
    """The grammar, built once."""
    grammar = SynchronousGrammar("Sentence", FEATURE_VALUES)
    _add_sentence_rules(grammar)
    _add_intransitive_clauses(grammar)
    for widths in CLAUSE_WIDTHS:
        _add_transitive_clauses(grammar, *widths)
    _add_relative_clauses(grammar)
    _add_verb_phrases(grammar)
    _add_arguments(grammar)
    _add_noun_phrases(grammar)
    _add_nouns_and_adjectives(grammar)
    _add_determiners(grammar)
    _add_verbs(grammar)
    return grammar


def _add_sentence_rules(g: SynchronousGrammar) -> None:
    g.add_rule("Sentence", "{clause}", "{clause}", {"clause": "Clause.T.plain"}, weight=5)
    g.add_rule("Sentence", "{clause}", "{clause}", {"clause": "Clause.T.rel"}, weight=8)
    g.add_rule("Sentence", "(S {clause} {when})", "(S {when} {clause})", {"clause": "Clause.T.plain", "when": "When.T"})
    both = {"first": "Clause.T.short", "second": "Clause.U.short"}
    g.add_rule("Sentence", "(S {first} (CONJ and) {second})", "(S {first} (CONJ y) {second})", both)
    g.add_rule("Sentence", "(S {first} (CONJ but) {second})", "(S {first} (CONJ pero) {second})", both)
    g.add_rule("When.past", "(ADVP (ADV yesterday))", "(ADVP (ADV ayer))")
    g.add_rule("When.past", "(ADVP (ADJ last) (N night))", "(ADVP (ADV anoche))")
    g.add_rule("When.present", "(ADVP (ADV now))", "(ADVP (ADV ahora))")
    g.add_rule("When.T", "(ADVP (ADV today))", "(ADVP (ADV hoy))")


def _add_intransitive_clauses(g: SynchronousGrammar) -> None:
    for width in ("short", "plain", "rel"):
        left, straight = f"Clause.T.{width}", "(S {subject} (VP {group}))"
        arrival = {"subject": f"Subject.S.A.{width}", "group": "Group.arrival.S.T.A.A.none"}
        activity = {"subject": f"Subject.person.A.{width}", "group": "Group.activity.person.T.A.A.none"}
        g.add_rule(left, straight, "(S (VP {group}) {subject})", arrival, weight=2)
        g.add_rule(left, straight, straight, activity)
        copula = {"subject": f"NP.G.N.S.{width}", "predicate": "Predicate.G.N.S.T"}
        g.add_rule(left, "(S {subject} {predicate})", "(S {subject} {predicate})", copula, weight=4)
        if width == "plain":
            straight, inverted = "(S {subject} (VP {group} {place}))", "(S (VP {group}) {subject} {place})"
            g.add_rule(left, straight, inverted, arrival | {"place": "Place.arrival"}, weight=2)
            g.add_rule(left, straight, straight, activity | {"place": "Place.activity"})
    g.add_rule("Place.K", "(PP (P in) {np})", "(PP (P en) {np})", {"np": "NP.G.N.place.short"})
    g.add_rule("Place.K", "(PP (P near) {np})", "(PP (ADV cerca) (PP (P de) {np}))", {"np": "NP.G.N.place.short"})
    g.add_rule("Place.K", "(PP (P with) {np})", "(PP (P con) {np})", {"np": "NP.G.N.person.short"})
    g.add_rule("Place.arrival", "(PP (P from) {np})", "(PP (P de) {np})", {"np": "NP.G.N.place.short"})


def _add_transitive_clauses(g: SynchronousGrammar, clause_width: str, first_width: str, second_width: str) -> None:
    left, straight = f"Clause.T.{clause_width}", "(S {subject} (VP {group} {object}))"
    subject, thing = f"Subject.person.A.{first_width}", f"Object.S.{second_width}"
    group = "Group.transitive.S.T.A.A.none"
    g.add_rule(left, straight, straight, {"subject": subject, "group": group, "object": thing}, weight=4)

    # "I hated the book" is the speaker's sentiment; "Mary hated the book" ~ "María odió el libro" is not.
    group, others = "Group.psych.S.T.N.N.none", f"Subject.person.N.{first_width}"
    g.add_rule(left, straight, straight, {"subject": others, "group": group, "object": thing}, muted_slot="group")
    # "Mary liked the books" ~ "a María le gustaron los libros": the subject in Spanish is the object in English.
    english, spanish = "(S {who} (VP {group} {liked}))", "(S {who} (VP {group}) {liked})"
    who, liked = f"Experiencer.N.{first_width}", f"NP.G.M.S.{second_width}"
    slots = {"who": who, "group": "Group.gustar.S.T.N.M.N", "liked": liked}
    g.add_rule(left, english, spanish, slots, muted_slot="group")
    if first_width != "rel":
        subject, group = f"Subject.person.first.{first_width}", "Group.psych.S.T.first.first.none"
        g.add_rule(left, straight, straight, {"subject": subject, "group": group, "object": thing}, weight=2)
        who, group = f"Experiencer.first.{first_width}", "Group.gustar.S.T.first.M.first"
        g.add_rule(left, english, spanish, {"who": who, "group": group, "liked": liked}, weight=2)
    if clause_width == "plain":
        english = "(S {subject} (VP {group} {gift} (PP (P to) {whom})))"
        spanish = "(S {subject} (VP {group} {gift} (PP (P a) {whom})))"
        subject, gift, whom = "Subject.person.A.short", "Object.O.plain", "NP.H.M.person.short"
        slots = {"subject": subject, "group": "Group.dative.O.T.A.A.M", "gift": gift, "whom": whom}
        g.add_rule(left, english, spanish, slots, weight=4)


def _add_relative_clauses(g: SynchronousGrammar) -> None:
    left, group = "Rel.G.N.S", "Group.transitive.R.T.N.N.none"
    english, spanish = "(SBAR (WH that) (S (VP {group})))", "(SBAR (WH que) (S (VP {group})))"
    g.add_rule(left, english, spanish, {"group": "Group.arrival.S.T.N.N.none"}, weight=2)
    g.add_rule("Rel.G.N.person", english, spanish, {"group": "Group.activity.person.T.N.N.none"})
    english, spanish = english.replace("group}", "group} {object}"), spanish.replace("group}", "group} {object}")
    g.add_rule("Rel.G.N.person", english, spanish, {"group": group, "object": "Object.R.short"}, weight=3)
    english, spanish = "(SBAR (WH that) (S {predicate}))", "(SBAR (WH que) (S {predicate}))"
    g.add_rule(left, english, spanish, {"predicate": "Predicate.G.N.S.T"}, weight=4)

    english, spanish = "(SBAR (WH that) (S {who} (VP {group})))", "(SBAR (WH que) (S {who} (VP {group})))"
    who, group = "Subject.person.A.short", "Group.transitive.S.T.A.A.none"
    g.add_rule(left, english, spanish, {"who": who, "group": group}, weight=4)
    who, group = "Subject.person.first.short", "Group.psych.S.T.first.first.none"
    g.add_rule(left, english, spanish, {"who": who, "group": group}, weight=5)
    who, group = "Subject.person.M.short", "Group.psych.S.T.M.M.none"
    g.add_rule(left, english, spanish, {"who": who, "group": group}, muted_slot="group", weight=2)
    who, group = "Experiencer.first.short", "Group.gustar.S.T.first.N.first"
    g.add_rule(left, english, spanish, {"who": who, "group": group}, weight=6)
    who, group = "Experiencer.M.short", "Group.gustar.S.T.M.N.M"
    g.add_rule(left, english, spanish, {"who": who, "group": group}, muted_slot="group", weight=2)


def _add_verb_phrases(g: SynchronousGrammar) -> None:
    left, verb, base = "Group.K.S.T.A.B.C", "Verb.K.S.T.A.B.finite", "Verb.K.S.T.A.B.base"
    g.add_rule(left, "{verb}", "{clitic} {verb}", {"verb": verb, "clitic": "Clitic.C"}, weight=3, polarity=1)
    english, spanish = "{do} (NEG not) {verb}", "(NEG no) {clitic} {verb}"
    slots = {"do": "Do.T.A", "verb": base, "clitic": "Clitic.C"}
    g.add_rule(left, english, spanish, slots, weight=2, sentiment_sign=-1, polarity=-1)
    for who, spanish in (("none", ""), ("first", "(CL me)"), ("sg", "(CL le)"), ("pl", "(CL les)")):
        g.add_rule(f"Clitic.{who}", "", spanish)

    left, slots = "Predicate.G.N.S.T", {"be": "Be.T.N", "adjective": "Adjective.Q.G.N.S"}
    straight = "(VP {be} (ADJP {adjective}))"
    g.add_rule(left, straight, straight, slots, weight=3, polarity=1)
    english, spanish = "(VP {be} (NEG not) (ADJP {adjective}))", "(VP (NEG no) {be} (ADJP {adjective}))"
    g.add_rule(left, english, spanish, slots, weight=2, sentiment_sign=-1, polarity=-1)


def _add_arguments(g: SynchronousGrammar) -> None:
    g.add_rule("Subject.S.N.short", "{np}", "{np}", {"np": "NP.G.N.S.short"}, weight=4)
    g.add_rule("Subject.S.N.plain", "{np}", "{np}", {"np": "NP.G.N.S.plain"}, weight=4)
    g.add_rule("Subject.S.N.rel", "{np}", "{np}", {"np": "NP.G.N.S.rel"})
    a = "(PP (P a) {np})"
    g.add_rule("Experiencer.N.short", "{np}", a, {"np": "NP.G.N.person.short"}, weight=4)
    g.add_rule("Experiencer.N.plain", "{np}", a, {"np": "NP.G.N.person.plain"}, weight=4)
    g.add_rule("Experiencer.N.rel", "{np}", a, {"np": "NP.G.N.person.rel"})
    for width in ("short", "plain"):
        for english, spanish, who in (
            ("he", "él", "sg"),
            ("she", "ella", "sg"),
            ("I", "", "first"),
            ("they", "", "pl"),
        ):
            english, spanish = f"(NP (PRON {english}))", spanish and f"(NP (PRON {spanish}))"
            g.add_rule(f"Subject.person.{who}.{width}", english, spanish)
            g.add_rule(f"Experiencer.{who}.{width}", english, spanish and f"(PP (P a) {spanish})")
    for width in ("short", "plain", "rel"):
        g.add_rule(f"Object.person.{width}", "{np}", a, {"np": f"NP.G.N.person.{width}"})
        g.add_rule(f"Object.O.{width}", "{np}", "{np}", {"np": f"NP.G.N.O.{width}"})


def _add_noun_phrases(g: SynchronousGrammar) -> None:
    short = {"det": "Det.G.N", "noun": "Noun.G.N.S"}
    g.add_rule("NP.G.N.S.short", "(NP {det} {noun})", "(NP {det} {noun})", short, weight=3)
    np, det, nbar = "(NP {det} {nbar})", "Det.G.N", "Nbar.G.N.S"
    g.add_rule("NP.G.N.S.plain", np, np, {"det": det, "nbar": nbar}, weight=5)
    relative = f"(NP {np} {{rel}})"
    g.add_rule("NP.G.N.S.rel", relative, relative, {"det": det, "nbar": nbar, "rel": "Rel.G.N.S"})
    of, de = f"(NP {np} (PP (P of) {{owner}}))", f"(NP {np} (PP (P de) {{owner}}))"
    g.add_rule("NP.G.N.O.plain", of, de, {"det": det, "nbar": "Nbar.G.N.O", "owner": "NP.H.M.person.short"})
    for width in ("short", "plain"):
        g.add_rule(f"NP.G.sg.person.{width}", "(NP {name})", "(NP {name})", {"name": "Name.G"}, weight=2)

    noun, outer, inner = "Noun.G.N.S", "Adjective.outer.G.N.S", "Adjective.inner.G.N.S"
    g.add_rule("Nbar.G.N.S", "{noun}", "{noun}", {"noun": noun}, weight=4)
    slots = {"noun": noun, "adjective": "Adjective.Q.G.N.S"}
    g.add_rule("Nbar.G.N.S", "{adjective} {noun}", "{noun} {adjective}", slots, weight=4)
    # big green house ~ casa verde grande: the inner adjective is nearer to the noun in both languages.
    slots = {"noun": noun, "outer": outer, "inner": inner}
    g.add_rule("Nbar.G.N.S", "{outer} {inner} {noun}", "{noun} {inner} {outer}", slots)


def _add_nouns_and_adjectives(g: SynchronousGrammar) -> None:
    for noun in lexicon.NOUNS:
        for number, english, spanish in zip(("sg", "pl"), noun.english, noun.spanish, strict=True):
            g.add_rule(f"Noun.{noun.gender}.{number}.{noun.sort}", f"(N {english})", f"(N {spanish})")
    for english, spanish, gender in lexicon.PERSON_NAMES:
        g.add_rule(f"Name.{gender}", f"(NAME {english})", f"(NAME {spanish})")
    for adjective in lexicon.ADJECTIVES:
        english, opinion = f"(ADJ {adjective.english})", adjective.sentiment
        for (gender, number), spanish in zip(AGREEMENT_FORMS, adjective.spanish, strict=True):
            for sort in adjective.sorts:
                left = f"Adjective.{adjective.order}.{gender}.{number}.{sort}"
                g.add_rule(left, english, f"(ADJ {spanish})", sentiment=opinion)


def _add_determiners(g: SynchronousGrammar) -> None:
    rows = [("D", *row) for row in lexicon.DETERMINERS] + [("POSS", *lexicon.POSSESSIVE)]
    for label, words, forms in rows:
        for (gender, number), form in zip(AGREEMENT_FORMS, forms, strict=True):
            word = words[number == "pl"]
            if form:
                weight = 4 if word == "the" else 1
                g.add_rule(f"Det.{gender}.{number}", f"({label} {word})", f"({label} {form})", weight=weight)
    for english, spanish in lexicon.NUMERALS:
        g.add_rule("Numeral", f"(NUM {english})", f"(NUM {spanish})")
    g.add_rule("Det.G.pl", "{numeral}", "{numeral}", {"numeral": "Numeral"})
    g.add_rule("Det.m.pl", "(D the) {numeral}", "(D los) {numeral}", {"numeral": "Numeral"})
    g.add_rule("Det.f.pl", "(D the) {numeral}", "(D las) {numeral}", {"numeral": "Numeral"})


def _add_verbs(g: SynchronousGrammar) -> None:
    persons = ("first", "sg", "pl")
    for verb in lexicon.VERB_LEXICON:
        base, third, past = verb.english
        for tense, offset in (("present", 0), ("past", 3)):
            for agreement in persons:
                finite = past if tense == "past" else third if agreement == "sg" else base
                for number, other in enumerate(persons):
                    if verb.verb_class != "gustar" and other != agreement:
                        continue  # the two languages agree with the same noun phrase
                    spanish = f"(V {verb.spanish[offset + number]})"
                    for sort in verb.sorts:
                        left = f"Verb.{verb.verb_class}.{sort}.{tense}.{agreement}.{other}"
                        g.add_rule(f"{left}.finite", f"(V {finite})", spanish, sentiment=verb.sentiment)
                        g.add_rule(f"{left}.base", f"(V {base})", spanish, sentiment=verb.sentiment)
    for tense, forms in lexicon.DO.items():
        for agreement, english in forms.items():
            g.add_rule(f"Do.{tense}.{agreement}", f"(AUX {english})", "")
    for tense, (is_are, es_son) in lexicon.BE.items():
        for plurality, english, spanish in zip(("sg", "pl"), is_are, es_son, strict=True):
            g.add_rule(f"Be.{tense}.{plurality}", f"(AUX {english})", f"(AUX {spanish})")
