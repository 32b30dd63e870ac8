"""Learned positions end: what has positions is read as if they did not, and what has none ends no job.

The reference is the same model with more positions than anything here needs.
"""

from dataclasses import replace

import jax
import numpy as np
import pytest
from fixtures.tiny_run import LETTERS, VOCAB
from fixtures.zoo import params_of

from jaxlm.data.tokenizers.simple import Words
from jaxlm.decode.beam_config import Beam
from jaxlm.decode.generate import GenerationConfig, generate
from jaxlm.decode.request import DecodeRequest
from jaxlm.decode.sampling import Sampler
from jaxlm.errors import UserError
from jaxlm.inference.base import TrainedModel
from jaxlm.inference.embed import TextEmbedder
from jaxlm.inference.generate import GenerationRequest, draw_samples
from jaxlm.inference.score import score_pairs
from jaxlm.inference.translate import Search, translate
from jaxlm.models.decoder import Decoder
from jaxlm.models.encoder import Encoder
from jaxlm.models.encoder_decoder import EncoderDecoder
from jaxlm.models.ensemble import Ensemble, ensemble_params
from jaxlm.models.finetune_heads import MultipleChoice
from jaxlm.models.prefix_lm import PrefixLM
from jaxlm.models.properties import check_positions, max_input_positions, max_target_positions
from jaxlm.types import Batch

LIMIT = 12
TOKENIZER = Words(VOCAB).fit([" ".join(LETTERS)])
LM = Decoder(VOCAB, 8, 2, 16, 1, max_length=64)
TRANSLATION = EncoderDecoder(VOCAB, 8, 2, 16, 1, 1, position="learned", max_length=64)
JOINED = PrefixLM(LM)


def text(size: int, seed: int = 0) -> str:
    return " ".join(np.random.default_rng(seed).choice(list(LETTERS), size))


def trained(model) -> TrainedModel:
    return TrainedModel(model, params_of(model), TOKENIZER)


def limited(full: TrainedModel, limit: int = LIMIT) -> TrainedModel:
    """The same function of the first `limit` positions; no position after them."""

    def cut(path, leaf):
        return leaf[:limit] if path[-1].key == "table" else leaf

    model = full.model
    if isinstance(model, PrefixLM):
        model = replace(model, model=replace(model.model, max_length=limit))
    elif isinstance(model, Ensemble):
        model = replace(model, members=tuple(replace(member, max_length=limit) for member in model.members))
    else:
        model = replace(model, max_length=limit)
    return replace(full, model=model, params=jax.tree_util.tree_map_with_path(cut, full.params))


FULL_LM = trained(LM)
ENSEMBLE = TrainedModel(Ensemble((LM, LM)), ensemble_params([FULL_LM.params] * 2), TOKENIZER)


def assert_equal_scores(scores, expected, is_target_cut):
    """Nothing says that EOS follows the beginning of a text."""
    for score, whole, is_cut in zip(scores, expected, is_target_cut, strict=True):
        logprobs = whole.token_logprobs[:-1] if is_cut else whole.token_logprobs
        assert score.tokens == len(score.token_logprobs) == len(logprobs)
        np.testing.assert_allclose(score.token_logprobs, logprobs, rtol=1e-4)
        np.testing.assert_allclose(score.logprob, sum(logprobs), rtol=1e-5)


@pytest.mark.parametrize("full", [FULL_LM, ENSEMBLE], ids=["decoder", "ensemble"])
def test_scores_of_texts(full):
    """LIMIT - 1 words fit: BOS and the words are read, EOS is not. Of a longer text the beginning is scored."""
    texts = [text(size, size) for size in (3, LIMIT - 1, LIMIT, 40, 5, LIMIT - 2)]
    scores = score_pairs(limited(full), [(None, each) for each in texts])
    cut = [" ".join(each.split()[: LIMIT - 1]) for each in texts]
    expected = score_pairs(full, [(None, each) for each in cut])
    assert [score.truncated for score in scores] == [False, False, True, True, False, False]
    assert_equal_scores(scores, expected, [False, False, True, True, False, False])
    assert [score.text for score in scores] == texts


