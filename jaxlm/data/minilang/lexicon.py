"""The lexicon: English and Spanish word forms with the features that agreement needs.

Gender is a property of the Spanish noun (`el mapa` and `el poeta` are masculine, `la canción` is feminine without -a).
A noun has a sort, and verbs and adjectives select sorts: a witch and a key can fall, but only a witch can sleep.
Ambiguous forms are left out, so that each sentence has exactly one translation: `read`, which is its own past tense,
and "we" (`cantamos` is present and past).
"""

from typing import NamedTuple

NOUN_SORTS = ("person", "work", "thing", "place")

INANIMATE_SORTS = ("work", "thing", "place")


class Noun(NamedTuple):
    """A noun in both languages."""

    english: tuple[str, ...]  # singular, plural
    spanish: tuple[str, ...]
    gender: str  # "m" or "f"
    sort: str


class Adjective(NamedTuple):
    """An adjective in both languages, with its position, the sorts that it selects and its sentiment."""

    english: str
    spanish: tuple[str, ...]  # masculine singular, feminine singular, masculine plural, feminine plural
    order: str  # "outer" is farther from the noun than "inner": big green house, casa verde grande
    sorts: tuple[str, ...]
    sentiment: int  # +1 positive, -1 negative, 0 neutral


class Verb(NamedTuple):
    """A verb in both languages, and the sorts that it selects."""

    english: tuple[str, ...]  # base, third person singular, past
    spanish: tuple[str, ...]  # present, then past: first person singular, third person singular and plural
    verb_class: str  # "arrival", "activity" (no object), "transitive", "dative", "psych" (odiar), "gustar" (inverted)
    sorts: tuple[str, ...]  # of the object, or of the subject of a verb without an object
    sentiment: int


def _rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.strip().splitlines()]


def _sorts(text: str) -> tuple[str, ...]:
    return {"any": NOUN_SORTS, "inanimate": INANIMATE_SORTS}.get(text) or tuple(text.split(","))


_NOUNS = """
    person f  witch witches      bruja brujas
    person m  king kings         rey reyes
    person f  queen queens       reina reinas
    person m  doctor doctors     médico médicos
    person f  girl girls         niña niñas
    person m  captain captains   capitán capitanes
    person m  poet poets         poeta poetas
    work   f  film films         película películas
    work   m  book books         libro libros
    work   f  letter letters     carta cartas
    work   m  poem poems         poema poemas
    work   f  song songs         canción canciones
    thing  f  key keys           llave llaves
    thing  m  map maps           mapa mapas
    thing  m  hat hats           sombrero sombreros
    thing  f  sword swords       espada espadas
    place  m  castle castles     castillo castillos
    place  f  city cities        ciudad ciudades
    place  m  garden gardens     jardín jardines
    place  f  house houses       casa casas
"""
NOUNS = tuple(Noun((*words[:2],), (*words[2:],), gender, sort) for sort, gender, *words in _rows(_NOUNS))

_ADJECTIVES = """
    outer any         +1  good       bueno buena buenos buenas
    outer any         +1  wonderful  maravilloso maravillosa maravillosos maravillosas
    outer any         -1  bad        malo mala malos malas
    outer any         -1  terrible   terrible terrible terribles terribles
    outer any          0  old        viejo vieja viejos viejas
    outer person       0  young      joven joven jóvenes jóvenes
    outer inanimate    0  new        nuevo nueva nuevos nuevas
    outer thing,place  0  big        grande grande grandes grandes
    inner any          0  green      verde verde verdes verdes
    inner any          0  red        rojo roja rojos rojas
    inner any          0  blue       azul azul azules azules
    inner any          0  French     francés francesa franceses francesas
"""
ADJECTIVES = tuple(
    Adjective(english, tuple(forms), order, _sorts(sorts), int(sentiment))
    for order, sorts, sentiment, english, *forms in _rows(_ADJECTIVES)
)

_VERBS = """
    arrival    person,work,thing  0  arrive arrives arrived llego llega llegan llegué llegó llegaron
    arrival    person,thing,place 0  fall falls fell       caigo cae caen caí cayó cayeron
    arrival    person             0  come comes came       vengo viene vienen vine vino vinieron
    activity   person             0  sleep sleeps slept    duermo duerme duermen dormí durmió durmieron
    activity   person             0  sing sings sang       canto canta cantan canté cantó cantaron
    transitive any                0  see sees saw          veo ve ven vi vio vieron
    transitive any                0  find finds found      encuentro encuentra encuentran encontré encontró encontraron
    transitive inanimate          0  buy buys bought       compro compra compran compré compró compraron
    transitive work               0  write writes wrote    escribo escribe escriben escribí escribió escribieron
    transitive person             0  help helps helped     ayudo ayuda ayudan ayudé ayudó ayudaron
    dative     work,thing         0  give gives gave       doy da dan di dio dieron
    dative     work,thing         0  send sends sent       envío envía envían envié envió enviaron
    gustar     any               +1  like likes liked      gusto gusta gustan gusté gustó gustaron
    gustar     inanimate         +1  love loves loved      encanto encanta encantan encanté encantó encantaron
    psych      person            +1  love loves loved      amo ama aman amé amó amaron
    psych      any               -1  hate hates hated      odio odia odian odié odió odiaron
"""
VERB_LEXICON = tuple(
    Verb((*words[:3],), (*words[3:],), verb_class, _sorts(sorts), int(sentiment))
    for verb_class, sorts, sentiment, *words in _rows(_VERBS)
)

# Weight, label, English singular and plural, and Spanish forms as of an adjective; "-" for a form that does not exist.
DETERMINERS = _rows("""
    4 D     the  the    el    la    los     las
    1 D     a    -      un    una   -       -
    1 D     this these  este  esta  estos   estas
    1 D     -    many   -     -     muchos  muchas
    1 POSS  my   my     mi    mi    mis     mis
""")

# The lemma of each verb form; the auxiliary "do" has none, as it only accompanies the negation.
LEMMAS = {form: verb.english[0] for verb in VERB_LEXICON for form in verb.english} | {"do": "", "does": "", "did": ""}
