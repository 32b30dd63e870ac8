"""The lexicon: English and Spanish word forms with the features that agreement needs.

Gender is a property of the Spanish noun (`el mapa` and `el poeta` are masculine, `la canción` is feminine without -a).
A noun has a sort, and verbs and adjectives select sorts: a witch and a key can fall, but only a witch can sleep.
Ambiguous forms are left out, so that each sentence has exactly one translation: `read`, which is its own past tense,
and "we" (`cantamos` is present and past).
"""

import itertools
from typing import NamedTuple

NOUN_SORTS = ("person", "work", "thing", "place")
INANIMATE_SORTS = ("work", "thing", "place")


class Word(NamedTuple):
    """A noun, an adjective or a verb in both languages."""

    kind: str  # of a noun: its gender; of an adjective: its position; of a verb: its class
    sorts: tuple[str, ...]  # of a noun: its own; of a verb: those of its object, or of the subject if it has none
    sentiment: int  # +1 positive, -1 negative, 0 neutral
    english: list[str]  # singular, plural; one form; base, third person singular, past
    spanish: list[str]  # singular, plural; as in `AGREEMENT`; present, then past: first, third person singular, plural


def _rows(table: str) -> list[list[str]]:
    return [line.split() for line in table.strip().splitlines()]


def _words(table: str) -> list[Word]:
    words, sorts_of = [], {"any": NOUN_SORTS, "inanimate": INANIMATE_SORTS}
    for kind, sorts, sentiment, *forms in _rows(table):
        bar = forms.index("|")
        selected = sorts_of.get(sorts) or tuple(sorts.split(","))
        words.append(Word(kind, selected, int(sentiment), forms[:bar], forms[bar + 1 :]))
    return words


NOUNS = _words("""
  f person  0 witch witches    | bruja brujas
  m person  0 king kings       | rey reyes
  f person  0 queen queens     | reina reinas
  m person  0 doctor doctors   | médico médicos
  f person  0 girl girls       | niña niñas
  m person  0 captain captains | capitán capitanes
  m person  0 poet poets       | poeta poetas
  f work    0 film films       | película películas
  m work    0 book books       | libro libros
  f work    0 letter letters   | carta cartas
  m work    0 poem poems       | poema poemas
  f work    0 song songs       | canción canciones
  f thing   0 key keys         | llave llaves
  m thing   0 map maps         | mapa mapas
  m thing   0 hat hats         | sombrero sombreros
  f thing   0 sword swords     | espada espadas
  m place   0 castle castles   | castillo castillos
  f place   0 city cities      | ciudad ciudades
  m place   0 garden gardens   | jardín jardines
  f place   0 house houses     | casa casas
""")

# Order of the Spanish forms of an adjective or a determiner.
AGREEMENT = tuple(itertools.product(("sg", "pl"), ("m", "f")))

# An "outer" adjective is farther from the noun than an "inner" one: big green house, casa verde grande.
ADJECTIVES = _words("""
  outer any         +1 good      | bueno buena buenos buenas
  outer any         +1 wonderful | maravilloso maravillosa maravillosos maravillosas
  outer any         -1 bad       | malo mala malos malas
  outer any         -1 terrible  | terrible terrible terribles terribles
  outer any          0 old       | viejo vieja viejos viejas
  outer person       0 young     | joven joven jóvenes jóvenes
  outer inanimate    0 new       | nuevo nueva nuevos nuevas
  outer thing,place  0 big       | grande grande grandes grandes
  inner any          0 green     | verde verde verdes verdes
  inner any          0 red       | rojo roja rojos rojas
  inner any          0 blue      | azul azul azules azules
  inner any          0 French    | francés francesa franceses francesas
""")

# "psych" is the class of odiar, "gustar" that of verbs whose Spanish subject is the English object.
VERB_LEXICON = _words("""
  arrival    person,work,thing   0 arrive arrives arrived | llego llega llegan llegué llegó llegaron
  arrival    person,thing,place  0 fall falls fell        | caigo cae caen caí cayó cayeron
  arrival    person              0 come comes came        | vengo viene vienen vine vino vinieron
  activity   person              0 sleep sleeps slept     | duermo duerme duermen dormí durmió durmieron
  activity   person              0 sing sings sang        | canto canta cantan canté cantó cantaron
  transitive any                 0 see sees saw           | veo ve ven vi vio vieron
  transitive any                 0 find finds found       | encuentro encuentra encuentran encontré encontró encontraron
  transitive inanimate           0 buy buys bought        | compro compra compran compré compró compraron
  transitive work                0 write writes wrote     | escribo escribe escriben escribí escribió escribieron
  transitive person              0 help helps helped      | ayudo ayuda ayudan ayudé ayudó ayudaron
  dative     work,thing          0 give gives gave        | doy da dan di dio dieron
  dative     work,thing          0 send sends sent        | envío envía envían envié envió enviaron
  gustar     any                +1 like likes liked       | gusto gusta gustan gusté gustó gustaron
  gustar     inanimate          +1 love loves loved       | encanto encanta encantan encanté encantó encantaron
  psych      person             +1 love loves loved       | amo ama aman amé amó amaron
  psych      any                -1 hate hates hated       | odio odia odian odié odió odiaron
""")

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