@pytest.mark.parametrize("model", [TRANSLATION, JOINED], ids=["encoder-decoder", "prefix LM"])
def test_scores_of_pairs(model):
    """The tokens of a prefix LM's source take positions of its target."""
    pairs = [(text(3, 1), text(4, 2)), (text(20, 3), text(20, 4)), (text(LIMIT - 1, 5), text(2, 6)), (text(6), text(4))]
    scores = score_pairs(limited(trained(model)), pairs)
    if model is JOINED:
        cuts = [(99, 99), (LIMIT - 2, 0), (LIMIT - 2, 0), (99, 99)]  # the source, EOS, BOS
    else:
        cuts = [(99, 99), (LIMIT - 1, LIMIT - 1), (99, 99), (99, 99)]
    cut = [
        tuple(" ".join(side.split()[:size]) for side, size in zip(pair, sizes, strict=True))
        for pair, sizes in zip(pairs, cuts, strict=True)
    ]
    expected = score_pairs(trained(model), cut)
    assert_equal_scores(scores, expected, [before[1] != after[1] for before, after in zip(pairs, cut, strict=True)])
    assert [score.truncated for score in scores] == [before != after for before, after in zip(pairs, cut, strict=True)]


@pytest.mark.parametrize("model", [TRANSLATION, JOINED], ids=["encoder-decoder", "prefix LM"])
def test_answers(model):
    """No answer is longer than the positions, and each is what it is without a limit, for the length that it has."""
    lines = [text(3, 1), text(30, 2), text(7, 3), text(LIMIT - 1, 4)]
    search = Search(Beam(1), max_len_ratio=0.0, max_len_extra=9, batch_tokens=64, max_source_len=40)
    answers = translate(limited(trained(model)), lines, search)
    reads = LIMIT if model is TRANSLATION else LIMIT - 1
    for line, (answer,) in zip(lines, answers, strict=True):
        cut = " ".join(line.split()[: reads - 1])
        room = LIMIT if model is TRANSLATION else LIMIT - len(cut.split()) - 1
        shorter = replace(search, max_len_extra=min(9, room))
        ((expected,),) = translate(trained(model), [cut], shorter)
        assert (answer.text, answer.tokens, answer.reason) == (expected.text, expected.tokens, expected.reason)
        np.testing.assert_allclose(answer.logprob, expected.logprob, rtol=1e-5)


def test_vectors():
    """A language model reads the start of a text and its words, and no EOS."""
    lines = [text(3, 1), text(LIMIT - 1, 2), text(30, 3)]
    vectors = TextEmbedder("token")(limited(FULL_LM), lines)
    expected = TextEmbedder("token")(FULL_LM, lines)
    assert [len(vector) for vector in vectors] == [4, LIMIT, LIMIT]
    for vector, whole in zip(vectors, expected, strict=True):
        np.testing.assert_allclose(vector, whole[:LIMIT], rtol=1e-4, atol=1e-5)


def samples(model: TrainedModel, prompt: str, max_tokens: int | None, search: Search | None = None):
    request = GenerationRequest(Sampler(temperature=0.0), max_tokens=max_tokens)
    (sample,) = draw_samples(model, [prompt], request, search)
    return sample


@pytest.mark.parametrize("words, max_tokens", [(4, 7), (8, 4), (8, 60), (LIMIT - 1, None)])
def test_a_prompt_that_fits_is_read_whole(words, max_tokens):
    """The last token of a text needs no position. A text ends where the positions do, by its length."""
    room = LIMIT - words
    sample, expected = (
        samples(model, text(words), size)
        for model, size in ((limited(FULL_LM), max_tokens), (FULL_LM, min(room, max_tokens or room)))
    )
    assert replace(sample, logprob=0) == replace(expected, logprob=0) and not sample.truncated
    np.testing.assert_allclose(sample.logprob, expected.logprob, rtol=1e-5)


