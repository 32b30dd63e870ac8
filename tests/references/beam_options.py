"""The options of Transformers and of CTranslate2 in terms of `Beam`, for comparisons of the searches."""

from dataclasses import dataclass, replace

from jaxlm.decode.beam_config import CTRANSLATE2, HUGGING_FACE, Beam
from jaxlm.huggingface.generation_config import EARLY_STOPPING


@dataclass(frozen=True)
class HuggingFaceOptions:
    """The options of `generate(num_beams=...)` of Hugging Face Transformers 5; `beam` converts them.

    The limit is `max_new_tokens` for every row. Lengths exclude the prompt in both programs: `decoder_start_token_id`,
    or all of `decoder_input_ids` or of a decoder-only model's `input_ids`, left padding included. Their minimum length
    does not count the stop id, ours does.

    banned: `bad_words_ids` of one id each.
    force_eos: there is a `forced_eos_token_id`, which is generated at the limit, and possibly a `forced_bos_token_id`
        (our `ForcedPrefix`).

    Deviations. Their `no_repeat_ngram_size` covers the prompt too, ours generated tokens only. They give a forced token
    the score 0 and leave other scores unnormalized; here all are renormalized, which is the same only if nothing else
    is masked.
    """

    num_beams: int = 1
    num_return_sequences: int = 1
    early_stopping: bool | str = False
    length_penalty: float = 1.0
    min_new_tokens: int = 0
    no_repeat_ngram_size: int = 0
    banned: tuple[int, ...] = ()
    force_eos: bool = False

    def beam(self) -> Beam:
        """The same search as a `Beam`."""
        return replace(
            HUGGING_FACE,
            num_beams=self.num_beams,
            num_return_sequences=self.num_return_sequences,
            length_penalty=self.length_penalty,
            at_max_length="force_eos" if self.force_eos else HUGGING_FACE.at_max_length,
            renormalize_logits=self.force_eos,
            stopping_rule=EARLY_STOPPING[self.early_stopping],
            min_length=self.min_new_tokens + 1 if self.min_new_tokens else 0,
            suppress_tokens=self.banned,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
        )


@dataclass(frozen=True)
class CTranslate2Options:
    """The options of `Translator.translate_batch` of CTranslate2 4 (with patience 1); `beam` converts them.

    The limit is `max_decoding_length`, the stop id included; their minimum does not count the stop id, ours does.
    Scores are normalized after the masks, and lengths count the stop id, although their hypotheses come without it.
    Without penalties a row ends once `num_hypotheses` have ended, the best candidate of some step among them; with a
    penalty, once `beam_size` have. At the limit the best `beam_size` candidates end, whether they stop or not.

    Deviations. Their coverage is that of the last layer's first `alignment_heads` heads, by default one; ours is the
    mean of all. In a batch on a CPU, release 4.8.5 takes the coverage of the first step from another row. Immediately
    after a `target_prefix` only their best candidate may end; here all may.
    """

    beam_size: int = 2
    num_hypotheses: int = 1
    length_penalty: float = 1.0
    coverage_penalty: float = 0.0
    min_decoding_length: int = 1
    no_repeat_ngram_size: int = 0
    banned: tuple[int, ...] = ()

    def beam(self) -> Beam:
        """The same search as a `Beam`."""
        penalized = self.length_penalty != 0 or self.coverage_penalty != 0
        return replace(
            CTRANSLATE2,
            num_beams=self.beam_size,
            num_return_sequences=self.num_hypotheses,
            length_penalty=self.length_penalty,
            coverage_penalty=self.coverage_penalty,
            stopping_rule=CTRANSLATE2.stopping_rule if penalized else "first",
            min_length=self.min_decoding_length + 1 if self.min_decoding_length else 0,
            suppress_tokens=self.banned,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
        )
