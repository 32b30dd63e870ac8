"""The lexicon: English and Spanish word forms with the features that agreement needs.

Gender is a property of the Spanish noun (`el mapa` and `el poeta` are masculine, `la canción` is feminine without -a).
A noun has a sort, and verbs and adjectives select sorts: a witch and a key can fall, but only a witch can sleep.
Ambiguous forms are left out, so that each sentence has exactly one translation: `read`, which is its own past tense,
and "we" (`cantamos` is present and past).
"""

from dataclasses import dataclass

NOUN_SORTS = ("person", "work", "thing", "place")

INANIMATE_SORTS = ("work", "thing", "place")


@dataclass(frozen=True)
class Noun:
    """A noun in both languages."""

    english: tuple[str, str]  # singular, plural
    spanish: tuple[str, str]
    gender: str  # "m" or "f"
    sort: str


@dataclass(frozen=True)
class Adjective:
    """An adjective in both languages, with its position, the sorts that it selects and its sentiment."""

    english: str
    spanish: tuple[str, str, str, str]  # masculine singular, feminine singular, masculine plural, feminine plural
    order: str  # "outer" is farther from the noun than "inner": big green house, casa verde grande
    sorts: tuple[str, ...]
    sentiment: int  # +1 positive, -1 negative, 0 neutral


@dataclass(frozen=True)
class Verb:
    """A verb in both languages, and the sorts that it selects."""

    english: tuple[str, str, str]  # base, third person singular, past
    spanish: tuple[str, ...]  # present, then past: first person singular, third person singular and plural
    verb_class: str  # "arrival", "activity" (no object), "transitive", "dative", "psych" (odiar), "gustar" (inverted)
    sorts: tuple[str, ...]  # of the object, or of the subject of a verb without an object
    sentiment: int = 0


def inflect_adjective(lemma: str) -> tuple[str, str, str, str]:
    """The four forms of a regular Spanish adjective in -o, -e or a consonant."""
    if lemma.endswith("o"):
        stem = lemma[:-1]
        return lemma, stem + "a", stem + "os", stem + "as"
    plural = lemma + ("s" if lemma.endswith("e") else "es")
    return lemma, lemma, plural, plural


def _noun(english: str, spanish: str, gender: str, sort: str) -> Noun:
    (one, many), (uno, muchos) = english.split(), spanish.split()
    return Noun((one, many), (uno, muchos), gender, sort)


def _verb(english: str, spanish: str, kind: str, sorts: tuple[str, ...], opinion: int = 0) -> Verb:
    base, third, past = english.split()
    return Verb((base, third, past), tuple(spanish.split()), kind, sorts, opinion)


NOUNS = (
    _noun("witch witches", "bruja brujas", "f", "person"),
    _noun("king kings", "rey reyes", "m", "person"),
    _noun("queen queens", "reina reinas", "f", "person"),
    _noun("doctor doctors", "médico médicos", "m", "person"),
    _noun("girl girls", "niña niñas", "f", "person"),
    _noun("captain captains", "capitán capitanes", "m", "person"),
    _noun("poet poets", "poeta poetas", "m", "person"),
    _noun("film films", "película películas", "f", "work"),
    _noun("book books", "libro libros", "m", "work"),
    _noun("letter letters", "carta cartas", "f", "work"),
    _noun("poem poems", "poema poemas", "m", "work"),
    _noun("song songs", "canción canciones", "f", "work"),
    _noun("key keys", "llave llaves", "f", "thing"),
    _noun("map maps", "mapa mapas", "m", "thing"),
    _noun("hat hats", "sombrero sombreros", "m", "thing"),
    _noun("sword swords", "espada espadas", "f", "thing"),
    _noun("castle castles", "castillo castillos", "m", "place"),
    _noun("city cities", "ciudad ciudades", "f", "place"),
    _noun("garden gardens", "jardín jardines", "m", "place"),
    _noun("house houses", "casa casas", "f", "place"),
)

PERSON_NAMES = (("John", "Juan", "m"), ("Mary", "María", "f"), ("Peter", "Pedro", "m"), ("Anne", "Ana", "f"))