def test_the_end_of_a_longer_prompt_is_read():
    prompt = text(40)
    sample = samples(limited(FULL_LM), prompt, 3)
    expected = samples(FULL_LM, " ".join(prompt.split()[-(LIMIT - 3) :]), 3)
    assert sample.truncated and sample.prompt == prompt
    assert (sample.text, sample.tokens, sample.reason) == (expected.text, expected.tokens, expected.reason)
    assert samples(limited(FULL_LM), prompt, None).tokens <= LIMIT // 2
    search = Search(Beam(1), max_source_len=40)
    answered = samples(limited(trained(TRANSLATION)), prompt, None, search)
    assert answered.truncated and answered.tokens <= LIMIT


def test_a_search_beyond_the_positions_is_refused():
    """Tokens count, and not the padding of prompts."""
    model = limited(FULL_LM)
    prompt_BP, valid_BP = np.full((2, 16), 5, np.int32), np.arange(16)[None] >= np.array([[10], [12]])

    def run(limit):
        request = DecodeRequest(Batch(target_BT=prompt_BP, target_valid_BT=valid_BP), prompt_BP, valid_BP, limit)
        return generate(model.model, model.params, request, GenerationConfig(20))

    assert np.isfinite(run(np.array([7, 9])).logprob_B).all()
    with pytest.raises(UserError, match="row 1: room for 13 target tokens, but learned positions reach 12"):
        run(np.array([7, 10]))


def test_a_token_without_a_position_has_no_result_that_looks_right():
    """Whoever calls a model alone with too many tokens gets NaN, in that row only."""
    model, tokens = limited(FULL_LM), np.full((2, 16), 5, np.int32)
    valid_BT = np.arange(16)[None] < np.array([[LIMIT], [LIMIT + 1]])
    logits = model.model.apply({"params": model.params}, Batch(target_BT=tokens, target_valid_BT=valid_BT))
    assert np.isfinite(logits[0][:LIMIT]).all() and np.isnan(logits[1, LIMIT]).all()
    segment_BT = np.repeat([[1, 2]], 8, axis=1).repeat(2, axis=0)
    packed = Batch(target_BT=tokens, target_valid_BT=np.ones((2, 16), bool), target_segment_BT=segment_BT)
    assert np.isfinite(model.model.apply({"params": model.params}, packed)).all()


def test_each_choice_has_all_positions():
    """The sequences of a row have positions of their own: a row may be longer than the table."""
    head = MultipleChoice(Encoder(VOCAB, 8, 2, 16, 1, max_length=64), num_labels=3)
    params, ids = params_of(head), np.random.default_rng(0).integers(4, VOCAB, (1, 30))
    ids[0, ::10], ids[0, 9::10] = TOKENIZER.special.start, TOKENIZER.special.eos
    batch = Batch(source_BS=ids, source_valid_BS=np.ones((1, 30), bool))
    short = replace(head, model=replace(head.model, max_length=10))
    table = params["model"]["position"]["table"][:10]
    cut = params | {"model": params["model"] | {"position": {"table": table}}}
    np.testing.assert_allclose(short.apply({"params": cut}, batch), head.apply({"params": params}, batch), rtol=1e-5)


def test_limits_of_models():
    roberta = Encoder(VOCAB, 8, 2, 16, 1, max_length=14, position_offset=2)
    assert max_input_positions(roberta) == 12 and max_target_positions(replace(LM, position="rotary")) is None
    joined = replace(JOINED, model=replace(LM, max_length=LIMIT))
    assert (max_input_positions(joined), max_target_positions(joined, 5)) == (LIMIT - 1, LIMIT - 5)
    both = Ensemble((LM, replace(LM, max_length=20), replace(LM, position="none")))
    assert (max_input_positions(both), max_target_positions(both)) == (20, 20)
    check_positions(joined, {"source": 11, "target": 11, "both": LIMIT})
    with pytest.raises(UserError, match="source and target together of 13 tokens, but the model has 12 positions"):
        check_positions(joined, {"source": 6, "target": 7, "both": 13})
    with pytest.raises(UserError, match="a source of 13 tokens, but the model has 12 positions.*max-length 12"):
        check_positions(roberta, {"source": 13, "target": 0, "both": 13})