ADJECTIVES = (
    Adjective("good", inflect_adjective("bueno"), "outer", NOUN_SORTS, +1),
    Adjective("wonderful", inflect_adjective("maravilloso"), "outer", NOUN_SORTS, +1),
    Adjective("bad", inflect_adjective("malo"), "outer", NOUN_SORTS, -1),
    Adjective("terrible", inflect_adjective("terrible"), "outer", NOUN_SORTS, -1),
    Adjective("old", inflect_adjective("viejo"), "outer", NOUN_SORTS, 0),
    Adjective("young", ("joven", "joven", "jóvenes", "jóvenes"), "outer", ("person",), 0),
    Adjective("new", inflect_adjective("nuevo"), "outer", INANIMATE_SORTS, 0),
    Adjective("big", inflect_adjective("grande"), "outer", ("thing", "place"), 0),
    Adjective("green", inflect_adjective("verde"), "inner", NOUN_SORTS, 0),
    Adjective("red", inflect_adjective("rojo"), "inner", NOUN_SORTS, 0),
    Adjective("blue", inflect_adjective("azul"), "inner", NOUN_SORTS, 0),
    Adjective("French", ("francés", "francesa", "franceses", "francesas"), "inner", NOUN_SORTS, 0),
)

# The copula: singular and plural in English, and of `ser`.
BE = {"present": (("is", "are"), ("es", "son")), "past": (("was", "were"), ("era", "eran"))}

DO = {"present": {"first": "do", "sg": "does", "pl": "do"}, "past": {"first": "did", "sg": "did", "pl": "did"}}

VERB_LEXICON = (
    _verb("arrive arrives arrived", "llego llega llegan llegué llegó llegaron", "arrival", ("person", "work", "thing")),
    _verb("fall falls fell", "caigo cae caen caí cayó cayeron", "arrival", ("person", "thing", "place")),
    _verb("come comes came", "vengo viene vienen vine vino vinieron", "arrival", ("person",)),
    _verb("sleep sleeps slept", "duermo duerme duermen dormí durmió durmieron", "activity", ("person",)),
    _verb("sing sings sang", "canto canta cantan canté cantó cantaron", "activity", ("person",)),
    _verb("see sees saw", "veo ve ven vi vio vieron", "transitive", NOUN_SORTS),
    _verb("find finds found", "encuentro encuentra encuentran encontré encontró encontraron", "transitive", NOUN_SORTS),
    _verb("buy buys bought", "compro compra compran compré compró compraron", "transitive", INANIMATE_SORTS),
    _verb("write writes wrote", "escribo escribe escriben escribí escribió escribieron", "transitive", ("work",)),
    _verb("help helps helped", "ayudo ayuda ayudan ayudé ayudó ayudaron", "transitive", ("person",)),
    _verb("give gives gave", "doy da dan di dio dieron", "dative", ("work", "thing")),
    _verb("send sends sent", "envío envía envían envié envió enviaron", "dative", ("work", "thing")),
    _verb("like likes liked", "gusto gusta gustan gusté gustó gustaron", "gustar", NOUN_SORTS, +1),
    _verb("love loves loved", "encanto encanta encantan encanté encantó encantaron", "gustar", INANIMATE_SORTS, +1),
    _verb("love loves loved", "amo ama aman amé amó amaron", "psych", ("person",), +1),
    _verb("hate hates hated", "odio odia odian odié odió odiaron", "psych", NOUN_SORTS, -1),
)

# English (singular, plural) and Spanish forms as of an adjective; "" for a form that does not exist.
DETERMINERS = (
    (("the", "the"), ("el", "la", "los", "las")),
    (("a", ""), ("un", "una", "", "")),
    (("this", "these"), ("este", "esta", "estos", "estas")),
    (("", "many"), ("", "", "muchos", "muchas")),
)

POSSESSIVE = (("my", "my"), ("mi", "mi", "mis", "mis"))

NUMERALS = (("two", "dos"), ("three", "tres"), ("four", "cuatro"))

# The lemma of each verb form; the auxiliary "do" has none, as it only accompanies the negation.
LEMMAS = {form: verb.english[0] for verb in VERB_LEXICON for form in verb.english} | {"do": "", "does": "", "did": ""}
